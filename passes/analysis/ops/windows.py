"""Windows over places: pooling, interpolation, padding by reflection, unpooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.labels import Labels, numbers
from pruneopt.passes.analysis.channels.planes import varying
from pruneopt.passes.analysis.ops.count import Count, elements
from pruneopt.passes.analysis.ops.definition import OpDefinition, Rule, Trait
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise

__all__ = ["DEFINITIONS"]


def window(labels: Labels, op: Op, axes: Sequence[int]) -> None:
    """Tie what varies along the spatial axes of pooling and interpolation."""
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


def unpool(labels: Labels, op: Op) -> None:
    """Unite the channels of indices, which are places inside one channel, with those of the
    values."""
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


def window_counts(rank: int) -> Callable[[Op], list[Count]]:
    """Return how the values that the windows of a pooling over ``rank`` axes read are counted; one
    number as the kernel's size stands for all its sides."""

    def counts(op: Op) -> list[Count]:
        sides = numbers(op, "kernel_size")
        size = math.prod(sides) if len(sides) == rank else sides[0] ** rank
        return [Count(elements(op.results[0]), size)]

    return counts


def _pooled(rank: int) -> dict[str, OpDefinition]:
    pooling = OpDefinition(rule=spatial_rule(rank), window=window_counts(rank))
    names = ("avg_pool{}d", "max_pool{}d", "max_pool{}d_with_indices")
    return {name.format(rank): pooling for name in names}


def _spatial(rank: int, *names: str, traits: Iterable[Trait] = ()) -> dict[str, OpDefinition]:
    known = OpDefinition(rule=spatial_rule(rank), traits=frozenset(traits))
    return dict.fromkeys((name.format(rank) for name in names), known)


def _adaptive_means(rank: int) -> dict[str, OpDefinition]:
    names = ("adaptive_avg_pool{}d", *(("_adaptive_avg_pool{}d",) if rank > 1 else ()))
    return _spatial(rank, *names, traits=(Trait.ADAPTIVE_MEAN,))


EVERY_RANK = (
    "adaptive_max_pool{}d",
    *("upsample_nearest{}d", "_upsample_nearest_exact{}d"),
    *("reflection_pad{}d", "replication_pad{}d"),
)
DEFINITIONS: Mapping[str, OpDefinition] = {
    **{name: item for rank in (1, 2, 3) for name, item in _pooled(rank).items()},
    **{name: item for rank in (1, 2, 3) for name, item in _spatial(rank, *EVERY_RANK).items()},
    **{name: item for rank in (1, 2, 3) for name, item in _adaptive_means(rank).items()},
    **_spatial(1, "upsample_linear1d"),
    **_spatial(2, "upsample_bilinear2d", "upsample_bicubic2d"),
    **_spatial(2, "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    **_spatial(3, "upsample_trilinear3d"),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), OpDefinition(rule=unpool)),
}
