"""How labels pass through windows over places (pooling, interpolation) and through reductions."""

from __future__ import annotations

from collections.abc import Sequence

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.labels import Blocks, Labels, Note, number, numbers
from pruneopt.passes.analysis.channels.planes import align, varying
from pruneopt.passes.analysis.ops.rules import RULES, Rule, merge_pointwise, pointwise, rule

__all__: list[str] = []


def window(labels: Labels, op: Op, axes: Sequence[int]) -> None:
    """Pooling and interpolation over spatial axes: what varies there is tied."""
    x = labels.operand(op, 0)
    out = []
    for plane in labels.of(x):
        inside = [axis for axis in varying(plane) if axis in axes]
        if inside and len(inside) == len(varying(plane)):
            labels.freeze(plane, f"channels lie along a spatial axis of {op}")
            continue
        out.append(labels.tie(plane, inside))
    for value in op.results:
        labels.set(value, out)


def spatial_rule(rank: int) -> Rule:
    def apply(labels: Labels, op: Op) -> None:
        x = op.value(0)
        window(labels, op, range(x.type.rank - rank, x.type.rank) if x is not None else ())

    return apply


for _rank in (1, 2, 3):
    for _name in (
        "avg_pool",
        "max_pool",
        "adaptive_avg_pool",
        "adaptive_max_pool",
        "_adaptive_avg_pool",
        "lp_pool",
    ):
        RULES[f"{_name}{_rank}d"] = spatial_rule(_rank)
    RULES[f"max_pool{_rank}d_with_indices"] = spatial_rule(_rank)
    for _kind in ("upsample_nearest", "upsample_nearest_exact", "_upsample_nearest_exact"):
        RULES[f"{_kind}{_rank}d"] = spatial_rule(_rank)
for _name in (
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
):
    RULES[_name] = spatial_rule(2)
for _name in ("upsample_linear1d", "replication_pad1d", "reflection_pad1d"):
    RULES[_name] = spatial_rule(1)
for _name in ("replication_pad2d", "reflection_pad2d"):
    RULES[_name] = spatial_rule(2)
for _name in ("upsample_trilinear3d", "replication_pad3d", "reflection_pad3d"):
    RULES[_name] = spatial_rule(3)


@rule("max_unpool2d", "max_unpool3d")
def unpool(labels: Labels, op: Op) -> None:
    """Indices are places inside one channel; they have the channels of the values."""
    rank = op.result.type.rank
    planes = merge_pointwise(labels, op, [(list(labels.of(value)), value) for value in op.inputs])
    spatial = range(2, rank) if rank == len(numbers(op, "output_size")) + 2 else range(1, rank)
    for plane in planes:
        if any(axis in spatial for axis in varying(plane)):
            labels.freeze(plane, f"channels lie along a spatial axis of {op}")
    labels.set(
        op.result,
        [plane for plane in planes if not any(axis in spatial for axis in varying(plane))],
    )


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "prod",
    "max",
    "min",
)
def reduction(labels: Labels, op: Op) -> None:
    """A reduction: labels over which it runs vanish (noted); planes that vary elsewhere too are
    tied over them.

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


@rule("cosine_similarity", "pairwise_distance")
def compared(labels: Labels, op: Op) -> None:
    """Vectors of two tensors, compared along one axis (the last one for distances): a statistic
    over it."""
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
