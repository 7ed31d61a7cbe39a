"""Convolutions in one to three dimensions, grouped or not, and their transposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pruneopt.ir.graph import Op, Value
from pruneopt.ir.types import BatchSize
from pruneopt.passes.analysis.channels.labels import Blocks, Labels, number
from pruneopt.passes.analysis.channels.layer_weight import Contraction, LayerWeight
from pruneopt.passes.analysis.channels.planes import Plane, varying
from pruneopt.passes.analysis.ops.count import Count, elements
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.resize import SlicedOp

__all__ = ["DEFINITIONS", "channel_labels", "meet_weight"]


def conv(labels: Labels, op: Op) -> None:
    """Let input channels meet axis 1 of the weight; output channels are its axis 0, and groups make
    blocks of both."""
    x, weight, groups = labels.operand(op, 0), labels.operand(op, 1), _groups(op)
    if groups is None:
        labels.freeze_unknown(op, "`groups` depends on the batch size")
        return
    axis = _channel_axis(x, weight)
    channels, rest = channel_labels(labels, op, x, axis)
    outs, ins = labels.shape(weight)[:2]
    out = labels.axis_labels(weight, 0)
    if groups == 1:
        meet_weight(labels, op, weight, 1, channels)
    elif channels is not None and (ins == 1 or labels.whole_groups):
        out = depthwise(labels, op, out, channels, groups, outs)
        for plane in labels.of(weight) if ins > 1 else ():
            if 1 in varying(plane):
                labels.freeze(plane, f"read by whole groups of {op}")
    else:
        grouped(labels, op, weight, channels, groups, (outs, ins))
        if out is not None:
            labels.blocks.append(Blocks(out.reshape(groups, -1), op, pinned=1))
    produce(labels, op, out if outs > 1 else None, axis, rest)


def conv_either_way(labels: Labels, op: Op) -> None:
    """Pass labels through ``aten.convolution``, whose attribute says whether it is transposed."""
    (conv_transpose if _is_transposed(op) else conv)(labels, op)


def conv_transpose(labels: Labels, op: Op) -> None:
    """Pass labels as a convolution does, with the weight's first two axes exchanged: (inputs,
    outputs of one group)."""
    x, weight, groups = labels.operand(op, 0), labels.operand(op, 1), _groups(op)
    if groups is None:
        labels.freeze_unknown(op, "`groups` depends on the batch size")
        return
    axis = _channel_axis(x, weight)
    channels, rest = channel_labels(labels, op, x, axis)
    ins, each = labels.shape(weight)[:2]
    out: Tensor | None = None
    if groups == 1:
        out = labels.axis_labels(weight, 1)
        meet_weight(labels, op, weight, 0, channels)
    else:
        meet_weight(labels, op, weight, 0, channels)
        if channels is not None and (groups == ins or labels.whole_groups):
            out = labels.tie(channels.reshape(groups, -1), [1]).reshape(-1).repeat_interleave(each)
        else:
            out = grouped_outputs(labels, op, weight, groups)
            if channels is not None:
                labels.blocks.append(Blocks(channels.reshape(groups, -1), op, pinned=1))
    produce(labels, op, out if each * groups > 1 else None, axis, rest)


def _groups(op: Op) -> int | None:
    """Return the groups; None for weights made from the input, one for each row: then there are as
    many as rows."""
    return None if isinstance(op.attrs["groups"], BatchSize) else number(op, "groups")


def channel_labels(
    labels: Labels, op: Op, x: Value, axis: int
) -> tuple[Tensor | None, list[Plane]]:
    """Return the labels along the channel axis of an activation, and the planes along the batch,
    which pass."""
    found: Tensor | None = None
    rest: list[Plane] = []
    for plane in labels.of(x):
        axes = varying(plane)
        if all(a < axis for a in axes):
            rest.append(plane)
        elif axis not in axes:
            labels.freeze(plane, f"channels lie along a spatial axis of {op}")
        else:
            vector = labels.tie(plane, [a for a in axes if a != axis]).reshape(-1)
            if found is None:
                found = vector
            else:
                labels.unite(found, vector, "")
    return found, rest


def depthwise(
    labels: Labels, op: Op, out: Tensor | None, channels: Tensor, groups: int, outs: int
) -> Tensor:
    """Unite each input channel, or the channels of each group, with the outputs made from them
    alone."""
    rows = labels.tie(channels.reshape(groups, -1), [1])
    if out is None:
        labels.freeze(channels, f"depthwise weight with fixed channels, {op}")
        return rows.reshape(-1).repeat_interleave(outs // groups)
    labels.unite(rows, out.reshape(groups, -1), f"depthwise {op}")
    return out


def grouped(
    labels: Labels,
    op: Op,
    weight: Value,
    channels: Tensor | None,
    groups: int,
    shape: tuple[int, int],
) -> None:
    """Make one block per group of the input channels of a grouped convolution: every block keeps as
    many."""
    own = [plane for plane in labels.of(weight) if 1 in varying(plane)]
    if channels is None:
        for other in own:
            labels.freeze(other, f"contracted with channels that cannot be removed, {op}")
        return
    outs, ins = shape
    rows = channels.reshape(groups, ins)
    labels.blocks.append(Blocks(rows, op, pinned=1))
    plane = rows.repeat_interleave(outs // groups, 0).reshape(
        outs, ins, *[1] * (weight.type.rank - 2)
    )
    for other in own:
        labels.unite(other, plane, f"weight shared with {op}")
    if not own and weight.is_weight:
        labels.planes[weight] = (*labels.of(weight), plane)
    elif not own:
        labels.freeze(channels, f"grouped convolution with a computed weight, {op}")


def grouped_outputs(labels: Labels, op: Op, weight: Value, groups: int) -> Tensor | None:
    """Return the output channels of a grouped transposed convolution, (group, output): its weight
    holds them for every input."""
    ins, each = labels.shape(weight)[:2]
    own = [plane for plane in labels.of(weight) if 1 in varying(plane)]
    if own or not weight.is_weight or each == 1:
        for plane in own:
            if varying(plane) == (0, 1):
                rows = plane.reshape(groups, ins // groups, each)
                labels.tie(rows, [1], f"weight shared with {op}")
                labels.blocks.append(Blocks(rows[:, 0], op, pinned=1))
                return rows[:, 0].reshape(-1)
            labels.freeze(plane, f"weight shared with grouped {op}")
        return None
    rows = labels.fresh(groups * each, produced=True).reshape(groups, each)
    plane = rows.repeat_interleave(ins // groups, 0).reshape(
        ins, each, *[1] * (weight.type.rank - 2)
    )
    labels.planes[weight] = (*labels.of(weight), plane)
    labels.blocks.append(Blocks(rows, op, pinned=1))
    return rows.reshape(-1)


def meet_weight(labels: Labels, op: Op, weight: Value, axis: int, channels: Tensor | None) -> None:
    """Unite the contracted axis of a weight with the channels of the activation."""
    own = [plane for plane in labels.of(weight) if axis in varying(plane)]
    if channels is None:
        for plane in own:
            labels.freeze(plane, f"contracted with channels that cannot be removed, {op}")
        return
    shape = [1] * weight.type.rank
    shape[axis] = channels.numel()
    for plane in own:
        labels.unite(
            labels.tie(plane, [a for a in varying(plane) if a != axis]),
            channels.reshape(shape),
            f"{op}",
        )
    if not own and weight.is_weight:
        labels.add_axis(weight, axis, channels)
    elif not own:
        labels.freeze(channels, f"contracted with a computed weight, {op}")


def produce(labels: Labels, op: Op, out: Tensor | None, axis: int, rest: Sequence[Plane]) -> None:
    """Give the result its output labels along ``axis`` and let the bias share them."""
    planes = list(rest)
    if out is not None:
        shape = [1] * op.result.type.rank
        shape[axis] = out.numel()
        planes.append(out.reshape(shape))
    labels.set(op.result, planes)
    bias = op.value(2)
    if bias is None:
        return
    if out is None:
        labels.freeze_value(bias, f"bias of {op}, whose channels cannot be removed")
    else:
        labels.adopt(bias, out, f"bias of {op}")


# The weight, the cost, the groups that are left


def _is_transposed(op: Op) -> bool:
    return op.attrs.get("transposed") is True


def weight_of(op: Op, out_axis: int = 0) -> tuple[LayerWeight, ...]:
    """Return the weight ``[outputs, inputs of a group, *kernel]``; transposed, its first two axes
    are exchanged and ``out_axis`` is 1."""
    x, weight = op.value(0), op.value(1)
    if weight is None:
        return ()
    bias = 2 if len(op.operands) > 2 else None
    met = None if x is None else _channel_axis(x, weight)
    contraction = None if met is None else Contraction(0, met, met, bias)
    return (LayerWeight(weight, out_axis, 1 - out_axis, contraction),)


def _channel_axis(x: Value, weight: Value) -> int:
    """Return the axis of an activation that holds channels: 1, or 0 where there is no batch."""
    return x.type.rank - weight.type.rank + 1


def transposed_weight_of(op: Op) -> tuple[LayerWeight, ...]:
    """Return the weight ``[inputs, outputs of a group, *kernel]``."""
    return weight_of(op, 1)


def weight_either_way(op: Op) -> tuple[LayerWeight, ...]:
    """Return the weight of ``aten.convolution``."""
    return weight_of(op, int(_is_transposed(op)))


def macs(op: Op) -> list[Count]:
    """Count, for every output value, its group's input channels and the kernel."""
    weight = op.value(1)
    return [] if weight is None else [Count(elements(op.results[0]) + elements(weight, 1))]


def transposed_macs(op: Op) -> list[Count]:
    """Count, for every input value, its group's output channels and the kernel."""
    x, weight = op.value(0), op.value(1)
    return [] if x is None or weight is None else [Count(elements(x) + elements(weight, 1))]


def macs_either_way(op: Op) -> list[Count]:
    """Count ``aten.convolution``."""
    return (transposed_macs if _is_transposed(op) else macs)(op)


def resize(site: SlicedOp) -> None:
    """Set the groups that are left: as many as the weight's inputs go into those of the op."""
    x = site.op.value(0)
    if x is not None:
        _resize_groups(site, x, x)


def resize_transposed(site: SlicedOp) -> None:
    """Set the groups that are left, by the outputs: the weight holds those of one group."""
    x = site.op.value(0)
    if x is not None:
        _resize_groups(site, x, site.op.results[0])


def resize_either_way(site: SlicedOp) -> None:
    """Set the groups of ``aten.convolution``."""
    (resize_transposed if _is_transposed(site.op) else resize)(site)


def _resize_groups(site: SlicedOp, x: Value, grouped: Value) -> None:
    """Divide the channels of a value among groups of as many as the weight's axis 1 has."""
    weight = site.op.value(1)
    if weight is None or isinstance(site.op.attrs["groups"], BatchSize):  # a group for each row
        return
    channels = grouped.type.shape()[_channel_axis(x, weight)]
    site.set("groups", channels // weight.type.shape()[1])


LAYER = frozenset({Trait.CONVOLUTION, Trait.COUNTED_AS_LAYER})
COUNTED = frozenset({Trait.COUNTED_AS_LAYER})
DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d"),
        OpDefinition(
            rule=conv, layers=weight_of, macs=macs, resize=resize, traits=LAYER, needs=("groups",)
        ),
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        OpDefinition(
            rule=conv_transpose,
            layers=transposed_weight_of,
            macs=transposed_macs,
            resize=resize_transposed,
            traits=LAYER,
            needs=("groups",),
        ),
    ),
    "convolution": OpDefinition(
        rule=conv_either_way,
        layers=weight_either_way,
        macs=macs_either_way,
        resize=resize_either_way,
        traits=LAYER,
    ),
    "_convolution": OpDefinition(macs=macs_either_way, traits=COUNTED),
    "deform_conv2d": OpDefinition(macs=macs, traits=COUNTED),
}
