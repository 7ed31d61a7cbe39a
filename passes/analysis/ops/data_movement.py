"""Ops that only move data: each plane of labels is moved by the op itself.

A plane is small (size 1 wherever labels do not vary); only reshape and the ops without a shortcut
spread it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneopt.ir.graph import Op, Value
from pruneopt.ir.schema import call, torch_value
from pruneopt.ir.types import BatchSize
from pruneopt.passes.analysis.channels.labels import BATCH, Labels, number, numbers
from pruneopt.passes.analysis.channels.planes import (
    Plane,
    align,
    compress,
    expand,
    reshape,
    varying,
)
from pruneopt.passes.analysis.ops.creation import copies
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise
from pruneopt.passes.analysis.ops.resize import SlicedOp, as_attr, resize_result

__all__ = ["DEFINITIONS", "moved", "source"]

RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_copy", "view_copy")
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
    """Return the moved value; a parameter moved before it is used gets labels along each of its
    axes."""
    value = labels.operand(op, 0)
    labels.label_axes(value)
    return value


def moved(
    labels: Labels, op: Op, planes: Sequence[Plane], shape: tuple[int, ...], index: int = 0
) -> list[Plane]:
    """Pass planes of operand 0 through a movement op; ``index`` picks one of several results."""
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


def move(labels: Labels, op: Op) -> None:
    """Run the op itself on the labels."""
    value = source(labels, op)
    if len(list(op.inputs)) > 1:
        labels.freeze_unknown(op, "it counts by a tensor")
        return
    shape = labels.shape(value)
    labels.set(op.result, moved(labels, op, labels.of(value), shape))


def resize(labels: Labels, op: Op) -> None:
    """Pass labels to a size that is written out, or another tensor's; along an axis of copies any
    number will do."""
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


def repeat(labels: Labels, op: Op) -> None:
    """Write channels several times; along an axis of one place any number of copies will do."""
    value = source(labels, op)
    shape, after = labels.shape(value), labels.shape(op.result)
    lead = len(after) - len(shape)
    made = copies(labels, op, [a for a in range(len(after)) if a < lead or shape[a - lead] == 1])
    labels.set(op.result, [*moved(labels, op, labels.of(value), shape), *made])


def windows(labels: Labels, op: Op) -> None:
    """Pass labels through sliding windows over an axis without channels."""
    value = source(labels, op)
    axis = number(op, "dimension") % value.type.rank
    out = []
    for plane in labels.of(value):
        if axis in varying(plane):
            labels.freeze(plane, f"windows run over channels, {op}")
        else:
            out.append(plane.unsqueeze(-1))
    labels.set(op.result, out)


def roll(labels: Labels, op: Op) -> None:
    """Freeze what is rolled along channels, which would need new shifts for each plan; along other
    axes labels do not move."""
    value = source(labels, op)
    axes = {dim % op.result.type.rank for dim in numbers(op, "dims")}
    out = []
    for plane in labels.of(value):
        if not axes or axes & set(varying(plane)):
            labels.freeze(plane, f"rolled along channels by {op}")
        else:
            out.append(plane)
    labels.set(op.result, out)


def im2col(labels: Labels, op: Op) -> None:
    """Make every channel a run of as many channels as a patch has places."""
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


def pixel_shuffle(labels: Labels, op: Op) -> None:
    """Tie each block of input channels from which an output channel is made."""
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


def channel_shuffle(labels: Labels, op: Op) -> None:
    """Keep the same channels of every block: else a shuffle would be none any more."""
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


def glu(labels: Labels, op: Op) -> None:
    """Unite the two halves, which are multiplied element by element."""
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


# Sizes


def resize_repeat(site: SlicedOp) -> None:
    """Make as many copies of a single place as are kept; repeat channels as often as before."""
    name = "repeats" if site.op.role == "repeat" else "dims"
    given, source = site.op.attrs.get(name), site.old.value(0)
    old, dims = site.old.result.type.plain().dims, site.op.result.type.dims
    if not isinstance(given, tuple) or source is None:
        return
    before = (1,) * (len(dims) - source.type.rank) + source.type.plain().dims
    first = len(dims) - len(given)
    new = list(given)
    for axis in range(first, len(dims)):
        if before[axis] == 1 and old[axis] != dims[axis]:
            new[axis - first] = as_attr(dims[axis])
    site.set(name, tuple(new))


def resize_unflatten(site: SlicedOp) -> None:
    """Write out the sizes of the axes that one is unflattened into."""
    sizes = site.op.attrs["sizes"]
    if isinstance(sizes, tuple):
        dims = site.op.result.type.dims
        first = number(site.op, "dim") % (len(dims) - len(sizes) + 1)
        site.set(
            "sizes",
            tuple(-1 if s == -1 else as_attr(dims[first + i]) for i, s in enumerate(sizes)),
        )


def resize_squeeze(site: SlicedOp) -> None:
    """Write out the squeezed axes where one channel is left: an axis that was longer than one
    stays."""
    x, old = site.op.value(0), site.old.value(0)
    if x is None or old is None:
        return
    before, after = old.type.plain().dims, x.type.plain().dims
    asked = site.op.attrs.get("dim")
    axes = range(x.type.rank) if asked is None else asked if isinstance(asked, tuple) else (asked,)
    real = [axis % x.type.rank for axis in axes if isinstance(axis, int)]
    if any(before[axis] != 1 and after[axis] == 1 for axis in real):
        gone = tuple(
            axis for axis in real if before[axis] == 1 or isinstance(before[axis], BatchSize)
        )
        site.retarget("aten.squeeze.dims", {"dim": gone})


VIEW = frozenset({Trait.VIEW})
_MOVE = OpDefinition(rule=move)
DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(COMPACT, _MOVE),
    **dict.fromkeys(("flatten", "_reshape_copy"), OpDefinition(rule=move, traits=VIEW)),
    **dict.fromkeys(
        ("view", "_unsafe_view", "view_copy"),
        OpDefinition(rule=move, resize=resize_result("size"), traits=VIEW),
    ),
    "reshape": OpDefinition(rule=move, resize=resize_result("shape"), traits=VIEW),
    "unflatten": OpDefinition(rule=move, resize=resize_unflatten, traits=VIEW),
    "squeeze": OpDefinition(rule=move, resize=resize_squeeze),
    **dict.fromkeys(
        (
            *("diagonal", "flip", "pixel_unshuffle", "repeat_interleave"),
            *("squeeze_copy", "unsqueeze_copy"),
        ),
        _MOVE,
    ),
    **dict.fromkeys(
        ("expand", "expand_copy"), OpDefinition(rule=resize, resize=resize_result("size"))
    ),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as"), OpDefinition(rule=resize)),
    **dict.fromkeys(("repeat", "tile"), OpDefinition(rule=repeat, resize=resize_repeat)),
    "unfold": OpDefinition(rule=windows),
    "roll": OpDefinition(rule=roll),
    "im2col": OpDefinition(rule=im2col),
    **dict.fromkeys(("pixel_shuffle", "col2im"), OpDefinition(rule=pixel_shuffle)),
    **dict.fromkeys(
        ("channel_shuffle", "native_channel_shuffle"), OpDefinition(rule=channel_shuffle)
    ),
    "glu": OpDefinition(rule=glu),
}
