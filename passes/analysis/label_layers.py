"""How labels pass through layers: convolutions, and products of every kind.

A product (linear, matmul, einsum) is written in *letters*, as einsum writes it: every axis of an operand has a letter,
and letters that the result lacks are contracted. One rule then serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.label_heads import tie_contracted
from pruneopt.passes.analysis.label_rules import merge_pointwise, rule
from pruneopt.passes.analysis.labels import Blocks, Labels, Note, number
from pruneopt.passes.analysis.planes import Plane, align, varying

__all__ = ["Side", "channel_labels", "contract", "meet_weight", "pinned"]


# Convolutions


@rule("conv1d", "conv2d", "conv3d", "convolution")
def conv(labels: Labels, op: Op) -> None:
    """Input channels meet axis 1 of the weight, output channels are its axis 0; groups make blocks of both."""
    if op.attrs.get("transposed") is True:
        conv_transpose(labels, op)
        return
    x, weight, groups = op.value(0), op.value(1), _groups(op)
    if x is None or weight is None:
        labels.give_up(op, "operands are missing")
        return
    axis = x.type.rank - weight.type.rank + 1
    channels, rest = channel_labels(labels, op, x, axis)
    outs, ins = labels.shape(weight)[:2]
    out = labels.axis_labels(weight, 0)
    if groups == 1:
        meet_weight(labels, op, weight, 1, channels)
    elif ins == 1 and channels is not None:
        out = depthwise(labels, op, out, channels, groups, outs)
    else:
        grouped(labels, op, weight, channels, groups, (outs, ins))
        if out is not None:
            labels.blocks.append(Blocks(out.reshape(groups, -1), op, pinned=1))
    produce(labels, op, out if outs > 1 else None, axis, rest)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(labels: Labels, op: Op) -> None:
    """As a convolution, with the weight's first two axes exchanged: (inputs, outputs of one group)."""
    x, weight, groups = op.value(0), op.value(1), _groups(op)
    if x is None or weight is None:
        labels.give_up(op, "operands are missing")
        return
    axis = x.type.rank - weight.type.rank + 1
    channels, rest = channel_labels(labels, op, x, axis)
    ins, each = labels.shape(weight)[:2]
    out: Tensor | None = None
    if groups == 1:
        out = labels.axis_labels(weight, 1)
        meet_weight(labels, op, weight, 0, channels)
    else:
        meet_weight(labels, op, weight, 0, channels)
        if groups == ins and channels is not None:
            out = channels.repeat_interleave(each)
        else:
            out = grouped_outputs(labels, op, weight, groups)
            if channels is not None:
                labels.blocks.append(Blocks(channels.reshape(groups, -1), op, pinned=1))
    produce(labels, op, out if each * groups > 1 else None, axis, rest)


def _groups(op: Op) -> int:
    return number(op, "groups")


def channel_labels(labels: Labels, op: Op, x: Value, axis: int) -> tuple[Tensor | None, list[Plane]]:
    """The labels along the channel axis of an activation, and the planes along the batch, which pass."""
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


def depthwise(labels: Labels, op: Op, out: Tensor | None, channels: Tensor, groups: int, outs: int) -> Tensor:
    """Each input channel lives and dies with the outputs made from it alone."""
    if out is None:
        labels.freeze(channels, f"depthwise weight with fixed channels, {op}")
        return channels.repeat_interleave(outs // groups)
    labels.unite(channels.reshape(groups, 1), out.reshape(groups, -1), f"depthwise {op}")
    return out


def grouped(
    labels: Labels, op: Op, weight: Value, channels: Tensor | None, groups: int, shape: tuple[int, int]
) -> None:
    """Input channels of a grouped convolution: one block per group, every block keeps as many."""
    own = [plane for plane in labels.of(weight) if 1 in varying(plane)]
    if channels is None:
        for other in own:
            labels.freeze(other, f"contracted with channels that cannot be removed, {op}")
        return
    outs, ins = shape
    rows = channels.reshape(groups, ins)
    labels.blocks.append(Blocks(rows, op, pinned=1))
    plane = rows.repeat_interleave(outs // groups, 0).reshape(outs, ins, *[1] * (weight.type.rank - 2))
    for other in own:
        labels.unite(other, plane, f"weight shared with {op}")
    if not own and weight.is_weight:
        labels.planes[weight] = (*labels.of(weight), plane)
    elif not own:
        labels.freeze(channels, f"grouped convolution with a computed weight, {op}")


def grouped_outputs(labels: Labels, op: Op, weight: Value, groups: int) -> Tensor | None:
    """Output channels of a grouped transposed convolution, (group, output): its weight holds them for every input."""
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
    plane = rows.repeat_interleave(ins // groups, 0).reshape(ins, each, *[1] * (weight.type.rank - 2))
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
        labels.unite(labels.tie(plane, [a for a in varying(plane) if a != axis]), channels.reshape(shape), f"{op}")
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


@rule("embedding")
def embedding(labels: Labels, op: Op) -> None:
    weight = op.value(0)
    if weight is None or labels.of(op.value(1)):
        labels.give_up(op, "its indices carry channels")
        return
    out = labels.axis_labels(weight, 1)
    rows = [plane for plane in labels.of(weight) if 0 in varying(plane)]
    for plane in rows:
        labels.freeze(plane, f"rows are picked by number, {op}")
    if out is not None:
        shape = [1] * op.result.type.rank
        shape[-1] = out.numel()
        labels.set(op.result, [out.reshape(shape)])


# Products


@dataclass(frozen=True, slots=True)
class Side:
    """An operand of a product: its letter for every axis."""

    value: Value
    letters: tuple[int, ...]


def contract(labels: Labels, op: Op, sides: Sequence[Side], out: tuple[int, ...]) -> list[Plane]:
    """The planes of a product whose result has the axes ``out``: contracted letters are united, the others pass."""
    count = 1 + max(letter for side in sides for letter in (*side.letters, *out))
    spans = [_spanned(labels, side, count) for side in sides]
    for side, span in zip(sides, spans, strict=True):
        for axis, letter in enumerate(side.letters if labels.is_weight(side.value) else ()):
            alone = span[letter] > 1 and all(other is span or other[letter] == 1 for other in spans)
            if alone and letter in out:
                labels.axis_labels(side.value, axis)
    spreads = [[_spread(plane, side.letters, count) for plane in labels.of(side.value)] for side in sides]
    if labels.whole_heads and not any(labels.is_weight(side.value) for side in sides):
        spreads = tie_contracted(labels, spreads, out)
    crossing: list[tuple[Plane, int]] = []
    passing: list[tuple[Plane, int]] = []
    for place, spread in enumerate(spreads):
        for plane in spread:
            target = passing if all(letter in out for letter in varying(plane)) else crossing
            target.append((plane, place))
    _meet(labels, op, crossing, sides, spans, out)
    if all(labels.is_weight(side.value) for side in sides):
        labels.notes.extend(Note(op, plane, of_weights=True) for plane, _ in crossing)
    planes = _pass(labels, op, passing, sides, spans)
    shapes = [[plane.shape[letter] for letter in out] for plane in planes]
    order = [*out, *(letter for letter in range(count) if letter not in out)]
    return [plane.permute(order).reshape(shape) for plane, shape in zip(planes, shapes, strict=True)]


def _spanned(labels: Labels, side: Side, count: int) -> list[int]:
    """The size of an operand along every letter (1 where it lacks the letter)."""
    sizes = [1] * count
    for letter, size in zip(side.letters, labels.shape(side.value), strict=True):
        sizes[letter] = size
    return sizes


def _spread(plane: Plane, letters: tuple[int, ...], count: int) -> Plane:
    """A plane with an axis for every letter."""
    order = sorted(range(len(letters)), key=lambda axis: letters[axis])
    shape = [1] * count
    for axis, letter in enumerate(letters):
        shape[letter] = plane.shape[axis]
    return plane.permute(order).reshape(shape)


def _gathered(labels: Labels, plane: Plane, side: Side, span: list[int]) -> Plane:
    """A plane over letters as an operand sees it: in its own axes, tied over what it does not span."""
    plane = labels.tie(plane, [letter for letter in varying(plane) if span[letter] == 1])
    order = [*side.letters, *(letter for letter in range(plane.dim()) if letter not in side.letters)]
    return plane.permute(order).reshape([plane.shape[letter] for letter in side.letters])


def _meet(
    labels: Labels,
    op: Op,
    crossing: list[tuple[Plane, int]],
    sides: Sequence[Side],
    spans: list[list[int]],
    out: tuple[int, ...],
) -> None:
    """Unite what is contracted. A weight without labels takes the other's; other axes of the plane must stay whole."""
    met: list[Plane] = []
    for plane, place in crossing:
        cut = {letter for letter in varying(plane) if letter not in out}
        facing = [span for i, span in enumerate(spans) if i != place and any(span[letter] > 1 for letter in cut)]
        # What another operand contracts without such an axis, it contracts alike for all of it.
        alone = [letter for letter in varying(plane) if letter in out and any(span[letter] == 1 for span in facing)]
        plane = labels.tie(plane, alone)
        partners = [own for own in met if cut & set(varying(own))]
        for own in partners:
            labels.unite(own, plane, f"{op}")
        if not partners:
            met.append(plane)
    for plane in met:
        cut = {letter for letter in varying(plane) if letter not in out}
        for place, (side, span) in enumerate(zip(sides, spans, strict=True)):
            known = {letter for own, n in crossing if n == place for letter in varying(own)}
            if cut & known or all(span[letter] == 1 for letter in cut):
                continue
            if side.value.is_weight:
                labels.adopt(side.value, _gathered(labels, plane, side, span), f"{op}")
            else:
                labels.freeze(plane, f"contracted with a tensor without channels, {op}")
        stay = [letter for letter in varying(plane) if letter in out]
        if stay:
            labels.blocks.append(pinned(plane, stay, op))


def _pass(
    labels: Labels, op: Op, passing: list[tuple[Plane, int]], sides: Sequence[Side], spans: list[list[int]]
) -> list[Plane]:
    """Planes along axes of the result; where another operand spans such an axis without labels, it must stay whole."""
    merged: list[tuple[Plane, int]] = []
    for plane, place in passing:
        partners = [own for own, _ in merged if set(varying(own)) & set(varying(plane))]
        for own in partners:
            labels.unite(own, plane, f"{op}")
        if not partners:
            merged.append((plane, place))
    kept: list[Plane] = []
    for plane, owner in merged:
        stay: set[int] = set()
        for place, (side, span) in enumerate(zip(sides, spans, strict=True)):
            spanned = {letter for letter in varying(plane) if span[letter] > 1}
            known = {letter for own, n in passing if n == place for letter in varying(own)}
            if place == owner or not spanned or spanned & known:
                continue
            if side.value.is_weight:
                labels.adopt(side.value, _gathered(labels, plane, side, span), f"{op}")
            else:
                stay |= spanned
        if stay == set(varying(plane)):
            labels.freeze(plane, f"combined with a tensor whose channels cannot be removed, {op}")
            continue
        if stay:
            labels.blocks.append(pinned(plane, sorted(stay), op))
        kept.append(plane)
    return kept


def pinned(plane: Plane, stay: list[int], op: Op) -> Blocks:
    """Blocks in which the axes ``stay`` come first and must stay."""
    order = [*stay, *(letter for letter in varying(plane) if letter not in stay)]
    rest = [letter for letter in range(plane.dim()) if letter not in order]
    compact = plane.permute([*order, *rest]).reshape([plane.shape[letter] for letter in order])
    return Blocks(compact, op, pinned=len(stay))


def finish(labels: Labels, op: Op, planes: list[Plane], bias: Value | None) -> None:
    """Set the planes of a product after adding its bias."""
    if bias is not None:
        rank = op.result.type.rank
        mine = [align(plane, rank) for plane in labels.of(bias)]
        planes = merge_pointwise(labels, op, [(planes, op.result), (mine, bias)])
    labels.set(op.result, planes)


@rule("linear")
def linear(labels: Labels, op: Op) -> None:
    x, weight = op.value(0), op.value(1)
    if x is None or weight is None:
        labels.give_up(op, "operands are missing")
        return
    rank = x.type.rank
    axes = tuple(range(rank))
    made = (rank,) if weight.type.rank == 2 else ()
    planes = contract(labels, op, [Side(x, axes), Side(weight, (*made, rank - 1))], (*axes[:-1], *made))
    finish(labels, op, planes, op.value(2))


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot")
def matmul(labels: Labels, op: Op) -> None:
    labels.set(op.result, product(labels, op, op.value(0), op.value(1)))


@rule("addmm", "baddbmm")
def addmm(labels: Labels, op: Op) -> None:
    finish(labels, op, product(labels, op, op.value(1), op.value(2)), op.value(0))


def product(labels: Labels, op: Op, a: Value | None, b: Value | None) -> list[Plane]:
    """``a @ b`` in letters: batch axes from the right are shared, then rows, columns and the contracted axis."""
    if a is None or b is None:
        labels.give_up(op, "operands are missing")
        return []
    batch = max(a.type.rank, b.type.rank, 2) - 2
    row, column, inner = batch, batch + 1, batch + 2
    left = (*range(batch - a.type.rank + 2, batch), row, inner) if a.type.rank > 1 else (inner,)
    right = (*range(batch - b.type.rank + 2, batch), inner, column) if b.type.rank > 1 else (inner,)
    out = (*range(batch), *((row,) if a.type.rank > 1 else ()), *((column,) if b.type.rank > 1 else ()))
    return contract(labels, op, [Side(a, left), Side(b, right)], out)


@rule("einsum")
def einsum(labels: Labels, op: Op) -> None:
    tensors = op.operands[0]
    values = [value for value in tensors if value is not None] if isinstance(tensors, tuple) else []
    equation = str(op.attrs["equation"]).replace(" ", "")
    terms, _, out = equation.partition("->")
    inputs = terms.split(",")
    if "." in equation or "->" not in equation or any(len(set(term)) < len(term) for term in (*inputs, out)):
        labels.give_up(op, f"the equation {equation}")
        return
    place = {letter: index for index, letter in enumerate(dict.fromkeys(terms.replace(",", "")))}
    sides = [
        Side(value, tuple(place[letter] for letter in term)) for value, term in zip(values, inputs, strict=True)
    ]
    labels.set(op.result, contract(labels, op, sides, tuple(place[letter] for letter in out)))
