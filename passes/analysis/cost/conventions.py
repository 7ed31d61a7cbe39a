"""The papers' conventions of what a FLOP is and which parameters count, by name.

An op costs a sum of `Count`s, each a factor times the lengths of some axes. What an op multiplies
and adds stands in its definition (`pruneopt.passes.analysis.ops`); a convention says which ops
count, and how often. Element-wise ops are no multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pruneopt.errors import UserError
from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.ops.count import Count, elements
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import definition_of, has_trait

__all__ = [
    "Convention",
    "convention_named",
    "conventions",
    "register_convention",
]


@dataclass(frozen=True)
class Convention:
    """How one system counts: ``flops`` gives the cost of an op, ``counted_params`` the weights an
    op makes count."""

    name: str
    summary: str
    flops: Callable[[Op], Iterable[Count]]
    counted_params: Callable[[Op], Iterable[Value]]


# The papers' ways of counting


def _macs(op: Op) -> Sequence[Count]:
    return definition_of(op).macs(op)


def _is_layer(op: Op) -> bool:
    """Return whether an op is a convolution or `nn.Linear`, in the forms that capture and other
    exporters give it: a product with a weight is one."""
    if has_trait(op, Trait.COUNTED_AS_LAYER):
        return True
    return has_trait(op, Trait.MATRIX_PRODUCT) and any(value.is_weight for value in op.inputs)


def _layer_macs(op: Op) -> Sequence[Count]:
    return _macs(op) if _is_layer(op) else ()


def _two_per_mac(op: Op) -> list[Count]:
    return [Count(count.axes, 2 * count.factor) for count in _macs(op)]


def _layer_flops(op: Op) -> list[Count]:
    return [Count(count.axes, 2 * count.factor) for count in _layer_macs(op)]


def _metapruning(op: Op) -> Sequence[Count]:
    known = definition_of(op)
    if Trait.LINEAR in known.traits:
        return [Count(elements(value)) for value in op.inputs if value.is_weight]
    if Trait.COUNTED_AS_LAYER in known.traits:
        return known.macs(op)
    is_relu = Trait.ACTIVATION in known.traits and op.loc.module_type == "ReLU"
    x = op.value(0)
    if x is not None and (is_relu or Trait.BATCH_NORM in known.traits):
        return [Count(elements(x))]
    return known.window(op)


def _all_params(op: Op) -> Iterable[Value]:
    return (value for value in op.inputs if value.kind == "param")


def _layer_params(op: Op) -> Iterable[Value]:
    return _all_params(op) if _is_layer(op) else ()


def _layer_weights(op: Op) -> Iterable[Value]:
    """Yield the weights of layers, which have two axes or more; biases have one."""
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
    """Return every known convention, the default first."""
    return tuple(_CONVENTIONS.values())


def convention_named(name: str) -> Convention:
    """Return the convention of that name; `UserError` with the known names if there is none."""
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
