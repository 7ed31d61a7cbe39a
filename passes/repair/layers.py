"""The layers that repair may change, in the original and in the cut network, and where a constant
can be added to one.

A constant per output channel goes into the layer's own bias, into a parameter that is added right
behind it, into the running mean of the batch norm behind it (with the opposite sign), or into a
bias that is made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.schema import DTYPES
from pruneopt.ir.types import TensorType
from pruneopt.passes.analysis.channels.layer_weight import Contraction, LayerWeight
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import has_trait

__all__ = [
    "BiasTarget",
    "Site",
    "add_constant",
    "find_bias_target",
    "make_bias",
    "sites_of",
    "twins",
]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One call of a layer.

    Attributes:
        old, op: the op in the original and in the cut network.
        weight: of the cut network; every call of a shared layer has the same.
        layer: the weight's axes.
        met: where it meets the activation, and where the bias stands.
    """

    old: Op
    op: Op
    weight: Value
    layer: LayerWeight
    met: Contraction

    @property
    def x(self) -> int:
        """The number of the operand that is the activation."""
        return self.met.operand

    @property
    def bias(self) -> int | None:
        """The number of the operand that is the bias; None where the op has no place for one."""
        return self.met.bias

    @property
    def out_axis(self) -> int:
        """The axis of the output channels in the result."""
        return self.met.result_axis

    @property
    def outputs(self) -> int:
        """How many output channels are left."""
        return self.op.result.type.shape()[self.out_axis]

    @property
    def name(self) -> str:
        """The layer's module, or the op where it has none."""
        return self.op.loc.module or str(self.op)


def twins(original: Graph, cut: Graph) -> dict[Op, Op]:
    """Return the op of the cut network for every op of the original: the one whose results have the
    same names.

    Raises:
        UserError: the cut network has other ops.
    """
    named = {op.results[0].name: op for op in cut.ops if op.results}
    found = {op: named.get(op.results[0].name) for op in original.ops if op.results}
    missing = [old for old, op in found.items() if op is None]
    if missing:
        raise UserError(
            f"the network was rebuilt since it was cut ({missing[0]} is gone): repair right after "
            "verify"
        )
    return {old: op for old, op in found.items() if op is not None}


def sites_of(original: Graph, cut: Graph) -> list[Site]:
    """Return every layer that contracts an activation with a weight of its own, in graph order."""
    pairs = twins(original, cut)
    return [site for old, op in pairs.items() if (site := _site(old, op)) is not None]


def _site(old: Op, op: Op) -> Site | None:
    layer = layer_weight(op)
    if layer is None or layer.in_axis is None or not layer.value.is_weight:
        return None
    met = layer.contraction
    if met is None or op.needed(met.operand).is_weight:
        return None
    return Site(old, op, layer.value, layer, met)


# Where a constant goes


@dataclass(frozen=True, slots=True)
class BiasTarget:
    """The place of a constant per output channel; equal targets are one place (`value` is
    compared by identity)."""

    kind: Literal["bias", "running mean", "new bias"]
    value: Value
    """The bias, the running mean, or for a new bias the layer's weight."""


def find_bias_target(graph: Graph, site: Site) -> BiasTarget | str:
    """Return where a constant can be added to the outputs of a layer of ``graph``; a string says
    why it cannot.

    A place that other layers use as well is none.
    """
    own = None if site.bias is None else site.op.operands[site.bias]
    if (
        isinstance(own, Value)
        and _is_bias(site, own)
        and _all_of(own, site.weight, lambda user: user)
    ):
        return BiasTarget("bias", own)
    follower = _only_reader(graph, site.op.result)
    if (
        follower is not None
        and has_trait(follower, Trait.BATCH_NORM)
        and follower.operands[0] is site.op.result
    ):
        mean = follower.value(3)
        if site.out_axis == 1 and (follower.attrs["training"] is True or mean is None):
            return (
                "the batch norm behind it takes the mean of each batch, which removes any constant"
            )
        if site.out_axis == 1 and mean is not None and _all_of(mean, site.weight, _before):
            return BiasTarget("running mean", mean)
    if (
        follower is not None
        and has_trait(follower, Trait.ADD)
        and follower.attrs.get("alpha", 1) == 1
    ):
        added = next((value for value in follower.inputs if value is not site.op.result), None)
        if (
            added is not None
            and _is_per_channel(site, added)
            and _all_of(added, site.weight, _before)
        ):
            return BiasTarget("bias", added)
    if site.bias is not None and own is None:
        return BiasTarget("new bias", site.weight)
    if own is None and site.out_axis == site.op.result.type.rank - 1 and site.weight.type.rank == 2:
        return BiasTarget("new bias", site.weight)
    return "it has no bias of its own, and none can be added"


def _is_bias(site: Site, value: Value) -> bool:
    """Return whether a bias operand holds one number per output channel, added as it is."""
    scaled = any(site.op.attrs.get(name, 1) != 1 for name in ("alpha", "beta"))
    return (
        value.kind == "param"
        and value.type.shape()[-1:] == (site.outputs,) == (_size(value),)
        and not scaled
    )


def _is_per_channel(site: Site, value: Value) -> bool:
    """Return whether a value added to the result is a parameter with one number per output channel,
    along that axis."""
    rank = site.op.result.type.rank
    shape = value.type.shape()
    aligned = (1,) * (rank - len(shape)) + shape
    return (
        value.kind == "param"
        and len(aligned) == rank
        and aligned[site.out_axis] == site.outputs == _size(value)
    )


def _size(value: Value) -> int:
    return int(torch.Size(value.type.shape()).numel())


def _only_reader(graph: Graph, value: Value) -> Op | None:
    """Return the op that alone reads a value, once."""
    readers = [op for op in value.users for item in op.inputs if item is value]
    return readers[0] if len(readers) == 1 and value not in graph.output_values else None


def _before(op: Op) -> Op | None:
    """Return the layer whose result a batch norm or an addition reads."""
    results = (value.producer for value in op.inputs if value.producer is not None)
    return next(results, None)


def _all_of(value: Value, weight: Value, layer_of: Callable[[Op], Op | None]) -> bool:
    """Return whether every reader of a parameter belongs to a call of the layer with this
    weight."""
    for user in value.users:
        layer = layer_of(user)
        found = None if layer is None else layer_weight(layer)
        if found is None or found.value is not weight:
            return False
    return True


def make_bias(graph: Graph, sites: Sequence[Site]) -> BiasTarget:
    """Give the calls of one layer a bias of zeros, named after the weight (``fc.weight``,
    ``fc.bias``).

    Where the op has no place for a bias, an addition follows it.
    """
    weight, outputs = sites[0].weight, sites[0].outputs
    name, alias_of = _bias_name(graph, weight.name)
    bias = graph.add_param(name, TensorType(weight.type.dtype, (outputs,)), "param")
    like = graph.weights[weight.name]
    graph.weights[name] = torch.zeros(outputs, dtype=DTYPES[weight.type.dtype], device=like.device)
    graph.aliases.update(dict.fromkeys(alias_of, name))
    for site in sites:
        if site.bias is not None:
            graph.set_operand(site.op, site.bias, bias)
        else:
            _add_behind(graph, site.op, bias)
    return BiasTarget("bias", bias)


def _bias_name(graph: Graph, weight: str) -> tuple[str, Iterator[str]]:
    """Return a free name for the bias, and the names it has under the aliases of the weight."""

    def named(text: str) -> str:
        prefix, _, leaf = text.rpartition(".")
        return f"{prefix}.bias" if prefix and leaf == "weight" else f"{text}_bias"

    taken = {*graph.params, *graph.aliases}
    base = named(weight)
    name = next(text for text in _numbered(base) if text not in taken)
    aliases = (named(alias) for alias, target in list(graph.aliases.items()) if target == weight)
    return name, (alias for alias in aliases if name == base and alias not in taken)


def _numbered(text: str) -> Iterator[str]:
    yield text
    number = 0
    while True:
        number += 1
        yield f"{text}_{number}"


def _add_behind(graph: Graph, op: Op, bias: Value) -> None:
    """Put an addition behind an op; whoever read the op's result reads the sum."""
    ops = graph.ops
    after = ops[ops.index(op) + 1] if op is not ops[-1] else None
    result = op.result
    name = graph.fresh_name(f"{result.name}_biased")
    made = graph.add_op(
        "aten.add.Tensor", (result, bias), {"alpha": 1}, [(name, result.type)], op.loc, before=after
    )
    graph.replace_uses(result, made.result, lambda user: user is not made)


def add_constant(graph: Graph, target: BiasTarget, shift: Tensor) -> Tensor:
    """Add a constant to the outputs of a target's layers; return what it became in their dtype.

    ``shift`` is float64, one number per output channel.
    """
    sign = -1 if target.kind == "running mean" else 1
    old = graph.weights[target.value.name]
    # A new tensor: others may hold the old one.
    new = (old.double() + sign * shift.to(old.device).reshape(old.shape)).to(old.dtype)
    graph.weights[target.value.name] = new
    return sign * (new.double() - old.double()).reshape(-1)
