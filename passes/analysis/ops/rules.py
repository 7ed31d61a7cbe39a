"""How labels pass through each family of ops.

Here: normalisation and element-by-element ops. The files `label_*.py` beside this one hold the
other families. Anything else is unknown and freezes what it touches: never wrong, only less pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pruneopt.errors import UserError
from pruneopt.ir.graph import Op, Value
from pruneopt.ir.schema import overload
from pruneopt.passes.analysis.channels.labels import Blocks, Labels, Note, Unlabelled, number
from pruneopt.passes.analysis.channels.planes import Plane, align, varying
from pruneopt.passes.analysis.ops.heads import apart, tie_inner

__all__ = [
    "CREATED",
    "RULES",
    "Rule",
    "apply_rule",
    "copies",
    "merge_pointwise",
    "pointwise",
    "rule",
]

Rule = Callable[[Labels, Op], None]
RULES: dict[str, Rule] = {}
CREATED = (
    "zeros",
    "ones",
    "full",
    "new_zeros",
    "new_ones",
    "new_full",
    "empty",
    "new_empty",
    "rand",
    "randn",
)
"""Ops that make a tensor of one number, of any, or of none yet."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops by base name (``conv2d``)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def apply_rule(labels: Labels, op: Op) -> None:
    """Propagate labels through one op."""
    found = RULES.get(op.role)
    if found is not None:
        try:
            found(labels, op)
        except Unlabelled as reason:
            labels.give_up(op, str(reason))
    elif is_pointwise(op):
        pointwise(labels, op)
    elif any(labels.of(value) or value.is_weight for value in op.inputs):
        labels.give_up(op, "no rule")


def is_pointwise(op: Op) -> bool:
    """Whether torch tags the op as working element by element."""
    try:
        tags: Sequence[Any] = getattr(overload(op.target), "tags", ())
    except UserError:
        return False
    return torch.Tag.pointwise in tags and len(op.results) == 1


# Normalisation


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(labels: Labels, op: Op) -> None:
    x = labels.operand(op, 0)
    labels.set(op.results[0], per_channel(labels, op, x, range(1, 5)))


def per_channel(labels: Labels, op: Op, x: Value, weights: Iterable[int]) -> list[Plane]:
    """Planes along axis 1 are shared with the weights; statistics run over the others (noted)."""
    out = []
    for plane in labels.of(x):
        if 1 in varying(plane):
            plane = labels.tie(plane, [axis for axis in varying(plane) if axis != 1])
            for index in weights:
                labels.adopt(op.value(index), plane.reshape(-1), f"{op}")
        elif any(axis > 1 for axis in varying(plane)):
            labels.notes.append(Note(op, plane))
        out.append(plane)
    if not any(1 in varying(plane) for plane in out):
        freeze_weights(labels, op)
    return out


def freeze_weights(labels: Labels, op: Op) -> None:
    """The weights of a norm over channels that cannot go stay whole."""
    for value in op.inputs:
        if value.is_weight:
            labels.freeze_value(value, f"shared with {op}, whose channels cannot be removed")


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(labels: Labels, op: Op) -> None:
    x = labels.operand(op, 0)
    normalized = op.attrs["normalized_shape"]
    count = len(normalized) if isinstance(normalized, tuple) else 1
    first = x.type.rank - count
    planes = [tie_inner(labels, plane, range(first, x.type.rank)) for plane in labels.of(x)]
    for plane in planes:
        if any(axis >= first for axis in varying(plane)):
            labels.notes.append(Note(op, plane))
            if op.role.endswith("layer_norm"):
                labels.needs_two(plane, range(first, x.type.rank), labels.shape(x))
            for index in (1, 2):
                labels.adopt(op.value(index), plane, f"{op}")
    if not any(axis >= first for plane in planes for axis in varying(plane)):
        freeze_weights(labels, op)
    labels.set(op.results[0], planes)


@rule("group_norm")
def group_norm(labels: Labels, op: Op) -> None:
    x = labels.operand(op, 0)
    groups = number(op, "num_groups")
    out = per_channel(labels, op, x, (1, 2))
    for plane in out:
        if 1 in varying(plane) and labels.whole_groups and groups > 1:
            labels.tie(
                plane.reshape(groups, -1), [1]
            )  # statistics of whole groups: nothing to note
        elif 1 in varying(plane) and plane.numel() > groups:
            labels.notes.append(Note(op, plane))
            if all(size == 1 for size in labels.shape(x)[2:]):
                labels.pairs.append(plane.reshape(groups, -1))
            if groups > 1:
                labels.blocks.append(Blocks(plane.reshape(groups, -1), op, pinned=1))
    labels.set(op.result, out)


@rule("_weight_norm")
def weight_norm(labels: Labels, op: Op) -> None:
    """Directions divided by their norm over all axes but one, times a magnitude for each place of
    that one."""
    direction, magnitude = labels.operand(op, 0), labels.operand(op, 1)
    labels.label_axes(direction)
    keep = number(op, "dim") % direction.type.rank
    for plane in labels.of(direction):
        if varying(plane) == (keep,):
            labels.adopt(magnitude, plane, f"{op}")
        else:
            labels.notes.append(Note(op, plane))
    labels.set(op.result, labels.of(direction))


@rule(
    "softmax",
    "log_softmax",
    "_softmax",
    "_log_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "normalize",
)
def along_axis(labels: Labels, op: Op) -> None:
    """Ops that keep the shape and mix along one axis."""
    x = labels.operand(op, 0)
    dim = op.attrs.get("dim")
    axis = (dim if isinstance(dim, int) else -1) % x.type.rank
    planes = [tie_inner(labels, plane, (axis,)) for plane in labels.of(x)]
    for plane in planes:
        if axis in varying(plane):
            labels.notes.append(Note(op, plane))
            if "softmax" in op.role:
                labels.needs_two(plane, [axis], labels.shape(x))
    labels.set(op.result, planes)


@rule(*CREATED)
def created(labels: Labels, op: Op) -> None:
    """A tensor of one number, or of numbers drawn alike, may have any size: that of whatever it is
    combined with."""
    labels.set(op.result, copies(labels, op, range(op.result.type.rank)))


def copies(labels: Labels, op: Op, axes: Iterable[int]) -> list[Plane]:
    """Labels along axes on which all elements are equal, so that any number of them will do."""
    planes = []
    for axis in axes:
        size = op.result.type.dims[axis]
        if isinstance(size, int) and size > 1:
            shape = [1] * op.result.type.rank
            shape[axis] = size
            planes.append(labels.fresh(size).reshape(shape))
    return planes


# Element by element


@rule(
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "contiguous",
    "clone",
    "detach",
    "to",
    "_to_copy",
    "alias",
)
@rule(
    "type_as",
    "lift_fresh",
    "lift_fresh_copy",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "zero",
)
@rule(
    "celu",
    "elu",
    "hardtanh",
    "hardswish",
    "relu6",
    "softplus",
    "prelu",
    "_prelu_kernel",
    "masked_fill",
    "where",
)
@rule(
    "rand_like",
    "randn_like",
    "randint_like",
    "bernoulli",
    "normal",
    "normal_functional",
    "uniform",
    "exponential",
)
@rule("cauchy", "geometric", "log_normal", "poisson")
@rule(
    "log_sigmoid",
    "real",
    "imag",
    "copy",
    "fill",
    "rsub",
    "true_divide",
    "divide",
    "multiply",
    "subtract",
)
def pointwise(labels: Labels, op: Op) -> None:
    """All operands share their labels, element by element."""
    if op.role in ("prelu", "_prelu_kernel"):
        prelu(labels, op)
        return
    values = list(dict.fromkeys(op.inputs))
    if op.role == "type_as":
        values = values[:1]
    if not any(labels.of(value) for value in values):
        weights = [value for value in values if value.is_weight]
        if weights:
            labels.label_axes(max(weights, key=lambda value: value.type.rank))
    rank = op.result.type.rank
    labels.set(
        op.result,
        merge_pointwise(
            labels, op, [([align(p, rank) for p in labels.of(value)], value) for value in values]
        ),
    )


def prelu(labels: Labels, op: Op) -> None:
    """One slope per channel of axis 1, or one for all."""
    x, weight = op.value(0), op.value(1)
    planes = labels.of(x)
    along = [plane for plane in planes if 1 in varying(plane)]
    for plane in along:
        labels.adopt(
            weight, labels.tie(plane, [a for a in varying(plane) if a != 1]).reshape(-1), f"{op}"
        )
    if not along:
        freeze_weights(labels, op)
    labels.set(op.result, planes)


def parted_sides(
    labels: Labels, sides: Sequence[tuple[list[Plane], Value | None]]
) -> list[tuple[list[Plane], Value | None]]:
    """`Labels.parted` for the planes of several operands together."""
    every = iter(labels.parted(plane for planes, _ in sides for plane in planes))
    return [([next(every) for _ in planes], value) for planes, value in sides]


def merge_pointwise(
    labels: Labels, op: Op, sides: Sequence[tuple[list[Plane], Value | None]]
) -> list[Plane]:
    """The planes of an element-by-element result. Planes that meet on an axis are united; a side
    that spans a labelled axis without labels of its own freezes it, unless it is a weight, which
    adopts the labels.
    """
    merged: list[Plane] = []
    if labels.whole_heads:
        sides = apart(labels, op, sides)
    sides = parted_sides(labels, sides)
    for planes, _ in sides:
        for plane in planes:
            partners = [own for own in merged if set(varying(own)) & set(varying(plane))]
            for own in partners:
                labels.unite(own, plane, f"{op}")
            if not partners:
                merged.append(plane)
    stuck: list[Plane] = []
    for planes, value in sides:
        if value is None:
            continue
        rank = merged[0].dim() if merged else 0
        shape = (1,) * (rank - value.type.rank) + labels.shape(value)
        covered = {axis for plane in planes for axis in varying(plane)}
        for index, plane in enumerate(merged):
            spanned = [axis for axis in varying(plane) if shape[axis] > 1]
            if not spanned or covered & set(varying(plane)):
                continue
            if labels.whole_heads and varying(plane)[0] not in spanned:
                merged[index] = tie_inner(labels, plane, spanned)
            elif value.is_weight:
                labels.adopt(value, plane, f"{op}")
            else:
                labels.freeze(
                    plane, f"combined with a tensor whose channels cannot be removed, {op}"
                )
                stuck.append(plane)
    return [plane for plane in merged if not any(plane is other for other in stuck)]
