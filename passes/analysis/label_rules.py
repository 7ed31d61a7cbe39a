"""How labels pass through each family of ops.

Families: layers (contractions with a weight), products of activations, normalisation, windows (pooling, interpolation),
reductions, and element-by-element ops; ops that only move data stand in `label_moves`. Anything else is unknown and
freezes what it touches: never wrong, only less pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Op, Value
from pruneopt.ir.schema import overload
from pruneopt.passes.analysis.labels import Blocks, Labels, Note
from pruneopt.passes.analysis.planes import Plane, align, varying

__all__ = ["RULES", "apply_rule", "merge_pointwise", "rule"]

Rule = Callable[[Labels, Op], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops by base name (``conv2d``)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def apply_rule(labels: Labels, op: Op) -> None:
    """Propagate labels through one op."""
    found = RULES.get(op.base)
    if found is not None:
        found(labels, op)
    elif is_pointwise(op):
        pointwise(labels, op)
    elif any(labels.of(value) or value.is_weight for value in op.inputs):
        labels.give_up(op, "no rule")


def is_pointwise(op: Op) -> bool:
    """Whether torch tags the op as working element by element."""
    try:
        tags: Sequence[Any] = getattr(overload(op.target), "tags", ())
    except UserError:
        return False
    return torch.Tag.pointwise in tags and len(op.results) == 1


# Layers


@rule("conv1d", "conv2d", "conv3d", "convolution")
def conv(labels: Labels, op: Op) -> None:
    x, weight, bias = op.value(0), op.value(1), op.value(2)
    groups = int(op.attrs["groups"])  # type: ignore[call-overload]
    if op.attrs.get("transposed") is True:
        conv_transpose(labels, op)
        return
    if x is None or weight is None:
        labels.give_up(op, "operands are missing")
        return
    axis = x.type.rank - weight.type.rank + 1
    channels = channel_labels(labels, op, x, axis)
    outs, ins = labels.shape(weight)[0], labels.shape(weight)[1]
    out = labels.axis_labels(weight, 0, produced=True)
    if groups == 1:
        contract_weight(labels, op, weight, 1, channels)
    elif ins == 1:
        out = depthwise(labels, op, out, channels, groups, outs)
    else:
        grouped_input(labels, op, weight, channels, groups)
        if out is not None:
            labels.blocks.append(Blocks(out.reshape(groups, -1), op, may_vanish=False))
    if outs == 1:
        out = None
    produce(labels, op, out, axis, bias)


def depthwise(
    labels: Labels, op: Op, out: Tensor | None, channels: Tensor | None, groups: int, outs: int
) -> Tensor | None:
    """Each input channel lives and dies with the outputs made from it alone."""
    if channels is None:
        if out is not None:
            labels.freeze(out, f"depthwise over channels that cannot be removed, {op}")
        return out
    if out is None:
        labels.freeze(channels, f"depthwise weight with fixed channels, {op}")
        return channels.repeat_interleave(outs // groups)
    labels.unite(channels.reshape(groups, 1), out.reshape(groups, -1), f"depthwise {op}")
    return out


def grouped_input(labels: Labels, op: Op, weight: Value, channels: Tensor | None, groups: int) -> None:
    """Input channels of a grouped convolution: one block per group, every block keeps as many."""
    if channels is None:
        return
    rows = channels.reshape(groups, -1)
    labels.blocks.append(Blocks(rows, op, may_vanish=False))
    outs = labels.shape(weight)[0]
    plane = rows.repeat_interleave(outs // groups, 0).reshape(outs, -1, *[1] * (weight.type.rank - 2))
    own = [p for p in labels.of(weight) if 1 in varying(p)]
    for other in own:
        labels.unite(other, plane, f"weight shared with {op}")
    if not own and weight.kind == "param":
        labels.planes[weight] = (*labels.of(weight), plane)
    elif not own:
        labels.freeze(channels, f"grouped convolution with a computed weight, {op}")


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(labels: Labels, op: Op) -> None:
    x, weight, bias = op.value(0), op.value(1), op.value(2)
    groups = int(op.attrs["groups"])  # type: ignore[call-overload]
    if x is None or weight is None:
        labels.give_up(op, "operands are missing")
        return
    axis = x.type.rank - weight.type.rank + 1
    channels = channel_labels(labels, op, x, axis)
    outs = labels.shape(weight)[1] * groups
    if groups == 1:
        out = labels.axis_labels(weight, 1, produced=True)
        contract_weight(labels, op, weight, 0, channels)
    elif labels.shape(weight)[0] == groups:
        contract_weight(labels, op, weight, 0, channels)
        out = None if channels is None else channels.repeat_interleave(outs // groups)
    else:
        out = None
        if channels is not None:
            labels.freeze(channels, f"grouped transposed convolution {op}")
            contract_weight(labels, op, weight, 0, channels)
    produce(labels, op, out if outs > 1 else None, axis, bias)


@rule("linear")
def linear(labels: Labels, op: Op) -> None:
    x, weight, bias = op.value(0), op.value(1), op.value(2)
    if x is None or weight is None:
        labels.give_up(op, "operands are missing")
        return
    axis = x.type.rank - 1
    channels = channel_labels(labels, op, x, axis)
    contract_weight(labels, op, weight, 1, channels)
    out = labels.axis_labels(weight, 0, produced=True) if weight.type.rank == 2 else None
    rest = [plane for plane in labels.of(x) if axis not in varying(plane)]
    produce(labels, op, out, axis, bias, rest)


@rule("addmm")
def addmm(labels: Labels, op: Op) -> None:
    product(labels, op, op.value(1), op.value(2))
    bias = op.value(0)
    for plane in labels.of(op.result):
        labels.adopt(bias, plane, f"bias of {op}")


@rule("embedding")
def embedding(labels: Labels, op: Op) -> None:
    weight = op.value(0)
    if weight is None or labels.of(op.value(1)):
        labels.give_up(op, "its indices carry channels")
        return
    out = labels.axis_labels(weight, 1, produced=True)
    shape = [1] * op.result.type.rank
    if out is not None:
        shape[-1] = out.numel()
        labels.set(op.result, [out.reshape(shape)])


def channel_labels(labels: Labels, op: Op, x: Value, axis: int) -> Tensor | None:
    """The labels along the channel axis of an activation; whatever else varies there is tied, or frozen."""
    found: Tensor | None = None
    for plane in labels.of(x):
        axes = varying(plane)
        if axis not in axes:
            if op.base != "linear":
                labels.freeze(plane, f"channels lie along a spatial axis of {op}")
            continue
        vector = labels.tie(plane, [a for a in axes if a != axis]).reshape(-1)
        if found is None:
            found = vector
        else:
            labels.unite(found, vector, "")
    return found


def contract_weight(labels: Labels, op: Op, weight: Value, axis: int, channels: Tensor | None) -> None:
    """Unite the contracted axis of a weight with the channels of the activation."""
    own = [plane for plane in labels.of(weight) if axis in varying(plane)]
    if channels is None:
        for plane in own:
            labels.freeze(plane, f"contracted with channels that cannot be removed, {op}")
        return
    shape = [1] * weight.type.rank
    shape[axis] = channels.numel()
    for plane in own:
        labels.unite(labels.tie(plane, [a for a in varying(plane) if a != axis]), channels.reshape(shape), f"{op}")
    if own:
        return
    if weight.kind == "param":
        labels.add_axis(weight, axis, channels)
    else:
        labels.freeze(channels, f"contracted with a computed weight, {op}")


def produce(
    labels: Labels, op: Op, out: Tensor | None, axis: int, bias: Value | None, rest: Sequence[Plane] = ()
) -> None:
    """Give the result its output labels along ``axis`` and let the bias adopt them."""
    planes = list(rest)
    if out is not None:
        shape = [1] * op.result.type.rank
        shape[axis] = out.numel()
        planes.append(out.reshape(shape))
        labels.adopt(bias, out, f"bias of {op}")
    labels.set(op.result, planes)


# Products of two activations


@rule("matmul", "bmm", "mm")
def matmul(labels: Labels, op: Op) -> None:
    product(labels, op, op.value(0), op.value(1))


def product(labels: Labels, op: Op, a: Value | None, b: Value | None) -> None:
    """``a @ b``: the contracted axes are united, the others pass."""
    if a is None or b is None or a.type.rank < 2 or b.type.rank < 2:
        labels.give_up(op, "a product with a vector")
        return
    rank = max(a.type.rank, b.type.rank)
    for value, axis in ((b, b.type.rank - 1), (a, a.type.rank - 2)):
        if value.kind == "param":
            labels.axis_labels(value, axis, produced=True)
    ka, rest_a = split_contracted(labels, op, a, rank, rank - 1, rank - 2)
    kb, rest_b = split_contracted(labels, op, b, rank, rank - 2, rank - 1)
    meet_contracted(labels, op, a, a.type.rank - 1, ka, b, b.type.rank - 2, None if kb is None else kb.mT)
    labels.set(op.result, merge_pointwise(labels, op, [(rest_a, None), (rest_b, None)]))


def split_contracted(
    labels: Labels, op: Op, value: Value, rank: int, axis: int, free: int
) -> tuple[Plane | None, list[Plane]]:
    """The plane along the contracted axis (tied over the free axis), and the planes that pass."""
    found: Plane | None = None
    rest: list[Plane] = []
    for plane in labels.of(value):
        plane = align(plane, rank)
        if axis not in varying(plane):
            rest.append(plane)
            continue
        plane = labels.tie(plane, [free])
        if found is None:
            found = plane
        else:
            labels.unite(found, plane, f"{op}")
    return found, rest


def meet_contracted(
    labels: Labels,
    op: Op,
    a: Value,
    axis_a: int,
    ka: Plane | None,
    b: Value,
    axis_b: int,
    kb: Plane | None,
) -> None:
    """Unite two contracted axes; ``ka`` and ``kb`` hold them last. A parameter without labels adopts the other's."""
    if ka is None and kb is None:
        return
    if ka is not None and kb is not None:
        labels.unite(ka, kb, f"{op}")
    else:
        plane, other, axis = (ka, b, axis_b) if ka is not None else (kb, a, axis_a)
        assert plane is not None
        if other.kind == "param":
            vector = labels.tie(plane, [x for x in varying(plane) if x != plane.dim() - 1]).reshape(-1)
            labels.add_axis(other, axis, vector)
        else:
            labels.freeze(plane, f"contracted with a tensor without channels, {op}")
    for plane in (ka, kb):
        if plane is not None and len(varying(plane)) > 1:
            labels.blocks.append(Blocks(plane.reshape(-1, plane.shape[-1]), op, may_vanish=False))


@rule("scaled_dot_product_attention")
def attention(labels: Labels, op: Op) -> None:
    q, k, v, mask = (op.value(i) for i in range(4))
    if q is None or k is None or v is None or labels.of(mask) or op.attrs["enable_gqa"] is True:
        labels.give_up(op, "grouped queries or a mask with channels")
        return
    rank = q.type.rank
    kq, rest_q = split_contracted(labels, op, q, rank, rank - 1, rank - 2)
    kk, rest_k = split_contracted(labels, op, k, rank, rank - 1, rank - 2)
    meet_contracted(labels, op, q, rank - 1, kq, k, rank - 1, kk)
    for plane in (*rest_q, *rest_k):
        labels.freeze(plane, f"channels lie along the tokens or heads of {op}")
    out = []
    for plane in labels.of(v):
        if rank - 2 in varying(plane):
            labels.freeze(plane, f"channels lie along the tokens of {op}")
        else:
            out.append(plane)
            if len(varying(plane)) > 1:
                labels.blocks.append(Blocks(plane.reshape(-1, plane.shape[-1]), op, may_vanish=False))
    labels.set(op.result, out)


@rule("einsum")
def einsum(labels: Labels, op: Op) -> None:
    """Unites labels letter by letter; a plane that varies over two letters is frozen."""
    tensors = op.operands[0]
    equation = str(op.attrs["equation"]).replace(" ", "")
    if not isinstance(tensors, tuple) or "." in equation or "->" not in equation:
        labels.give_up(op, f"the equation {equation}")
        return
    left, out = equation.split("->")
    vectors: dict[str, Tensor] = {}
    waiting: list[tuple[Value, int, str]] = []
    for value, letters in zip(tensors, left.split(","), strict=True):
        if value is None or len(set(letters)) != len(letters):
            labels.give_up(op, f"the equation {equation}")
            return
        for plane in labels.of(value):
            if len(varying(plane)) > 1:
                labels.freeze(plane, f"channels spread over two axes of {op}")
        for axis, letter in enumerate(letters):
            waiting.append((value, axis, letter))
    for value, axis, letter in waiting:
        vector = single_axis(labels, value, axis)
        if vector is not None:
            if letter in vectors:
                labels.unite(vectors[letter], vector, f"{op}")
            vectors.setdefault(letter, vector)
    for value, axis, letter in waiting:
        if labels.shape(value)[axis] > 1 and single_axis(labels, value, axis) is None:
            if value.kind == "param" and letter in vectors:
                labels.add_axis(value, axis, vectors[letter])
            elif value.kind == "param" and letter in out:
                vectors[letter] = labels.fresh(labels.shape(value)[axis], produced=True)
                labels.add_axis(value, axis, vectors[letter])
            elif letter in vectors:
                labels.freeze(vectors[letter], f"combined with a tensor without channels, {op}")
    planes = []
    for axis, letter in enumerate(out):
        if letter in vectors:
            shape = [1] * len(out)
            shape[axis] = vectors[letter].numel()
            planes.append(vectors[letter].reshape(shape))
    labels.set(op.result, planes)


def single_axis(labels: Labels, value: Value, axis: int) -> Tensor | None:
    for plane in labels.of(value):
        if varying(plane) == (axis,):
            return plane.reshape(-1)
    return None


# Normalisation


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(labels: Labels, op: Op) -> None:
    x = op.value(0)
    if x is None:
        labels.give_up(op, "operands are missing")
        return
    out = []
    for plane in labels.of(x):
        if 1 not in varying(plane):
            labels.freeze(plane, f"normalised together by {op}")
            continue
        plane = labels.tie(plane, [axis for axis in varying(plane) if axis != 1])
        for index in range(1, 5):
            labels.adopt(op.value(index), plane.reshape(-1), f"{op}")
        out.append(plane)
    if not out:
        freeze_weights(labels, op)
    labels.set(op.results[0], out)


def freeze_weights(labels: Labels, op: Op) -> None:
    """The weights of a norm over channels that cannot go stay whole."""
    for value in op.inputs:
        if value.is_weight:
            labels.freeze_value(value, f"shared with {op}, whose channels cannot be removed")


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(labels: Labels, op: Op) -> None:
    x = op.value(0)
    if x is None:
        labels.give_up(op, "operands are missing")
        return
    normalized = op.attrs["normalized_shape"]
    count = len(normalized) if isinstance(normalized, tuple) else 1
    first = x.type.rank - count
    for plane in labels.of(x):
        if any(axis >= first for axis in varying(plane)):
            labels.notes.append(Note(op, plane))
            for index in (1, 2):
                labels.adopt(op.value(index), plane, f"{op}")
    if not any(axis >= first for plane in labels.of(x) for axis in varying(plane)):
        freeze_weights(labels, op)
    labels.set(op.results[0], labels.of(x))


@rule("group_norm")
def group_norm(labels: Labels, op: Op) -> None:
    x = op.value(0)
    if x is None:
        labels.give_up(op, "operands are missing")
        return
    groups = int(op.attrs["num_groups"])  # type: ignore[call-overload]
    out = []
    for plane in labels.of(x):
        if 1 not in varying(plane):
            labels.freeze(plane, f"normalised together by {op}")
            continue
        plane = labels.tie(plane, [axis for axis in varying(plane) if axis != 1])
        rows = plane.reshape(groups, -1)
        if rows.shape[1] > 1:
            labels.notes.append(Note(op, plane))
            if groups > 1:
                labels.blocks.append(Blocks(rows, op, may_vanish=False))
        for index in (1, 2):
            labels.adopt(op.value(index), plane.reshape(-1), f"{op}")
        out.append(plane)
    if not out:
        freeze_weights(labels, op)
    labels.set(op.result, out)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "normalize")
def along_axis(labels: Labels, op: Op) -> None:
    """Ops that keep the shape and mix along one axis."""
    x = op.value(0)
    if x is None:
        labels.give_up(op, "operands are missing")
        return
    dim = op.attrs.get("dim")
    axis = (dim if isinstance(dim, int) else -1) % x.type.rank
    for plane in labels.of(x):
        if axis in varying(plane):
            labels.notes.append(Note(op, plane))
    labels.set(op.result, labels.of(x))


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
def created(labels: Labels, op: Op) -> None:
    """A tensor of a written-out size takes nothing but its dtype from its operand."""
    labels.set(op.result, [])


# Windows and reductions


def window(labels: Labels, op: Op, axes: Sequence[int]) -> None:
    """Pooling and interpolation over spatial axes: what varies there is tied."""
    x = op.value(0)
    if x is None:
        labels.give_up(op, "operands are missing")
        return
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
    for _name in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "_adaptive_avg_pool", "lp_pool"):
        RULES[f"{_name}{_rank}d"] = spatial_rule(_rank)
    RULES[f"max_pool{_rank}d_with_indices"] = spatial_rule(_rank)
    for _kind in ("upsample_nearest", "upsample_nearest_exact", "_upsample_nearest_exact"):
        RULES[f"{_kind}{_rank}d"] = spatial_rule(_rank)
for _name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
    RULES[_name] = spatial_rule(2)
for _name in ("upsample_linear1d", "replication_pad1d", "reflection_pad1d"):
    RULES[_name] = spatial_rule(1)
for _name in ("replication_pad2d", "reflection_pad2d"):
    RULES[_name] = spatial_rule(2)
for _name in ("upsample_trilinear3d", "replication_pad3d", "reflection_pad3d"):
    RULES[_name] = spatial_rule(3)


@rule("mean", "sum", "amax", "amin", "var", "std", "norm", "linalg_vector_norm", "logsumexp", "prod", "max", "min")
def reduction(labels: Labels, op: Op) -> None:
    """A reduction: labels over which it runs vanish (noted); planes that vary elsewhere too are tied over them."""
    x = op.value(0)
    if x is None or (op.base in ("max", "min") and op.value(1) is not None):
        pointwise(labels, op)
        return
    if op.target in ("aten.max.dim", "aten.min.dim") and any(labels.of(x)):
        labels.give_up(op, "indices along an axis of channels")
        return
    dims = op.attrs.get("dim")
    given = dims if isinstance(dims, tuple) else () if dims is None else (dims,)
    axes = [int(d) % x.type.rank for d in given] or list(range(x.type.rank))  # type: ignore[arg-type]
    keep = op.attrs.get("keepdim") is True
    out = []
    for plane in labels.of(x):
        inside = [axis for axis in varying(plane) if axis in axes]
        if inside and len(inside) == len(varying(plane)):
            labels.notes.append(Note(op, plane))
            continue
        plane = labels.tie(plane, inside)
        sizes = [size for axis, size in enumerate(plane.shape) if keep or axis not in axes]
        out.append(plane.reshape(sizes))
    for value in op.results:
        labels.set(value, out)


# Element by element


@rule("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "to", "_to_copy", "alias", "type_as")
@rule("hardswish", "log_sigmoid", "masked_fill", "where", "rsub", "true_divide", "divide", "multiply", "subtract", "copy")
@rule("lift_fresh_copy", "lift_fresh", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
@rule("new_empty_strided", "detach_", "requires_grad_", "celu", "elu", "rrelu", "hardtanh", "relu6", "softplus", "prelu")
def pointwise(labels: Labels, op: Op) -> None:
    """All operands share their labels, element by element."""
    if op.base == "prelu":
        prelu(labels, op)
        return
    values = list(dict.fromkeys(op.inputs))
    if op.base == "type_as":
        values = values[:1]
    if not any(labels.of(value) for value in values):
        start_from_parameter(labels, values)
    rank = op.result.type.rank
    sides: list[tuple[list[Plane], Value | None]] = []
    for value in values:
        sides.append(([align(plane, rank) for plane in labels.of(value)], value))
    labels.set(op.result, merge_pointwise(labels, op, sides))


def prelu(labels: Labels, op: Op) -> None:
    """One slope per channel of axis 1, or one for all."""
    x, weight = op.value(0), op.value(1)
    for plane in labels.of(x):
        if 1 in varying(plane):
            labels.adopt(weight, labels.tie(plane, [a for a in varying(plane) if a != 1]).reshape(-1), f"{op}")
    labels.set(op.result, labels.of(x))


def start_from_parameter(labels: Labels, values: Sequence[Value]) -> None:
    """Nothing is labelled yet: a lone parameter (computed weights, tokens) gets labels along each of its axes."""
    weights = [value for value in values if value.kind == "param"]
    if weights:
        biggest = max(weights, key=lambda value: value.type.rank)
        for axis, size in enumerate(labels.shape(biggest)):
            if size > 1:
                labels.add_axis(biggest, axis, labels.fresh(size))


def merge_pointwise(labels: Labels, op: Op, sides: Sequence[tuple[list[Plane], Value | None]]) -> list[Plane]:
    """The planes of an element-by-element result. Planes that meet on an axis are united; a side that spans a labelled
    axis without labels of its own freezes it, unless it is a weight, which adopts the labels.
    """
    merged: list[Plane] = []
    for planes, _ in sides:
        for plane in planes:
            partners = [own for own in merged if set(varying(own)) & set(varying(plane))]
            for own in partners:
                labels.unite(own, plane, f"{op}")
            if not partners:
                merged.append(plane)
    stuck: list[Plane] = []
    for planes, value in sides:
        if value is None:
            continue
        rank = merged[0].dim() if merged else 0
        shape = (1,) * (rank - value.type.rank) + labels.shape(value)
        covered = {axis for plane in planes for axis in varying(plane)}
        for plane in merged:
            spanned = [axis for axis in varying(plane) if shape[axis] > 1]
            if not spanned or covered & set(varying(plane)):
                continue
            if value.is_weight:
                labels.adopt(value, plane, f"{op}")
            else:
                labels.freeze(plane, f"combined with a tensor whose channels cannot be removed, {op}")
                stuck.append(plane)
    return [plane for plane in merged if not any(plane is other for other in stuck)]
