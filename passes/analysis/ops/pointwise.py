"""Ops that work element by element, and how the labels of their operands meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Labels
from pruneopt.passes.analysis.channels.planes import Plane, align, varying
from pruneopt.passes.analysis.ops.definition import OpDefinition, Trait
from pruneopt.passes.analysis.ops.heads import apart, tie_inner
from pruneopt.passes.analysis.ops.normalisation import freeze_weights

__all__ = ["DEFINITIONS", "POINTWISE", "merge_pointwise", "pointwise"]


def pointwise(labels: Labels, op: Op) -> None:
    """Unite the labels of all operands, element by element."""
    _combine(labels, op, list(dict.fromkeys(op.inputs)))


def type_as(labels: Labels, op: Op) -> None:
    """Pass the labels of the first operand: of the other only the type is read."""
    _combine(labels, op, list(op.inputs)[:1])


def _combine(labels: Labels, op: Op, values: Sequence[Value]) -> None:
    if not any(labels.of(value) for value in values):
        weights = [value for value in values if value.is_weight]
        if weights:
            labels.label_axes(max(weights, key=lambda value: value.type.rank))
    rank = op.result.type.rank
    labels.set(
        op.result,
        merge_pointwise(
            labels, op, [([align(p, rank) for p in labels.of(value)], value) for value in values]
        ),
    )


def prelu(labels: Labels, op: Op) -> None:
    """Give the slopes the labels of axis 1: there is one for each channel, or one for all."""
    x, weight = op.value(0), op.value(1)
    planes = labels.of(x)
    along = [plane for plane in planes if 1 in varying(plane)]
    for plane in along:
        labels.adopt(
            weight, labels.tie(plane, [a for a in varying(plane) if a != 1]).reshape(-1), f"{op}"
        )
    if not along:
        freeze_weights(labels, op)
    labels.set(op.result, planes)


def _tie_shared_axis(
    labels: Labels, sides: Sequence[tuple[list[Plane], Value | None]]
) -> list[tuple[list[Plane], Value | None]]:
    """Return `Labels.tie_shared_axis` of the planes of several operands together."""
    every = iter(labels.tie_shared_axis(plane for planes, _ in sides for plane in planes))
    return [([next(every) for _ in planes], value) for planes, value in sides]


def merge_pointwise(
    labels: Labels, op: Op, sides: Sequence[tuple[list[Plane], Value | None]]
) -> list[Plane]:
    """Return the planes of an element-by-element result.

    Planes that meet on an axis are united; a side that spans a labelled axis without labels of its
    own freezes it, unless it is a weight, which adopts the labels.
    """
    merged: list[Plane] = []
    if labels.whole_heads:
        sides = apart(labels, op, sides)
    sides = _tie_shared_axis(labels, sides)
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
        for index, plane in enumerate(merged):
            spanned = [axis for axis in varying(plane) if shape[axis] > 1]
            if not spanned or covered & set(varying(plane)):
                continue
            if labels.whole_heads and varying(plane)[0] not in spanned:
                merged[index] = tie_inner(labels, plane, spanned)
            elif value.is_weight:
                labels.adopt(value, plane, f"{op}")
            else:
                labels.freeze(
                    plane, f"combined with a tensor whose channels cannot be removed, {op}"
                )
                stuck.append(plane)
    return [plane for plane in merged if not any(plane is other for other in stuck)]


POINTWISE = OpDefinition(rule=pointwise)
"""What is known of any op that torch tags as element by element."""


def _pointwise(*traits: Trait) -> OpDefinition:
    return OpDefinition(rule=pointwise, traits=frozenset(traits))


DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(("add", "add_"), _pointwise(Trait.ADD)),
    **dict.fromkeys(
        (
            *("celu", "clamp", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh"),
            *("leaky_relu", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus"),
            "tanh",
        ),
        _pointwise(Trait.ACTIVATION),
    ),
    **dict.fromkeys(
        ("prelu", "_prelu_kernel"),
        OpDefinition(rule=prelu, traits=frozenset({Trait.ACTIVATION})),
    ),
    "dropout": _pointwise(Trait.DROPOUT),
    "type_as": OpDefinition(rule=type_as),
    "empty_like": _pointwise(Trait.UNWRITTEN),
    **dict.fromkeys(
        (
            *("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal"),
            *("normal_functional", "poisson", "rand_like", "randint_like", "randn_like"),
            "uniform",
        ),
        _pointwise(Trait.RANDOM),
    ),
    **dict.fromkeys(
        (
            *("alias", "clone", "contiguous", "copy", "detach", "lift_fresh", "lift_fresh_copy"),
            *("to", "_to_copy"),
            *("fill", "full_like", "ones_like", "zero", "zeros_like"),
            *("alpha_dropout", "feature_dropout", "imag", "log_sigmoid", "masked_fill", "real"),
            *("divide", "multiply", "rsub", "subtract", "true_divide", "where"),
        ),
        POINTWISE,
    ),
}
