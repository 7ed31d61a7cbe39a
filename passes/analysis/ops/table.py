"""The one table of ops: every family by name, and what users add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pruneopt.errors import UserError
from pruneopt.ir.graph import Op
from pruneopt.ir.schema import overload
from pruneopt.passes.analysis.channels.labels import Labels, Unlabelled
from pruneopt.passes.analysis.ops import (
    attention,
    convolution,
    creation,
    cuts,
    data_movement,
    fourier,
    indexing,
    joins,
    normalisation,
    pointwise,
    products,
    recurrent,
    reductions,
    windows,
)
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait

__all__ = [
    "FAMILIES",
    "OPS",
    "UNKNOWN",
    "apply_rule",
    "computes",
    "definition_of",
    "has_trait",
]

FAMILIES = (
    convolution,
    products,
    attention,
    recurrent,
    normalisation,
    pointwise,
    reductions,
    windows,
    joins,
    cuts,
    data_movement,
    indexing,
    creation,
    fourier,
)
OPS: dict[str, OpDefinition] = {
    name: item for family in FAMILIES for name, item in family.DEFINITIONS.items()
}
"""What is known of an op, by its role (`Op.role`); `register_op` adds users' ops."""
UNKNOWN = OpDefinition()
"""What is known of any other op: nothing."""


def definition_of(op: Op) -> OpDefinition:
    """Return what is known of an op.

    A user's op that was declared to be like another has that one's definition; an op without any
    that torch tags as pointwise has that of element-by-element ops.
    """
    found = OPS.get(op.role)
    if found is not None:
        return found
    return pointwise.POINTWISE if is_tagged_pointwise(op) else UNKNOWN


def has_trait(op: Op, trait: Trait) -> bool:
    """Return whether an op has a property."""
    return trait in definition_of(op).traits


def computes(op: Op, trait: Trait) -> bool:
    """Return whether an op has a property and computes what PyTorch's op does. A user's op that is
    like one has its weights and channels, but may compute something else: nothing may be put in its
    place."""
    return op.role == op.base and has_trait(op, trait)


def is_tagged_pointwise(op: Op) -> bool:
    """Return whether torch tags an op with one result as working element by element."""
    try:
        tags: Sequence[Any] = getattr(overload(op.target), "tags", ())
    except UserError:
        return False
    return torch.Tag.pointwise in tags and len(op.results) == 1


def apply_rule(labels: Labels, op: Op) -> None:
    """Propagate labels through one op; freeze what it touches where nothing is known of it."""
    rule = definition_of(op).rule
    if rule is not None:
        try:
            rule(labels, op)
        except Unlabelled as reason:
            labels.freeze_unknown(op, str(reason))
    elif any(labels.of(value) or value.is_weight for value in op.inputs):
        labels.freeze_unknown(op, "no rule")
