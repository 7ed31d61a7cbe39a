"""Tensors put beside each other: concatenation, stacks, padding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Labels, number, numbers
from pruneopt.passes.analysis.channels.planes import Plane, expand, varying
from pruneopt.passes.analysis.ops.data_movement import source
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.heads import tie_inner
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise
from pruneopt.passes.analysis.ops.resize import SlicedOp

__all__ = ["DEFINITIONS"]


def cat(labels: Labels, op: Op) -> None:
    """Join planes along the joined axis; unite those along other axes."""
    values = list(op.inputs)
    rank = op.result.type.rank
    axis = number(op, "dim") % rank
    if any(value.type.rank != rank for value in values):
        labels.freeze_unknown(op, "its tensors differ in rank")
        return
    for value in values:
        labels.label_axes(value)
    along = [[plane for plane in labels.of(value) if axis in varying(plane)] for value in values]
    across: list[tuple[list[Plane], Value | None]] = [
        ([plane for plane in labels.of(value) if axis not in varying(plane)], value)
        for value in values
    ]
    out = merge_across(labels, op, across, axis)
    if any(along):
        out.append(join(labels, op, values, along, axis))
    labels.set(op.result, out)


def merge_across(
    labels: Labels, op: Op, sides: list[tuple[list[Plane], Value | None]], axis: int
) -> list[Plane]:
    """Unite planes that do not vary along the joined axis: all tensors share them."""
    merged = merge_pointwise(labels, op, [(planes, None) for planes, _ in sides])
    free: list[Plane] = []
    for plane in merged:
        axes = set(varying(plane))
        bare = [
            value
            for planes, value in sides
            if value is not None
            and not axes & {a for p in planes for a in varying(p)}
            and any(labels.shape(value)[a] > 1 for a in axes)
        ]
        if bare:
            labels.freeze(plane, f"joined to a tensor whose channels cannot be removed, {op}")
        else:
            free.append(plane)
    return free


def join(labels: Labels, op: Op, values: list[Value], along: list[list[Plane]], axis: int) -> Plane:
    """Return one plane along the joined axis; a tensor without labels there contributes channels
    that always stay."""
    pieces: list[Plane] = []
    others = {a for planes in along for plane in planes for a in varying(plane) if a != axis}
    for value, planes in zip(values, along, strict=True):
        shape = [1] * len(labels.shape(value))
        for a in (axis, *others):
            shape[a] = labels.shape(value)[a]
        if not planes:
            pieces.append(torch.zeros(shape, dtype=torch.int64))
            continue
        for extra in planes[1:]:
            labels.unite(planes[0], extra, f"{op}")
        pieces.append(expand(planes[0], tuple(shape)))
    return torch.cat(pieces, axis)


def stack(labels: Labels, op: Op) -> None:
    """Unite the labels of stacked tensors; the new axis carries none unless they differ in kind."""
    values = list(op.inputs)
    axis = number(op, "dim") % op.result.type.rank
    sides: list[tuple[list[Plane], Value | None]] = [
        (list(labels.of(value)), value) for value in values
    ]
    merged = merge_across(labels, op, sides, axis)
    labels.set(op.result, [plane.unsqueeze(axis) for plane in merged])


def pad(labels: Labels, op: Op) -> None:
    """Give padding along channels labels of its own: it may go like any other channel."""
    value = source(labels, op)
    pads = numbers(op, "pad")
    rank = value.type.rank
    by_axis = {rank - 1 - i: (pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)}
    constant = op.attrs.get("mode", "constant") == "constant"
    padded = [axis for axis, sizes in by_axis.items() if sizes != (0, 0)]
    out = []
    for plane in labels.of(value):
        plane = tie_inner(labels, plane, padded)
        inside = [axis for axis in varying(plane) if axis in padded]
        if inside and (not constant or len(inside) > 1):
            labels.freeze(plane, f"padded along channels by {op}")
            continue
        for axis in inside:
            before, after = by_axis[axis]
            plane = labels.tie(
                plane, [a for a in varying(plane) if a != axis]
            )  # one pad serves every row
            left = plane.reshape(-1)[max(-before, 0) : plane.numel() - max(-after, 0)]
            vector = torch.cat([labels.fresh(max(before, 0)), left, labels.fresh(max(after, 0))])
            plane = vector.reshape([vector.numel() if a == axis else 1 for a in range(rank)])
        out.append(plane)
    labels.set(op.result, out)


def resize_pad(site: SlicedOp) -> None:
    """Pad by as many channels as are kept; where a pad is negative, cut off as many as are kept of
    those."""
    pads = numbers(site.op, "pad")
    rank = site.op.results[0].type.rank
    new = []
    for place, count in enumerate(pads):
        share = site.share(
            site.old.result if count > 0 else site.old.value(0), rank - 1 - place // 2
        )
        flags = np.ones(abs(count), dtype=bool) if share is None or not count else site.flags(share)
        edge = flags[: abs(count)] if place % 2 == 0 else flags[len(flags) - abs(count) :]
        new.append(int(np.sign(count)) * int(edge.sum()))
    site.set("pad", tuple(new))


DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(
        ("cat", "concat", "concatenate"),
        OpDefinition(rule=cat, traits=frozenset({Trait.CONCATENATION})),
    ),
    "stack": OpDefinition(rule=stack),
    **dict.fromkeys(("pad", "constant_pad_nd"), OpDefinition(rule=pad, resize=resize_pad)),
}
