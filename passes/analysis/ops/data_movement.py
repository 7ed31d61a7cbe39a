"""Labels through ops that only move data: each plane is moved by the op itself.

A plane is small (size 1 wherever labels do not vary); only reshape and the ops without a shortcut
spread it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruneopt.ir.graph import Op, Value
from pruneopt.ir.schema import call, torch_value
from pruneopt.passes.analysis.channels.labels import BATCH, Blocks, Labels, number, numbers
from pruneopt.passes.analysis.channels.planes import (
    Plane,
    align,
    compress,
    expand,
    reshape,
    varying,
)
from pruneopt.passes.analysis.ops.rules import copies, merge_pointwise, rule

__all__ = ["SPLITS", "source", "view_blocks"]

RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_copy", "view_copy")
SPLITS = (
    *("chunk", "split", "split_with_sizes", "unbind", "tensor_split"),
    *("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"),
)
COMPACT = (
    "permute",
    "transpose",
    "t",
    "unsqueeze",
    "movedim",
    "swapaxes",
    "swapdims",
    "numpy_T",
    "mT",
    "permute_copy",
)


def source(labels: Labels, op: Op) -> Value:
    """The moved value; a parameter moved before it is used gets labels along each of its axes."""
    value = labels.operand(op, 0)
    labels.label_axes(value)
    return value


def moved(
    labels: Labels, op: Op, planes: Sequence[Plane], shape: tuple[int, ...], index: int = 0
) -> list[Plane]:
    """Planes of operand 0 through a movement op; ``index`` picks one of several results."""
    after = labels.shape(op.results[index])
    if 0 not in after:
        return [_move_plane(op, plane, shape, index) for plane in planes]
    out = []
    for plane in planes:  # what holds no element is as wide as what it was cut from
        plane = align(plane, len(after)) if op.role in ("repeat", "tile") else plane
        changed = {
            a for a in varying(plane) if plane.dim() != len(after) or plane.shape[a] != after[a]
        }
        if not changed:
            out.append(plane)
        elif plane.dim() != len(after) or len(varying(plane)) > 1 or after[changed.pop()] > 0:
            labels.freeze(plane, f"{op} leaves no element of them")
    return out


def _move_plane(op: Op, plane: Plane, shape: tuple[int, ...], index: int) -> Plane:
    after = op.results[index].type.shape(BATCH)
    if op.role in RESHAPES:
        return reshape(plane, shape, after)
    spread = plane if op.role in COMPACT else expand(plane, shape)
    attrs = {
        name: torch_value(attr, BATCH, False, torch.device("cpu"))
        for name, attr in op.attrs.items()
    }
    moved = call(op.target, [spread, *op.operands[1:]], attrs)
    result: Tensor = moved[index] if isinstance(moved, tuple | list) else moved
    return compress(result)


@rule(
    *RESHAPES,
    *COMPACT,
    "squeeze",
    "squeeze_copy",
    "unsqueeze_copy",
    "flip",
    "diagonal",
    "pixel_unshuffle",
)
@rule(*SPLITS, "repeat_interleave")
def move(labels: Labels, op: Op) -> None:
    """The op itself, run on the labels."""
    value = source(labels, op)
    if len(list(op.inputs)) > 1:
        labels.give_up(op, "it counts by a tensor")
        return
    shape = labels.shape(value)
    planes = cut_at(labels, op, value) if op.role in SPLITS else labels.of(value)
    for index, result in enumerate(op.results):
        labels.set(result, moved(labels, op, planes, shape, index))


def cut_at(labels: Labels, op: Op, value: Value) -> list[Plane]:
    """The planes of a value that is cut along an axis; along the batch the places of channels are
    not known."""
    axis = number(op, "dim") % value.type.rank
    planes = []
    for plane in labels.of(value):
        if axis in varying(plane) and not isinstance(value.type.dims[axis], int):
            labels.freeze(plane, f"channels are mixed with the batch by {op}")
        else:
            planes.append(plane)
    return planes


@rule("slice", "slice_copy", "narrow", "select", "select_copy")
def cut(labels: Labels, op: Op) -> None:
    """A slice takes the same places of every row of channels that are spread over several axes."""
    value = source(labels, op)
    if len(list(op.inputs)) > 1:
        labels.give_up(op, "its place is computed")
        return
    axis = number(op, "dim") % value.type.rank
    shape = labels.shape(value)
    planes = [same_places(labels, op, plane, axis) for plane in cut_at(labels, op, value)]
    labels.set(op.result, moved(labels, op, planes, shape))


def same_places(labels: Labels, op: Op, plane: Plane, axis: int) -> Plane:
    """See to it that the channels a slice takes stand at the same places of every row."""
    axes = varying(plane)
    if axis not in axes[1:]:
        return plane
    sizes = [plane.shape[a] for a in axes]
    if axis != axes[-1]:
        labels.blocks.append(Blocks(plane.reshape(sizes), op, pinned=axes.index(axis) + 1))
        return plane
    if op.role.startswith("select") or op.attrs.get("step", 1) != 1:
        shape = plane.shape
        return labels.tie(plane, axes[:-1]).expand(shape)
    before = (number(op, "start") if op.attrs["start"] is not None else 0) % sizes[-1]
    if before:  # as many channels of every row stay before the slice
        labels.blocks.append(Blocks(plane.reshape(sizes)[..., :before], op))
    return plane


@rule("slice_scatter")
def overwrite(labels: Labels, op: Op) -> None:
    """A slice of a tensor is replaced: what is written has the labels of what it replaces."""
    value, written = source(labels, op), labels.operand(op, 1)
    if op.attrs["step"] != 1:
        labels.give_up(op, "it does not write a plain slice")
        return
    axis = number(op, "dim") % value.type.rank
    planes = cut_at(labels, op, value)
    begin, end, _ = slice(op.attrs["start"], op.attrs["end"]).indices(labels.shape(value)[axis])
    out: list[Plane] = []
    inside: list[Plane] = []
    for plane in planes:
        if axis in varying(plane) and len(varying(plane)) > 1:
            labels.freeze(plane, f"written into along channels by {op}")
            continue
        out.append(plane)
        inside.append(plane.narrow(axis, begin, end - begin) if axis in varying(plane) else plane)
    labels.label_axes(written)
    # What is written may not bring channels that the tensor lacks: the result has the tensor's
    # size.
    merge_pointwise(labels, op, [(inside, value), (list(labels.of(written)), written)])
    stuck = {a for plane in labels.of(written) for a in varying(plane)} - {
        a for plane in out for a in varying(plane)
    }
    if stuck:
        labels.freeze_value(
            written, f"written into a tensor whose channels cannot be removed, {op}"
        )
    labels.set(op.result, out)


@rule("expand", "expand_copy", "expand_as", "view_as", "reshape_as")
def resize(labels: Labels, op: Op) -> None:
    """A size that is written out, or another tensor's. Along an axis of copies any number will
    do."""
    value = source(labels, op)
    shape, after = labels.shape(value), labels.shape(op.result)
    if op.role in ("view_as", "reshape_as"):
        planes = [reshape(plane, shape, after) for plane in labels.of(value)]
    else:
        planes = [align(plane, len(after)) for plane in labels.of(value)]
        lead = len(after) - len(shape)
        planes += copies(
            labels, op, [a for a in range(len(after)) if a < lead or shape[a - lead] == 1]
        )
    other = op.value(1)
    if other is not None:
        # Labels that the other tensor lacks cannot shrink: the result has its size.
        planes = merge_pointwise(labels, op, [(planes, op.result), (list(labels.of(other)), other)])
    labels.set(op.result, planes)


@rule("repeat", "tile")
def repeat(labels: Labels, op: Op) -> None:
    """Channels are written several times; along an axis of one place any number of copies will
    do."""
    value = source(labels, op)
    shape, after = labels.shape(value), labels.shape(op.result)
    lead = len(after) - len(shape)
    made = copies(labels, op, [a for a in range(len(after)) if a < lead or shape[a - lead] == 1])
    labels.set(op.result, [*moved(labels, op, labels.of(value), shape), *made])


@rule("unfold")
def windows(labels: Labels, op: Op) -> None:
    """Sliding windows over an axis without channels."""
    value = source(labels, op)
    axis = number(op, "dimension") % value.type.rank
    out = []
    for plane in labels.of(value):
        if axis in varying(plane):
            labels.freeze(plane, f"windows run over channels, {op}")
        else:
            out.append(plane.unsqueeze(-1))
    labels.set(op.result, out)


@rule("roll")
def roll(labels: Labels, op: Op) -> None:
    """Rolling along channels would need new shifts for each plan: frozen. Along other axes labels
    do not move."""
    value = source(labels, op)
    axes = {dim % op.result.type.rank for dim in numbers(op, "dims")}
    out = []
    for plane in labels.of(value):
        if not axes or axes & set(varying(plane)):
            labels.freeze(plane, f"rolled along channels by {op}")
        else:
            out.append(plane)
    labels.set(op.result, out)


@rule("im2col")
def im2col(labels: Labels, op: Op) -> None:
    """Every channel becomes a run of as many channels as a patch has places."""
    value = source(labels, op)
    axis = value.type.rank - 3
    out = []
    for plane in labels.of(value):
        if any(a > axis for a in varying(plane)):
            labels.freeze(plane, f"channels lie along a spatial axis of {op}")
            continue
        plane = plane.squeeze(-1)
        repeat = labels.shape(op.result)[axis] // labels.shape(value)[axis]
        out.append(plane.repeat_interleave(repeat, axis) if axis in varying(plane) else plane)
    labels.set(op.result, out)


@rule("pixel_shuffle", "col2im")
def pixel_shuffle(labels: Labels, op: Op) -> None:
    """Each output channel is made from a block of input channels, which live and die together."""
    value = source(labels, op)
    axis = value.type.rank - (3 if op.role == "pixel_shuffle" else 2)
    ratio = labels.shape(value)[axis] // op.result.type.shape(BATCH)[op.result.type.rank - 3]
    out = []
    for plane in labels.of(value):
        if varying(plane) != (axis,):
            labels.freeze(plane, f"channels lie along a spatial axis of {op}")
            continue
        rows = labels.tie(plane.reshape(-1, ratio), [1])
        shape = [1] * op.result.type.rank
        shape[-3] = rows.numel()
        out.append(rows.reshape(shape))
    labels.set(op.result, out)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(labels: Labels, op: Op) -> None:
    """The same channels of every block must stay for a shuffle to remain a shuffle."""
    value = source(labels, op)
    groups = number(op, "groups")
    out = []
    for plane in labels.of(value):
        if varying(plane) == (1,):
            labels.tie(plane.reshape(groups, -1), [0])
            out.append(plane.reshape(groups, -1).t().reshape(plane.shape))
        else:
            labels.freeze(plane, f"channels lie along a spatial axis of {op}")
    labels.set(op.result, out)


@rule("glu")
def glu(labels: Labels, op: Op) -> None:
    """The two halves are multiplied element by element."""
    value = source(labels, op)
    axis = number(op, "dim") % value.type.rank
    out = []
    for plane in labels.of(value):
        if axis in varying(plane):
            first, second = plane.chunk(2, axis)
            labels.unite(first, second, f"{op}")
            plane = first
        out.append(plane)
    labels.set(op.result, out)


def view_blocks(labels: Labels) -> list[Blocks]:
    """Blocks implied by values whose channels are spread over several axes."""
    found: list[Blocks] = []
    for op in labels.graph.ops:
        for value in op.results:
            for plane in labels.of(value):
                axes = varying(plane)
                if len(axes) > 1:
                    found.append(Blocks(plane.reshape([plane.shape[axis] for axis in axes]), op))
    return found
