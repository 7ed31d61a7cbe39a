"""Ops that make a tensor: of one number, of numbers drawn, of any, or of none yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.labels import Labels
from pruneopt.passes.analysis.channels.planes import Plane
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.resize import resize_result

__all__ = ["CREATED", "DEFINITIONS", "copies"]


def created(labels: Labels, op: Op) -> None:
    """Label a tensor of one number, or of numbers drawn alike: it may have any size, that of
    whatever it is combined with."""
    labels.set(op.result, copies(labels, op, range(op.result.type.rank)))


def copies(labels: Labels, op: Op, axes: Iterable[int]) -> list[Plane]:
    """Return labels along axes on which all elements are equal, so that any number of them will
    do."""
    planes = []
    for axis in axes:
        size = op.result.type.dims[axis]
        if isinstance(size, int) and size > 1:
            shape = [1] * op.result.type.rank
            shape[axis] = size
            planes.append(labels.fresh(size).reshape(shape))
    return planes


def _created(*traits: Trait) -> OpDefinition:
    return OpDefinition(rule=created, resize=resize_result("size"), traits=frozenset(traits))


CREATED: Mapping[str, OpDefinition] = {
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), _created()),
    **dict.fromkeys(("empty", "new_empty"), _created(Trait.UNWRITTEN)),
    **dict.fromkeys(("rand", "randn"), _created(Trait.RANDOM)),
}
DEFINITIONS: Mapping[str, OpDefinition] = {
    **CREATED,
    **dict.fromkeys(
        ("empty_strided", "new_empty_strided"),
        OpDefinition(traits=frozenset({Trait.UNWRITTEN})),
    ),
    **dict.fromkeys(
        ("multinomial", "randint", "randperm"), OpDefinition(traits=frozenset({Trait.RANDOM}))
    ),
}
