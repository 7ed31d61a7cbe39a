"""What a FLOP is, and which parameters count: the conventions of the papers, by name.

An op costs a sum of `Count`s, each a factor times the lengths of some axes; nothing here knows how
long the axes are after pruning. What a convention does not name costs nothing in it: element-wise
ops are no multiply-accumulates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pruneopt.errors import UserError
from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import numbers
from pruneopt.passes.analysis.ops.einsum import terms_of
from pruneopt.passes.analysis.ops.layers import GATES

__all__ = [
    "Convention",
    "Count",
    "convention_named",
    "conventions",
    "elements",
    "register_convention",
]

AxisOf = tuple[Value, int]


@dataclass(frozen=True, slots=True)
class Count:
    """``factor`` times the product of the lengths of ``axes`` (at batch 1)."""

    axes: tuple[AxisOf, ...]
    factor: int = 1


def elements(value: Value, start: int = 0) -> tuple[AxisOf, ...]:
    """The axes of a value from ``start`` on: their product is its number of elements."""
    return tuple((value, axis) for axis in range(start, value.type.rank))


@dataclass(frozen=True)
class Convention:
    """How one system counts: ``flops`` gives the cost of an op, ``counted_params`` the weights an
    op makes count."""

    name: str
    summary: str
    flops: Callable[[Op], Iterable[Count]]
    counted_params: Callable[[Op], Iterable[Value]]


# Multiply-accumulates

CONVS = ("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "deform_conv2d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PRODUCTS = {
    "linear": 0,
    "matmul": 0,
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "dot": 0,
    "addmm": 1,
    "baddbmm": 1,
    "addmv": 1,
}
"""Products of two matrices, with the number of the operand whose last axis is summed over."""


def _conv(op: Op) -> list[Count]:
    """Every output value sums over its group's input channels and the kernel; transposed, every
    input value."""
    x, weight = op.operands[:2]
    if not isinstance(x, Value) or not isinstance(weight, Value):
        return []
    transposed = op.role in TRANSPOSED or op.attrs.get("transposed") is True
    return [Count(elements(x if transposed else op.result) + elements(weight, 1))]


def _product(op: Op) -> list[Count]:
    left = op.value(PRODUCTS[op.role])
    return [] if left is None else [Count((*elements(op.result), (left, left.type.rank - 1)))]


def _tensordot(op: Op) -> list[Count]:
    """Every value of the result sums over the named axes of the first operand."""
    left = op.value(0)
    summed = numbers(op, "dims_self")
    return (
        []
        if left is None
        else [Count((*elements(op.result), *((left, a % left.type.rank) for a in summed)))]
    )


def _bilinear(op: Op) -> list[Count]:
    """Every row meets the whole weight `[outputs, first inputs, second inputs]`."""
    weight = op.value(2)
    return [] if weight is None else [Count((*elements(op.result)[:-1], *elements(weight)))]


def _attention(op: Op) -> list[Count]:
    """Scores (every query value meets every key) and their product with the values."""
    query, key = op.value(0), op.value(1)
    if query is None or key is None:
        return []
    keys = (key, key.type.rank - 2)
    return [Count((*elements(query), keys)), Count((*elements(op.results[0]), keys))]


def _recurrent(op: Op) -> list[Count]:
    """Every weight matrix meets every time step (of `lstm.input` and its like: one tensor, not
    packed sequences)."""
    x, weights = op.value(0), op.operands[-1]
    if x is None or not isinstance(weights, tuple):
        return []
    matrices = [weight for weight in weights if weight is not None and weight.type.rank == 2]
    return [Count(elements(x)[:-1] + elements(weight)) for weight in matrices]


def _einsum(op: Op) -> list[Count]:
    """Pairwise, in the order of the op's path or from left to right: the product of all indices of
    the pair.

    An index that only one of the two has, and that nothing reads later, is summed out before.
    """
    entries = op.operands[0]
    if not isinstance(entries, tuple):
        return []
    tensors = [tensor for tensor in entries if tensor is not None]
    terms, output = terms_of(op, [tensor.type.rank for tensor in tensors])
    axis: dict[str, AxisOf] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for position, index in enumerate(term):
            if index not in axis or tensor.type.shape()[position] != 1:
                axis[index] = (tensor, position)
    kept = set(output)
    counts = []
    left = [set(term) for term in terms]
    for first, second in _pairs(op, len(left)):
        a, b = left[first], left[second]
        rest = [term for i, term in enumerate(left) if i not in (first, second)]
        later = kept.union(*rest)
        counts.append(Count(tuple(axis[index] for index in sorted((a & b) | ((a | b) & later)))))
        # A path names the pair's places before both are taken out; without one, the result goes on
        # from the left.
        left = [*rest, (a | b) & later] if op.attrs.get("path") else [(a | b) & later, *rest]
    return counts


def _pairs(op: Op, count: int) -> list[tuple[int, int]]:
    path = op.attrs.get("path")
    if not isinstance(path, tuple):
        return [(0, 1)] * (count - 1)
    numbers = [number for number in path if isinstance(number, int)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _macs(op: Op) -> list[Count]:
    if op.role in CONVS or op.role in TRANSPOSED:
        return _conv(op)
    if op.role in PRODUCTS:
        return _product(op)
    if "scaled_dot_product" in op.role:
        return _attention(op)
    if op.role in GATES:
        return _recurrent(op)
    special = {"einsum": _einsum, "tensordot": _tensordot, "bilinear": _bilinear}.get(op.role)
    return [] if special is None else special(op)


# The papers' ways of counting


def _is_linear(op: Op) -> bool:
    """A product with a weight: nn.Linear in the forms capture and other exporters give it."""
    return op.role == "linear" or (
        op.role in PRODUCTS and any(value.is_weight for value in op.inputs)
    )


def _is_layer(op: Op) -> bool:
    return op.role in CONVS or op.role in TRANSPOSED or _is_linear(op)


def _layer_macs(op: Op) -> list[Count]:
    return _macs(op) if _is_layer(op) else []


def _two_per_mac(op: Op) -> list[Count]:
    return [Count(count.axes, 2 * count.factor) for count in _macs(op)]


def _layer_flops(op: Op) -> list[Count]:
    return [Count(count.axes, 2 * count.factor) for count in _layer_macs(op)]


def _metapruning(op: Op) -> list[Count]:
    if op.role in CONVS or op.role in TRANSPOSED:
        return _conv(op)
    if op.role == "linear":
        return [Count(elements(value)) for value in op.inputs if value.is_weight]
    x = op.value(0)
    if x is not None and (
        op.role == "batch_norm" or (op.role == "relu" and op.loc.module_type == "ReLU")
    ):
        return [Count(elements(x))]
    if op.role.startswith(("max_pool", "avg_pool")):
        return [Count(elements(op.results[0]), _window(op))]
    return []


def _window(op: Op) -> int:
    """The number of values under a pooling window; one number stands for all its sides."""
    size = op.attrs["kernel_size"]
    sides = (
        [side for side in size if isinstance(side, int)]
        if isinstance(size, tuple)
        else [int(str(size))]
    )
    dimensions = int(op.role.split("pool")[1][0])
    return math.prod(sides) if len(sides) == dimensions else sides[0] ** dimensions


def _all_params(op: Op) -> Iterable[Value]:
    return (value for value in op.inputs if value.kind == "param")


def _layer_params(op: Op) -> Iterable[Value]:
    return _all_params(op) if _is_layer(op) else ()


def _layer_weights(op: Op) -> Iterable[Value]:
    """Weights have two axes or more, biases one."""
    return (value for value in _layer_params(op) if value.type.rank > 1)


_CONVENTIONS: dict[str, Convention] = {}


def register_convention(convention: Convention) -> None:
    """Make a convention known by its name; `UserError` if the name is taken."""
    if convention.name in _CONVENTIONS:
        raise UserError(
            f"a FLOPs convention named '{convention.name}' exists already: choose another name"
        )
    _CONVENTIONS[convention.name] = convention


def conventions() -> tuple[Convention, ...]:
    """Every known convention, the default first."""
    return tuple(_CONVENTIONS.values())


def convention_named(name: str) -> Convention:
    """The convention of that name; `UserError` with the known names if there is none."""
    if name not in _CONVENTIONS:
        raise UserError(
            f"there is no FLOPs convention '{name}': known are {', '.join(_CONVENTIONS)}"
        )
    return _CONVENTIONS[name]


for _item in (
    Convention(
        "macs",
        "multiply-accumulates of convolutions, products, attention; all parameters",
        _macs,
        _all_params,
    ),
    Convention(
        "2x",
        "two FLOPs per multiply-accumulate of `macs`; all parameters",
        _two_per_mac,
        _all_params,
    ),
    Convention(
        "metapruning",
        "conv MACs, linear weights and biases, inputs of batch norm and of ReLU modules, k*k per "
        "pooled value "
        "(MetaPruning, arXiv 1903.10258, as its released code counts)",
        _metapruning,
        _all_params,
    ),
    Convention(
        "eagleeye",
        "MACs of convolutions and linear layers; parameters are their weights alone (EagleEye, "
        "arXiv 2007.02491)",
        _layer_macs,
        _layer_weights,
    ),
    Convention(
        "greg",
        "two FLOPs per MAC of convolutions and linear layers; parameters are theirs with biases "
        "(GReg, arXiv 2012.09243)",
        _layer_flops,
        _layer_params,
    ),
):
    register_convention(_item)
