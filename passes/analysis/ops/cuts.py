"""Cuts along an axis: slices, single places, splits, and writing a slice back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pruneopt.ir.graph import Op, Value
from pruneopt.ir.types import TensorType
from pruneopt.passes.analysis.channels.labels import Blocks, Labels, number
from pruneopt.passes.analysis.channels.planes import Plane, varying
from pruneopt.passes.analysis.ops.data_movement import moved, source
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise
from pruneopt.passes.analysis.ops.resize import SlicedOp

__all__ = ["DEFINITIONS"]


def split(labels: Labels, op: Op) -> None:
    """Split the labels by the op itself."""
    value = source(labels, op)
    if len(list(op.inputs)) > 1:
        labels.freeze_unknown(op, "it counts by a tensor")
        return
    shape = labels.shape(value)
    planes = cut_at(labels, op, value)
    for index, result in enumerate(op.results):
        labels.set(result, moved(labels, op, planes, shape, index))


def cut_at(labels: Labels, op: Op, value: Value) -> list[Plane]:
    """Return the planes of a value that is cut along an axis; along the batch the places of
    channels are not known."""
    axis = number(op, "dim") % value.type.rank
    planes = []
    for plane in labels.of(value):
        if axis in varying(plane) and not isinstance(value.type.dims[axis], int):
            labels.freeze(plane, f"channels are mixed with the batch by {op}")
        else:
            planes.append(plane)
    return planes


def cut(labels: Labels, op: Op) -> None:
    """Take the same places of every row of channels that are spread over several axes."""
    value = source(labels, op)
    if len(list(op.inputs)) > 1:
        labels.freeze_unknown(op, "its place is computed")
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


def overwrite(labels: Labels, op: Op) -> None:
    """Give what is written into a slice of a tensor the labels of what it replaces."""
    value, written = source(labels, op), labels.operand(op, 1)
    if op.attrs["step"] != 1:
        labels.freeze_unknown(op, "it does not write a plain slice")
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


# Sizes


def resize_split(site: SlicedOp) -> None:
    """Split into written-out sizes once the pieces are unequal or fewer, however it was split."""
    dim = number(site.op, "dim")
    sizes = tuple(value.type.shape()[dim] for value in site.op.results)
    old = tuple(value.type.shape()[dim] for value in site.old.results)
    if sizes != old:
        site.retarget("aten.split_with_sizes.default", {"split_sizes": sizes, "dim": dim})


def resize_select(site: SlicedOp) -> None:
    """Count the place that is selected among those that are kept."""
    x = site.old.value(0)
    if x is None:
        return
    dim = number(site.op, "dim") % x.type.rank
    share = site.share(x, dim)
    if share is not None:
        flags = site.flags(share)
        index = number(site.op, "index") % len(flags)
        site.set("index", int(flags[:index].sum()))


def resize_slice(site: SlicedOp) -> None:
    """Take the kept channels of a slice: by a slice where their places form one, else by an
    index."""
    x = site.old.value(0)
    if x is None:
        return
    dim = number(site.op, "dim") % x.type.rank
    share = site.share(x, dim)
    if share is None:
        return
    flags = site.flags(share)
    start, end, step = _range_of(site.op, len(flags))
    taken = np.zeros(len(flags), dtype=bool)
    taken[start:end:step] = True
    if not taken.any():
        return  # an empty slice remains one
    positions = (np.cumsum(flags) - 1)[taken & flags]
    steps = np.unique(np.diff(positions))
    if len(steps) <= 1:
        first, last = int(positions[0]), int(positions[-1])
        if site.op.role == "narrow":
            site.set("start", first)
            site.set("length", last + 1 - first)
        elif (first, last + 1, len(flags)) != (start, end, int(flags.sum())):
            site.set("start", first)
            site.set("end", last + 1)
            site.set("step", int(steps[0]) if len(steps) else 1)
        return
    name = site.graph.fresh_name(f"{site.op.result.name}_kept_index")
    constant = site.graph.add_param(name, TensorType("i64", (len(positions),)), "constant")
    site.graph.weights[name] = torch.from_numpy(positions)
    site.retarget("aten.index_select.default", {"dim": dim})
    site.op.operands = (site.op.operands[0], None)
    site.graph.set_operand(site.op, 1, constant)


def _range_of(op: Op, size: int) -> tuple[int, int, int]:
    """Return first, past last and step of a slice of an axis of ``size`` positions."""
    if op.role == "narrow":
        first = number(op, "start") % size
        return first, first + number(op, "length"), 1
    return slice(*(op.attrs[name] for name in ("start", "end", "step"))).indices(size)


DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(
        (
            "chunk",
            "split",
            "split_with_sizes",
            "tensor_split",
            "unsafe_chunk",
            "unsafe_split",
            "unsafe_split_with_sizes",
        ),
        OpDefinition(rule=split, resize=resize_split, traits=frozenset({Trait.SPLIT})),
    ),
    "unbind": OpDefinition(rule=split, traits=frozenset({Trait.SPLIT})),
    **dict.fromkeys(("slice", "slice_copy", "narrow"), OpDefinition(rule=cut, resize=resize_slice)),
    **dict.fromkeys(("select", "select_copy"), OpDefinition(rule=cut, resize=resize_select)),
    "slice_scatter": OpDefinition(rule=overwrite, resize=resize_slice),
}
