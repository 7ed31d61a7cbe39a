"""Reductions along axes, and the distance of two tensors along one."""

from __future__ import annotations

from collections.abc import Mapping

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.labels import Blocks, Labels, Note, number, numbers
from pruneopt.passes.analysis.channels.planes import align, varying
from pruneopt.passes.analysis.ops.definition import OpDefinition
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise, pointwise

__all__ = ["DEFINITIONS"]


def reduction(labels: Labels, op: Op) -> None:
    """Drop labels over which a reduction runs (noted); planes that vary elsewhere too are tied over
    them.

    Where the result keeps the axis it is a statistic to put beside what it was taken of (the norm
    of a head's query): not tied but noted, and the rows stay.
    """
    x = op.value(0)
    if x is None or (op.role in ("max", "min") and op.value(1) is not None):
        pointwise(labels, op)
        return
    if len(op.results) == 2 and op.results[1].users:
        axis = number(op, "dim") % x.type.rank
        for plane in labels.of(x):
            if axis in varying(plane):
                labels.freeze(plane, f"channels are numbered by {op}")
    axes = [dim % x.type.rank for dim in numbers(op, "dim")] or list(range(x.type.rank))
    keep = op.attrs.get("keepdim") is True
    out = []
    for plane in labels.of(x):
        inside = [axis for axis in varying(plane) if axis in axes]
        if op.role in ("std", "var"):
            labels.needs_two(plane, axes, labels.shape(x))
        if inside and len(inside) == len(varying(plane)):
            labels.notes.append(Note(op, plane))
            continue
        if keep and inside and inside[-1] == varying(plane)[-1] and not labels.whole_heads:
            labels.notes.append(Note(op, plane))
            rows = plane.reshape([plane.shape[axis] for axis in varying(plane)])
            labels.blocks.append(Blocks(rows, op, pinned=rows.dim() - len(inside)))
            continue
        plane = labels.tie(plane, inside)
        sizes = [size for axis, size in enumerate(plane.shape) if keep or axis not in axes]
        out.append(plane.reshape(sizes))
    for value in op.results:
        labels.set(value, out)


def compared(labels: Labels, op: Op) -> None:
    """Unite vectors of two tensors that are compared along one axis (the last one for distances): a
    statistic over it."""
    values = list(dict.fromkeys(op.inputs))
    rank = max(value.type.rank for value in values)
    axis = number(op, "dim") % rank if "dim" in op.attrs else rank - 1
    sides = [([align(plane, rank) for plane in labels.of(value)], value) for value in values]
    out = []
    for plane in merge_pointwise(labels, op, sides):
        if axis in varying(plane):
            labels.notes.append(Note(op, plane))
        if varying(plane) != (axis,):
            plane = labels.tie(plane, [axis])
            out.append(plane if op.attrs.get("keepdim") is True else plane.squeeze(axis))
    labels.set(op.result, out)


DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(
        (
            *("amax", "amin", "linalg_vector_norm", "logsumexp", "max", "mean", "min", "norm"),
            *("prod", "std", "sum", "var"),
        ),
        OpDefinition(rule=reduction),
    ),
    **dict.fromkeys(("cosine_similarity", "pairwise_distance"), OpDefinition(rule=compared)),
}
