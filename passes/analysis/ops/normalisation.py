"""Norms, softmax, and running sums along an axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Blocks, Labels, Note, number
from pruneopt.passes.analysis.channels.planes import Plane, varying
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.heads import tie_inner
from pruneopt.passes.analysis.ops.resize import SlicedOp

__all__ = ["DEFINITIONS", "freeze_weights"]


def batch_norm(labels: Labels, op: Op) -> None:
    x = labels.operand(op, 0)
    labels.set(op.results[0], per_channel(labels, op, x, range(1, 5)))


def per_channel(labels: Labels, op: Op, x: Value, weights: Iterable[int]) -> list[Plane]:
    """Share planes along axis 1 with the weights; statistics run over the others (noted)."""
    out = []
    for plane in labels.of(x):
        if 1 in varying(plane):
            plane = labels.tie(plane, [axis for axis in varying(plane) if axis != 1])
            for index in weights:
                labels.adopt(op.value(index), plane.reshape(-1), f"{op}")
        elif any(axis > 1 for axis in varying(plane)):
            labels.notes.append(Note(op, plane))
        out.append(plane)
    if not any(1 in varying(plane) for plane in out):
        freeze_weights(labels, op)
    return out


def freeze_weights(labels: Labels, op: Op) -> None:
    """Freeze the weights of a norm over channels that cannot go."""
    for value in op.inputs:
        if value.is_weight:
            labels.freeze_value(value, f"shared with {op}, whose channels cannot be removed")


def layer_norm(labels: Labels, op: Op) -> None:
    x = labels.operand(op, 0)
    normalized = op.attrs["normalized_shape"]
    count = len(normalized) if isinstance(normalized, tuple) else 1
    first = x.type.rank - count
    planes = [tie_inner(labels, plane, range(first, x.type.rank)) for plane in labels.of(x)]
    for plane in planes:
        if any(axis >= first for axis in varying(plane)):
            labels.notes.append(Note(op, plane))
            if op.role.endswith("layer_norm"):
                labels.needs_two(plane, range(first, x.type.rank), labels.shape(x))
            for index in (1, 2):
                labels.adopt(op.value(index), plane, f"{op}")
    if not any(axis >= first for plane in planes for axis in varying(plane)):
        freeze_weights(labels, op)
    labels.set(op.results[0], planes)


def group_norm(labels: Labels, op: Op) -> None:
    x = labels.operand(op, 0)
    groups = number(op, "num_groups")
    out = per_channel(labels, op, x, (1, 2))
    for plane in out:
        if 1 in varying(plane) and labels.whole_groups and groups > 1:
            labels.tie(
                plane.reshape(groups, -1), [1]
            )  # statistics of whole groups: nothing to note
        elif 1 in varying(plane) and plane.numel() > groups:
            labels.notes.append(Note(op, plane))
            if all(size == 1 for size in labels.shape(x)[2:]):
                labels.pairs.append(plane.reshape(groups, -1))
            if groups > 1:
                labels.blocks.append(Blocks(plane.reshape(groups, -1), op, pinned=1))
    labels.set(op.result, out)


def weight_norm(labels: Labels, op: Op) -> None:
    """Pass labels of directions that are divided by their norm over all axes but one, times a
    magnitude for each place of that one."""
    direction, magnitude = labels.operand(op, 0), labels.operand(op, 1)
    labels.label_axes(direction)
    keep = number(op, "dim") % direction.type.rank
    for plane in labels.of(direction):
        if varying(plane) == (keep,):
            labels.adopt(magnitude, plane, f"{op}")
        else:
            labels.notes.append(Note(op, plane))
    labels.set(op.result, labels.of(direction))


def along_axis(labels: Labels, op: Op) -> None:
    """Pass labels where the shape is kept and one axis is mixed (noted)."""
    x = labels.operand(op, 0)
    dim = op.attrs.get("dim")
    axis = (dim if isinstance(dim, int) else -1) % x.type.rank
    planes = [tie_inner(labels, plane, (axis,)) for plane in labels.of(x)]
    for plane in planes:
        if axis in varying(plane):
            labels.notes.append(Note(op, plane))
            if "softmax" in op.role:
                labels.needs_two(plane, [axis], labels.shape(x))
    labels.set(op.result, planes)


# Sizes


def resize_group_norm(site: SlicedOp) -> None:
    """Keep as many groups as are kept, where each is one unit; else keep all."""
    share = site.share(site.old.value(0), 1)
    if share is not None:
        rows = share.units.reshape(number(site.old, "num_groups"), -1)
        if bool((rows == rows[:, :1]).all()):
            site.set("num_groups", int(np.append(site.kept, True)[rows[:, 0]].sum()))


def resize_layer_norm(site: SlicedOp) -> None:
    """Write out the normalised axes as long as they are now."""
    normalized = site.op.attrs["normalized_shape"]
    count = len(normalized) if isinstance(normalized, tuple) else 1
    site.set("normalized_shape", site.op.results[0].type.shape()[-count:])


NORM = frozenset({Trait.NORM})
BATCH_NORM = frozenset({Trait.NORM, Trait.BATCH_NORM})


def _layer_norm(needs: tuple[str, ...] | None = None) -> OpDefinition:
    return OpDefinition(rule=layer_norm, resize=resize_layer_norm, traits=NORM, needs=needs)


DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(
        ("batch_norm", "native_batch_norm"), OpDefinition(rule=batch_norm, traits=BATCH_NORM)
    ),
    **dict.fromkeys(
        ("_native_batch_norm_legit", "cudnn_batch_norm"), OpDefinition(traits=BATCH_NORM)
    ),
    **dict.fromkeys(
        ("instance_norm", "_native_batch_norm_legit_no_training"),
        OpDefinition(rule=batch_norm, traits=NORM),
    ),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm(("normalized_shape",))),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm()),
    "group_norm": OpDefinition(
        rule=group_norm, resize=resize_group_norm, traits=NORM, needs=("num_groups",)
    ),
    "_weight_norm": OpDefinition(rule=weight_norm),
    **dict.fromkeys(("softmax", "log_softmax"), OpDefinition(rule=along_axis, needs=("dim",))),
    **dict.fromkeys(
        ("_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp"),
        OpDefinition(rule=along_axis),
    ),
}
