"""Products of every kind: linear layers, matrix products, einsum.

A product is written in *letters*, as einsum writes it: every axis of an operand has a letter, and
letters that the result lacks are contracted. One rule then serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Blocks, Labels, Note, numbers
from pruneopt.passes.analysis.channels.layer_weight import Contraction, LayerWeight
from pruneopt.passes.analysis.channels.planes import Plane, align, varying
from pruneopt.passes.analysis.ops.count import Count, elements
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.einsum import einsum_macs, terms_of
from pruneopt.passes.analysis.ops.heads import tie_contracted
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise

__all__ = ["DEFINITIONS", "Side", "contract", "pinned"]


@dataclass(frozen=True, slots=True)
class Side:
    """An operand of a product: its letter for every axis."""

    value: Value
    letters: tuple[int, ...]


def contract(labels: Labels, op: Op, sides: Sequence[Side], out: tuple[int, ...]) -> list[Plane]:
    """Return the planes of a product whose result has the axes ``out``: contracted letters are
    united, the others pass."""
    count = 1 + max(letter for side in sides for letter in (*side.letters, *out))
    spans = [_spanned(labels, side, count) for side in sides]
    for side, span in zip(sides, spans, strict=True):
        for axis, letter in enumerate(side.letters if labels.is_weight(side.value) else ()):
            alone = span[letter] > 1 and all(other is span or other[letter] == 1 for other in spans)
            if alone and letter in out:
                labels.axis_labels(side.value, axis)
    spreads = [
        [_spread(plane, side.letters, count) for plane in labels.of(side.value)] for side in sides
    ]
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
    return [
        plane.permute(order).reshape(shape) for plane, shape in zip(planes, shapes, strict=True)
    ]


def _spanned(labels: Labels, side: Side, count: int) -> list[int]:
    """Return the size of an operand along every letter (1 where it lacks the letter)."""
    sizes = [1] * count
    for letter, size in zip(side.letters, labels.shape(side.value), strict=True):
        sizes[letter] = size
    return sizes


def _spread(plane: Plane, letters: tuple[int, ...], count: int) -> Plane:
    """Return a plane with an axis for every letter."""
    order = sorted(range(len(letters)), key=lambda axis: letters[axis])
    shape = [1] * count
    for axis, letter in enumerate(letters):
        shape[letter] = plane.shape[axis]
    return plane.permute(order).reshape(shape)


def _gathered(labels: Labels, plane: Plane, side: Side, span: list[int]) -> Plane:
    """Return a plane over letters as an operand sees it: in its own axes, tied over what it does
    not span."""
    plane = labels.tie(plane, [letter for letter in varying(plane) if span[letter] == 1])
    order = [
        *side.letters,
        *(letter for letter in range(plane.dim()) if letter not in side.letters),
    ]
    return plane.permute(order).reshape([plane.shape[letter] for letter in side.letters])


def _meet(
    labels: Labels,
    op: Op,
    crossing: list[tuple[Plane, int]],
    sides: Sequence[Side],
    spans: list[list[int]],
    out: tuple[int, ...],
) -> None:
    """Unite what is contracted. A weight without labels takes the other's; other axes of the plane
    must stay whole."""
    met: list[Plane] = []
    for plane, place in crossing:
        cut = {letter for letter in varying(plane) if letter not in out}
        facing = [
            span
            for i, span in enumerate(spans)
            if i != place and any(span[letter] > 1 for letter in cut)
        ]
        # What another operand contracts without such an axis, it contracts alike for all of it.
        alone = [
            letter
            for letter in varying(plane)
            if letter in out and any(span[letter] == 1 for span in facing)
        ]
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
    labels: Labels,
    op: Op,
    passing: list[tuple[Plane, int]],
    sides: Sequence[Side],
    spans: list[list[int]],
) -> list[Plane]:
    """Pass planes along axes of the result; where another operand spans such an axis without
    labels, it must stay whole."""
    merged: list[tuple[Plane, int]] = []
    tied = labels.tie_shared_axis(plane for plane, _ in passing)
    passing = [(plane, place) for plane, (_, place) in zip(tied, passing, strict=True)]
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
    """Return blocks in which the axes ``stay`` come first and must stay."""
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


def linear(labels: Labels, op: Op) -> None:
    x, weight = labels.operand(op, 0), labels.operand(op, 1)
    rank = x.type.rank
    axes = tuple(range(rank))
    made = (rank,) if weight.type.rank == 2 else ()
    planes = contract(
        labels, op, [Side(x, axes), Side(weight, (*made, rank - 1))], (*axes[:-1], *made)
    )
    finish(labels, op, planes, op.value(2))


def matmul(labels: Labels, op: Op) -> None:
    labels.set(op.result, product(labels, op, labels.operand(op, 0), labels.operand(op, 1)))


def addmm(labels: Labels, op: Op) -> None:
    finish(
        labels, op, product(labels, op, labels.operand(op, 1), labels.operand(op, 2)), op.value(0)
    )


def product(labels: Labels, op: Op, a: Value, b: Value) -> list[Plane]:
    """Return the planes of ``a @ b``, in letters: batch axes from the right are shared, then rows,
    columns and the contracted axis."""
    batch = max(a.type.rank, b.type.rank, 2) - 2
    row, column, inner = batch, batch + 1, batch + 2
    left = (*range(batch - a.type.rank + 2, batch), row, inner) if a.type.rank > 1 else (inner,)
    right = (*range(batch - b.type.rank + 2, batch), inner, column) if b.type.rank > 1 else (inner,)
    out = (
        *range(batch),
        *((row,) if a.type.rank > 1 else ()),
        *((column,) if b.type.rank > 1 else ()),
    )
    return contract(labels, op, [Side(a, left), Side(b, right)], out)


def einsum(labels: Labels, op: Op) -> None:
    values = list(op.inputs)
    terms, out = terms_of(op, [value.type.rank for value in values])
    if any(len(set(term)) < len(term) for term in (*terms, out)):
        labels.freeze_unknown(op, f"the equation {op.attrs['equation']}")
        return
    place = {
        letter: index
        for index, letter in enumerate(dict.fromkeys(letter for term in terms for letter in term))
    }
    sides = [
        Side(value, tuple(place[letter] for letter in term))
        for value, term in zip(values, terms, strict=True)
    ]
    labels.set(op.result, contract(labels, op, sides, tuple(place[letter] for letter in out)))


def tensordot(labels: Labels, op: Op) -> None:
    a, b = labels.operand(op, 0), labels.operand(op, 1)
    left = range(a.type.rank)
    first = [axis % a.type.rank for axis in numbers(op, "dims_self")]
    second = [axis % b.type.rank for axis in numbers(op, "dims_other")]
    met = dict(zip(second, first, strict=True))
    right = [met.get(axis, len(left) + axis) for axis in range(b.type.rank)]
    out = [
        *(axis for axis in left if axis not in first),
        *(letter for letter in right if letter not in left),
    ]
    labels.set(
        op.result, contract(labels, op, [Side(a, tuple(left)), Side(b, tuple(right))], tuple(out))
    )


def distances(labels: Labels, op: Op) -> None:
    """Pass labels as a product of one tensor with the other transposed; each distance is a
    statistic over channels."""
    a, b = labels.operand(op, 0), labels.operand(op, 1)
    batch = tuple(range(op.result.type.rank - 2))
    row, column, inner = (len(batch) + n for n in range(3))
    sides = [
        Side(v, (*batch[len(batch) + 2 - v.type.rank :], place, inner))
        for v, place in ((a, row), (b, column))
    ]
    for side in sides:
        labels.notes.extend(
            Note(op, plane) for plane in labels.of(side.value) if plane.shape[-1] > 1
        )
    labels.set(op.result, contract(labels, op, sides, (*batch, row, column)))


def bilinear(labels: Labels, op: Op) -> None:
    """Contract both inputs with a matrix for every output: the weight is (outputs, first,
    second)."""
    first, second, weight = (labels.operand(op, index) for index in range(3))
    rows = tuple(range(first.type.rank - 1))
    i, j, o = (len(rows) + n for n in range(3))
    sides = [Side(first, (*rows, i)), Side(second, (*rows, j)), Side(weight, (o, i, j))]
    finish(labels, op, contract(labels, op, sides, (*rows, o)), op.value(3))


# Weights


def linear_weight(op: Op) -> tuple[LayerWeight, ...]:
    """Return the weight ``[outputs, inputs]``."""
    x, weight = op.value(0), op.value(1)
    if x is None or weight is None:
        return ()
    bias = 2 if len(op.operands) > 2 else None
    contraction = Contraction(0, x.type.rank - 1, op.results[0].type.rank - 1, bias)
    return (LayerWeight(weight, 0, weight.type.rank - 1, contraction),)


def matrix_weight(first: int) -> Callable[[Op], tuple[LayerWeight, ...]]:
    """Return how the weight of a product of operand ``first`` and the next is found: the matrix on
    the right, or else on the left, that is a weight. With a first operand before them, that is the
    bias."""

    def weight(op: Op) -> tuple[LayerWeight, ...]:
        left, right = op.value(first), op.value(first + 1)
        if left is None or right is None:
            return ()
        a, b, last = left.type.rank, right.type.rank, op.results[0].type.rank - 1
        bias = 0 if first else None
        if right.is_weight and b > 1:
            return (LayerWeight(right, b - 1, b - 2, Contraction(first, a - 1, last, bias)),)
        if left.is_weight and a > 1:
            read, made = (b - 2, last - 1) if b > 1 else (0, last)
            return (LayerWeight(left, a - 2, a - 1, Contraction(first + 1, read, made, bias)),)
        return ()

    return weight


def tensordot_weight(op: Op) -> tuple[LayerWeight, ...]:
    """Return a matrix of which one axis is summed over."""
    for index, name, other in ((1, "dims_other", "dims_self"), (0, "dims_self", "dims_other")):
        weight, summed, read = op.value(index), numbers(op, name), numbers(op, other)
        source = op.value(1 - index)
        if weight is None or source is None or not weight.is_weight or len(summed) != 1:
            continue
        if weight.type.rank == 2:
            into = summed[0] % 2
            made = op.results[0].type.rank - 1 if index else 0
            contraction = Contraction(1 - index, read[0] % source.type.rank, made)
            return (LayerWeight(weight, 1 - into, into, contraction),)
    return ()


def bilinear_weight(op: Op) -> tuple[LayerWeight, ...]:
    """Return the weight ``[outputs, first inputs, second inputs]``, by the first inputs."""
    weight = op.value(2)
    return () if weight is None else (LayerWeight(weight, 0, 1),)


# Costs


def product_macs(left: int) -> Callable[[Op], list[Count]]:
    """Return how a product is counted that sums over the last axis of operand ``left``."""

    def macs(op: Op) -> list[Count]:
        value = op.value(left)
        if value is None:
            return []
        return [Count((*elements(op.result), (value, value.type.rank - 1)))]

    return macs


def tensordot_macs(op: Op) -> list[Count]:
    """Count, for every value of the result, the named axes of the first operand."""
    left = op.value(0)
    summed = numbers(op, "dims_self")
    return (
        []
        if left is None
        else [Count((*elements(op.result), *((left, a % left.type.rank) for a in summed)))]
    )


def bilinear_macs(op: Op) -> list[Count]:
    """Count, for every row, the whole weight `[outputs, first inputs, second inputs]`."""
    weight = op.value(2)
    return [] if weight is None else [Count((*elements(op.result)[:-1], *elements(weight)))]


# The family


def _traits(*more: Trait) -> frozenset[Trait]:
    return frozenset({Trait.CONTRACTS_OPERANDS, *more})


def _matrices(first: int, needs: tuple[str, ...] | None = ()) -> OpDefinition:
    return OpDefinition(
        rule=addmm if first else matmul,
        layers=matrix_weight(first),
        macs=product_macs(first),
        traits=_traits(Trait.MATRIX_PRODUCT),
        needs=needs,
    )


_OF_VECTORS = OpDefinition(rule=matmul, macs=product_macs(0), traits=_traits(Trait.MATRIX_PRODUCT))
DEFINITIONS: Mapping[str, OpDefinition] = {
    "linear": OpDefinition(
        rule=linear,
        layers=linear_weight,
        macs=product_macs(0),
        traits=frozenset({Trait.LINEAR, Trait.COUNTED_AS_LAYER}),
        needs=(),
    ),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matrices(0)),
    **dict.fromkeys(("addmm", "baddbmm"), _matrices(1)),
    **dict.fromkeys(("mv", "dot"), _OF_VECTORS),
    "addmv": OpDefinition(macs=product_macs(1), traits=frozenset({Trait.MATRIX_PRODUCT})),
    "vdot": OpDefinition(rule=matmul, traits=_traits()),
    "einsum": OpDefinition(rule=einsum, macs=einsum_macs, traits=_traits()),
    "tensordot": OpDefinition(
        rule=tensordot, layers=tensordot_weight, macs=tensordot_macs, traits=_traits()
    ),
    "bilinear": OpDefinition(
        rule=bilinear, layers=bilinear_weight, macs=bilinear_macs, traits=_traits()
    ),
    **dict.fromkeys(("cdist", "_cdist_forward"), OpDefinition(rule=distances)),
}
