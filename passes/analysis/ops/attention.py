"""Fused attention: channels within heads that stay, or whole heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Labels
from pruneopt.passes.analysis.channels.planes import Plane, align, varying
from pruneopt.passes.analysis.ops.count import Count, elements
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.heads import Planes
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise
from pruneopt.passes.analysis.ops.products import pinned
from pruneopt.passes.analysis.ops.resize import SlicedOp

__all__ = ["DEFINITIONS"]


def attention(labels: Labels, op: Op) -> None:
    """Contract queries with keys for the scores; values keep their channels within heads that
    stay."""
    q, k, v = (labels.operand(op, index) for index in range(3))
    mask = op.value(3)
    rank = q.type.rank
    heads = range(rank - 2)
    met = {value: _over_queries(labels, op, value, q) for value in (q, k, v)}
    if labels.whole_heads and all(_varies(planes, heads) for planes in met.values()):
        whole_heads(labels, op, met, mask)
        return
    labels.freeze_value(mask, f"mask of {op}")
    scores: list[Plane] = []
    for value in (q, k):
        for plane in met[value]:
            if rank - 1 not in varying(plane):
                labels.freeze(plane, f"channels lie along the tokens or heads of {op}")
                continue
            plane = labels.tie(plane, [rank - 2])
            for own in scores:
                labels.unite(own, plane, f"{op}")
            scores.append(plane)
        if not scores and value is q:
            for plane in met[k]:
                labels.freeze(plane, f"contracted with a tensor without channels, {op}")
            break
        if value is k and not any(rank - 1 in varying(plane) for plane in met[k]):
            for plane in scores:
                labels.freeze(plane, f"contracted with a tensor without channels, {op}")
    out = []
    for plane in met[v]:
        if rank - 1 not in varying(plane) or rank - 2 in varying(plane):
            labels.freeze(plane, f"channels lie along the tokens or heads of {op}")
        else:
            out.append(plane)
    for plane in (*scores, *out):
        stay = [axis for axis in varying(plane) if axis in heads]
        if stay:
            labels.blocks.append(pinned(plane, stay, op))
    labels.set(op.result, out)


def whole_heads(
    labels: Labels, op: Op, met: Mapping[Value, Sequence[Plane]], mask: Value | None
) -> None:
    """Tie all channels of a head, and with them its part of a mask that has heads (a position
    bias)."""
    rank = op.results[0].type.rank
    sides: list[Planes] = [
        ([labels.tie(plane, (rank - 2, rank - 1)) for plane in planes], value)
        for value, planes in met.items()
    ]
    if mask is not None:
        planes = [align(plane, rank) for plane in labels.of(mask)]
        for plane in planes:
            if not _varies([plane], range(rank - 2)):
                labels.freeze(plane, f"mask of {op}")
        sides.append(([plane for plane in planes if _varies([plane], range(rank - 2))], mask))
    labels.set(op.results[0], merge_pointwise(labels, op, sides))


def _varies(planes: Sequence[Plane], axes: Sequence[int]) -> bool:
    """Return whether any of the planes varies along any of the axes."""
    return any(axis in axes for plane in planes for axis in varying(plane))


def _over_queries(labels: Labels, op: Op, value: Value, query: Value) -> list[Plane]:
    """Return planes of keys or values with as many heads as the queries (grouped-query attention
    repeats each head)."""
    axis = query.type.rank - 3
    repeat = (
        labels.shape(query)[axis] // labels.shape(value)[axis]
        if op.attrs.get("enable_gqa") is True
        else 1
    )
    return [
        plane.repeat_interleave(repeat, axis) if repeat > 1 and axis in varying(plane) else plane
        for plane in labels.of(value)
    ]


def macs(op: Op) -> list[Count]:
    """Count the scores (every query value meets every key) and their product with the values."""
    query, key = op.value(0), op.value(1)
    if query is None or key is None:
        return []
    keys = (key, key.type.rank - 2)
    return [Count((*elements(query), keys)), Count((*elements(op.results[0]), keys))]


def resize(site: SlicedOp) -> None:
    """Write out the scale of the scores, which is the original's: one over the root of the original
    head size."""
    query, old = site.op.value(0), site.old.value(0)
    if query is not None and old is not None and site.op.attrs["scale"] is None:
        width = old.type.shape()[-1]
        if query.type.shape()[-1] != width:
            site.set("scale", 1.0 / math.sqrt(width))


DEFINITIONS: Mapping[str, OpDefinition] = {
    "scaled_dot_product_attention": OpDefinition(
        rule=attention,
        macs=macs,
        resize=resize,
        traits=frozenset({Trait.CONTRACTS_OPERANDS}),
        needs=("scale",),
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_attention_math_for_mps",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        OpDefinition(macs=macs),
    ),
}
