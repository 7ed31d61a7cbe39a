"""Numbers that prove nothing: NaN, and infinities that were computed rather than written."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.types import Attr

__all__ = ["all_finite", "check_finite", "check_weights", "holds_infinity", "may_hold_infinity"]

RUNNING = ("running_mean", "running_var")
WHOLE = ("bool", "u8", "i8", "i16", "i32", "i64")
UNWRITTEN = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})


def check_weights(graph: Graph) -> None:
    """Raise `UserError` that names a weight with which a network computes no numbers.

    It holds NaN or infinity, or is a variance of which no root can be taken. Constants may be
    infinite: attention masks hold -inf by design.
    """
    for name, value in graph.params.items():
        tensor = graph.weights.get(name)
        if tensor is None or tensor.is_meta or not tensor.is_floating_point():
            continue
        # A sum is finite only if all terms are, and far faster to take than a test of each.
        if tensor.detach().sum().isfinite():
            continue
        strict = value.kind == "param" or name.rpartition(".")[2] in RUNNING
        bad = int((~tensor.isfinite() if strict else tensor.isnan()).sum())
        if bad:
            raise UserError(
                f"{name}{_reader(value)} holds {bad} NaN or infinite values of {tensor.numel()}: "
                "use weights from before training diverged"
            )
    for op in graph.ops:
        variance = op.value(4) if op.base == "batch_norm" else None
        tensor = None if variance is None else graph.weights.get(variance.name)
        eps = op.attrs.get("eps")
        if variance is None or tensor is None or tensor.is_meta or not isinstance(eps, float):
            continue
        least = float(tensor.min()) if tensor.numel() else 0.0
        if least + eps <= 0 and op.attrs["training"] is not True:
            raise UserError(
                f"{variance.name}{_reader(variance)} holds {least:g}, and batch norm takes the "
                f"root of it and eps={eps:g}: a variance is never below 0"
            )


def _reader(value: Value) -> str:
    return f", read by {value.users[0]}," if value.users else ""


def check_finite(graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Any:
    """Run a graph in evaluation mode and return its outputs.

    Raises `UserError` that names the first op which makes NaN, or infinity of finite numbers.
    """
    infinite = {value for name, value in graph.params.items() if holds_infinity(weights[name])}
    outputs = set(graph.output_values)
    with torch.no_grad():
        steps = Interpreter(graph).steps(weights, *inputs)
        while True:
            try:
                op, results = next(steps)
            except StopIteration as end:
                return end.value
            for value, tensor in zip(op.results, results, strict=True):
                unread = not value.users and value not in outputs
                if unread or op.base in UNWRITTEN or all_finite(tensor):
                    continue
                infinite.add(value)
                if tensor.isnan().any() or not may_hold_infinity(op, infinite):
                    raise UserError(_named(graph, op, tensor))


def _named(graph: Graph, op: Op, tensor: Tensor) -> str:
    what = "NaN" if tensor.isnan().any() else f"a number beyond what {tensor.dtype} holds"
    read = [value.name for value in op.inputs if value.is_weight and value.kind != "constant"]
    weights = f", with the weights {', '.join(read)}" if read else ""
    return (
        f"{graph.name} computes {what} at {op}{weights}: nothing can be said of a network whose "
        "values are not finite"
    )


def may_hold_infinity(op: Op, infinite: Container[Value]) -> bool:
    """Tell whether infinities in an op's results were written, not computed.

    They come with an operand that is in ``infinite``, stand in the op itself, or are the logarithms
    of a mask.
    """
    return (
        any(value in infinite for value in op.inputs)
        or any(map(_is_infinite, (*op.attrs.values(), *op.operands)))
        or (op.base == "log" and _of_whole_numbers(op))
    )


def _of_whole_numbers(op: Op) -> bool:
    source = op.value(0)
    while source is not None and source.producer is not None:
        if source.type.dtype in WHOLE:
            return True
        source = source.producer.value(0)
    return source is not None and source.type.dtype in WHOLE


def _is_infinite(attr: Attr | Operand) -> bool:
    if isinstance(attr, tuple):
        return any(map(_is_infinite, attr))
    return isinstance(attr, float) and math.isinf(attr)


def holds_infinity(tensor: Tensor) -> bool:
    """Tell whether there is an infinity in a tensor."""
    return not all_finite(tensor) and bool(tensor.isinf().any())


def all_finite(tensor: Any) -> bool:
    """Tell whether there is neither NaN nor infinity in a tensor."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel():
        return True
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # A sum may overflow where no term does.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
