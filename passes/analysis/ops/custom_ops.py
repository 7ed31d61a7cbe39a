"""Rules for ops that PyTorch does not know: a user says in a line how channels pass through an op
of a library.

An op without a rule freezes what it touches. A rule that does not hold is found by the proof of the
result, which runs the op at both sizes: then nothing is delivered. docs/custom-ops.md shows each
rule at work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import ROLES, Op, Value
from pruneopt.ir.schema import admit, call, overload, signature, torch_value
from pruneopt.passes.analysis.channels.labels import BATCH, Labels, Note
from pruneopt.passes.analysis.channels.planes import Plane, align, compress, expand, varying
from pruneopt.passes.analysis.ops.definition import Rule
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise
from pruneopt.passes.analysis.ops.resize import SIZES, SizeOf
from pruneopt.passes.analysis.ops.table import OPS, UNKNOWN

__all__ = ["elementwise", "like", "moves", "per_channel", "register_op"]


@dataclass(frozen=True, slots=True)
class like:
    """The op takes the tensors of an op of PyTorch (``linear``, ``conv2d``, ``layer_norm``, ...) in
    its order, and has that op's whole definition: channels pass through it alike, a layer has a
    cost, its weight scores, it is sliced and repaired alike.
    """

    name: str


def register_op(name: str, rule: Rule | like, *, sizes: Mapping[str, SizeOf] | None = None) -> None:
    """Say how channels pass through an op of a library. A second rule for the same op takes the
    place of the first.

    Args:
        name: as the library defines it, ``mylib::swish``; all its overloads are meant.
        rule: `elementwise`, `per_channel`, `moves`, `like`, or a function of labels and op as in
            `pruneopt.passes.analysis.ops`.
        sizes: arguments that are a number of channels, and where that number is read after pruning:
            ``{"channels": ("x", 1)}`` is axis 1 of the argument ``x``; ``result`` is what the op
            returns.

    Raises:
        UserError: an op that does not exist (its library must be imported first), or that pruneopt
            has a rule for; arguments that the op lacks, or that the op it is like needs.
    """
    targets = _targets(name)
    admit(targets[0])
    base = Op(targets[0], (), {}, ()).base
    known = OPS.get(base, UNKNOWN)
    pointwise: Any = "." not in base and torch.Tag.pointwise in overload(targets[0]).tags
    if base not in SIZES and (known.rule is not None or pointwise):
        raise UserError(f"{name} has a rule already: only ops of other libraries can be registered")
    for target in targets:
        _check_sizes(name, target, sizes or {})
        if isinstance(rule, like):
            _check_like(name, target, rule.name)
    SIZES[base] = dict(sizes or {})
    if isinstance(rule, like):
        ROLES[base] = rule.name
    else:
        ROLES.pop(base, None)
        OPS[base] = replace(known, rule=rule)


def _targets(name: str) -> list[str]:
    """Return the overloads of an op, as the graph names them."""
    namespace, _, base = name.replace("::", ".").partition(".")
    packet: Any = (
        getattr(getattr(torch.ops, namespace), base, None) if base and "." not in base else None
    )
    if packet is None or not hasattr(packet, "overloads"):
        raise UserError(
            f"there is no op {name!r}: give it as mylib::op, after importing the library that "
            "defines it"
        )
    return [f"{namespace}.{base}.{form}" for form in packet.overloads()]


def _tensors(target: str) -> list[str]:
    return [argument.name for argument in signature(target).operands]


def _check_sizes(name: str, target: str, sizes: Mapping[str, SizeOf]) -> None:
    known = {argument.name for argument in signature(target).attrs}
    for argument, (source, _) in sizes.items():
        if argument not in known:
            others = ", ".join(sorted(known)) or "no sizes"
            raise UserError(f"{name} has no argument {argument!r} for a size: it takes {others}")
        if source != "result" and source not in _tensors(target):
            raise UserError(
                f"{name} has no tensor {source!r} to read {argument} from: "
                f"{', '.join(_tensors(target))}"
            )


def _check_like(name: str, target: str, other: str) -> None:
    model_ops = [known for known, item in OPS.items() if item.needs is not None]
    if other not in model_ops:
        raise UserError(f"an op cannot be like {other!r}, only like {', '.join(model_ops)}")
    model: Any = getattr(torch.ops.aten, other)
    theirs = signature(f"aten.{other}.{model.overloads()[0]}")
    lacking = [
        a for a in OPS[other].needs or () if a not in {own.name for own in signature(target).attrs}
    ]
    if lacking:
        raise UserError(f"{name} is not like {other}: it has no argument {lacking[0]!r}")
    if len(_tensors(target)) > len(theirs.operands):
        wanted = ", ".join(a.name for a in theirs.operands)
        raise UserError(f"{name} is not like {other}, whose tensors are {wanted}, in this order")


# Rules


def elementwise() -> Rule:
    """Say that every element of the results is made from the elements at its place in the
    arguments, which broadcast."""
    return _elementwise


def _elementwise(labels: Labels, op: Op) -> None:
    values = list(dict.fromkeys(op.inputs))
    weights = [value for value in values if value.is_weight]
    if weights and not any(map(labels.of, values)):
        labels.label_axes(max(weights, key=lambda value: value.type.rank))
    shapes = {labels.shape(result) for result in op.results}
    try:
        fits = shapes == {tuple(torch.broadcast_shapes(*map(labels.shape, values)))}
    except RuntimeError:
        fits = False
    if not fits:
        labels.freeze_unknown(
            op, "it is registered as element by element, but its result has another shape"
        )
        return
    rank = op.results[0].type.rank
    sides = [([align(plane, rank) for plane in labels.of(value)], value) for value in values]
    merged = merge_pointwise(labels, op, sides)
    for result in op.results:
        labels.set(result, merged)


def per_channel(axis: int, weights: Sequence[str] = (), *, statistic: bool = False) -> Rule:
    """Say that every channel along ``axis`` of the first tensor is worked on alone, whatever
    happens along other axes. The results have the channels along the same axis. ``weights`` names
    tensors with one element for each channel along their last axis. With ``statistic`` the op also
    takes a mean, a norm or the like over the channels: the result changes by construction when
    channels go, and reports name the op."""

    def rule(labels: Labels, op: Op) -> None:
        x = op.value(0)
        names = _tensors(op.target)
        missing = [name for name in weights if name not in names]
        if missing:
            raise UserError(f"{op.target} has no tensor {missing[0]!r}: it has {', '.join(names)}")
        if x is None or not -x.type.rank <= axis < x.type.rank:
            labels.freeze_unknown(op, f"its first tensor has no axis {axis}")
            return
        found = _per_channel(
            labels, op, x, axis % x.type.rank, [op.value(names.index(name)) for name in weights]
        )
        if statistic and found is not None:
            labels.notes.append(Note(op, found))

    return rule


def _per_channel(
    labels: Labels, op: Op, x: Value, axis: int, weights: Sequence[Value | None]
) -> Tensor | None:
    """Return the labels of the channels, if any."""
    size = labels.shape(x)[axis]
    held = [value for value in weights if value is not None]
    others = [value for value in op.inputs if value is not x and value not in held]
    if any(labels.shape(value)[-1:] != (size,) for value in held):
        labels.freeze_unknown(
            op, f"a weight has other than the {size} channels along axis {axis} at its end"
        )
        return None
    if any(r.type.rank <= axis or labels.shape(r)[axis] != size for r in op.results) or any(
        map(labels.of, others)
    ):
        labels.freeze_unknown(op, f"its tensors do not share the channels along axis {axis}")
        return None
    channels: Tensor | None = None
    for plane in labels.of(x):
        if axis not in varying(plane):
            labels.freeze(plane, f"channels lie along another axis of {op}")
            continue
        channels = labels.tie(plane, [a for a in varying(plane) if a != axis]).reshape(-1)
    for value in held:
        if channels is None:
            labels.freeze_value(value, f"shared with {op}, whose channels cannot be removed")
        elif labels.is_weight(value):
            labels.adopt(value, channels, f"{op}")
        else:
            merge_pointwise(
                labels,
                op,
                [([align(channels, value.type.rank)], None), (list(labels.of(value)), value)],
            )
    for result in op.results:
        shape = [1] * result.type.rank
        shape[axis] = size
        labels.set(result, [] if channels is None else [channels.reshape(shape)])
    return channels


def moves(how: Callable[..., Any] | None = None) -> Rule:
    """Say that the op moves elements of its only tensor and computes nothing. ``how`` does the same
    to integers, taking the tensor and the op's other arguments by name; without it, the op itself
    must accept integers (int64)."""

    def rule(labels: Labels, op: Op) -> None:
        x = op.value(0)
        if x is None or len(list(op.inputs)) > 1:
            labels.freeze_unknown(op, "it is registered as moving data, but reads several tensors")
            return
        labels.label_axes(x)
        shape = labels.shape(x)
        found = [_moved(op, how, expand(plane, shape)) for plane in labels.of(x)]
        for index, result in enumerate(op.results):
            planes = [pieces[index] for pieces in found]
            if any(
                plane.dtype != torch.int64 or plane.shape != labels.shape(result)
                for plane in planes
            ):
                raise UserError(
                    f"the rule of {op} does not move integers to the shape that the op gives"
                )
            labels.set(result, [compress(plane) for plane in planes])

    return rule


def _moved(op: Op, how: Callable[..., Any] | None, plane: Plane) -> list[Tensor]:
    attrs = {
        name: torch_value(attr, BATCH, False, torch.device("cpu"))
        for name, attr in op.attrs.items()
    }
    try:
        out = call(op.target, [plane], attrs) if how is None else how(plane, **attrs)
    except Exception as error:
        raise UserError(
            f"{op} is registered as moving data, but cannot be run on integers ({error}): give "
            "moves() a function"
        ) from error
    return list(out) if isinstance(out, tuple | list) else [out]
