"""Pruning schemas of pns: what of a network follows which batch norm, as its JSON files say it.

A schema names, for every Conv2d and Linear, the batch norm whose channels it reads (``prev_bn``)
and makes (``next_bn``), the batch norms that shortcuts and depthwise convolutions tie together, and
concatenations. pruneopt needs none of it: here it is written from the channel groups, and a user's
schema is checked against them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.pns.network import Layer, Network, merge_sets

__all__ = ["Cat", "Merge", "Rounding", "Schema", "Tie", "contradictions", "write_schema"]

Merge = Literal["or", "and"]
"""Of batch norms whose channels are tied: a channel stays where one of them keeps it, or all do."""
Rounding = Literal["none", "eight", "two-pow"]
"""How the number of channels that stay is rounded up: to a multiple of 8, to a power of two."""


@dataclass(frozen=True, slots=True)
class Tie:
    """Batch norms that must keep the same channels, and how what survives in each is merged."""

    names: tuple[str, ...]
    method: Merge


@dataclass(frozen=True, slots=True)
class Cat:
    """Convolutions that read the channels of several batch norms side by side."""

    norms: tuple[str, ...]
    convs: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """A schema with full names.

    ``modules``: name -> (prev_bn, next_bn), each empty where nothing is pruned.
    """

    modules: Mapping[str, tuple[str, str]]
    shortcuts: tuple[Tie, ...] = ()
    depthwise: tuple[Tie, ...] = ()
    cats: tuple[Cat, ...] = ()
    fixed: tuple[tuple[str, float], ...] = ()
    """Batch norm and the share of its channels that goes."""
    rounding: Rounding = "none"

    def methods(self, coupling: Coupling) -> dict[str, Merge]:
        """Return how tied groups are merged: by shortcut, else by depthwise pair, as in pns."""
        network = Network(coupling)
        found: dict[str, Merge] = {}
        for tie in (*self.shortcuts, *self.depthwise):
            for number in network.groups_of(network.norm_units(tie.names[0])):
                found.setdefault(coupling.groups[number].name, tie.method)
        return found

    def unpruned(self, coupling: Coupling) -> frozenset[str]:
        """Return the groups without a batch norm, which a schema leaves whole."""
        with_norm = Network(coupling).norms_of_group
        return frozenset(
            group.name for i, group in enumerate(coupling.groups) if i not in with_norm
        )


def write_schema(coupling: Coupling) -> dict[str, Any]:
    """Return the schema of a network as pns reads it, with ties merged by ``or``.

    Raises:
        UserError: the network has what no schema can say, such as a batch norm over concatenated
            channels.
    """
    network = Network(coupling)
    modules = {
        layer.name: (network.before(layer), network.after(layer))
        for layer in network.layers.values()
    }
    pairs = [
        modules[layer.name]
        for layer in network.layers.values()
        if layer.depthwise and all(modules[layer.name])
    ]
    ties = _completed(network, network.ties(), [list(pair) for pair in pairs])
    cats: dict[tuple[str, ...], list[str]] = {}
    for layer in network.layers.values():
        if layer.is_conv and (names := network.concatenated(layer)):
            cats.setdefault(tuple(names), []).append(layer.name)
    schema = Schema(
        modules,
        tuple(Tie(tuple(names), "or") for names in ties),
        tuple(Tie(pair, "or") for pair in pairs),
        tuple(Cat(names, tuple(convs)) for names, convs in cats.items()),
    )
    problem = next(chain(_beyond_pns(network), contradictions(schema, network)), None)
    if problem is not None:
        raise UserError(
            f"a pns schema cannot describe {coupling.graph.name}: {problem}; pruneopt itself needs "
            "none"
        )
    return _as_json(schema)


def _completed(network: Network, ties: list[list[str]], pairs: list[list[str]]) -> list[list[str]]:
    """Return the ties, with those of channel groups added, each sorted by name as pns does."""
    joint = merge_sets([*ties, *pairs])
    for names in network.norms_of_group.values():
        if len(names) > 1 and not any(set(names) <= set(other) for other in joint):
            ties = merge_sets([*ties, names])
    return [sorted(names) for names in ties]


def _as_json(schema: Schema) -> dict[str, Any]:
    def tied(ties: tuple[Tie, ...]) -> list[dict[str, Any]]:
        return [{"names": list(tie.names), "method": tie.method} for tie in ties]

    modules = [
        {"name": name, "prev_bn": before, "next_bn": after}
        for name, (before, after) in schema.modules.items()
    ]
    return {
        "prefix": "",
        "channel_rounding": "none",
        "modules": modules,
        "shortcuts": tied(schema.shortcuts),
        "depthwise_conv_adjacent_bn": tied(schema.depthwise),
        "cats": [
            {"input_bn_names": list(cat.norms), "output_conv_names": list(cat.convs)}
            for cat in schema.cats
        ],
        "fixed_bn_ratio": [],
    }


# What a schema says, against the channel groups


def contradictions(schema: Schema, network: Network) -> Iterator[str]:
    """Yield what a schema gets wrong about a network, each as a clause; its names must exist."""
    for name in network.norms:
        if len(network.groups_of(network.norm_units(name))) > 1:
            yield f"{name} normalises channels that are removed independently of each other"
    yield from _wrong_ties(schema, network)
    side_by_side = {conv: cat.norms for cat in schema.cats for conv in cat.convs}
    for name, (before, after) in schema.modules.items():
        layer = network.layers[name]
        yield from _wrong_outputs(network, layer, after)
        yield from _wrong_inputs(
            network, layer, side_by_side.get(name, (before,) if before else ())
        )


def _wrong_ties(schema: Schema, network: Network) -> Iterator[str]:
    ties = (*schema.shortcuts, *schema.depthwise)
    for tie in ties:
        first = network.groups_of(network.norm_units(tie.names[0]))
        for name in tie.names[1:]:
            if network.groups_of(network.norm_units(name)) != first:
                yield f"it ties {tie.names[0]} and {name}, which the network keeps apart"
    joint = merge_sets([list(tie.names) for tie in ties])
    for names in network.norms_of_group.values():
        for name in names[1:]:
            if not any({names[0], name} <= set(other) for other in joint):
                yield f"it does not tie {names[0]} and {name}, whose channels the network joins"
    methods: dict[str, str] = {}
    for tie in schema.shortcuts:
        for name in tie.names:
            if methods.setdefault(name, tie.method) != tie.method:
                yield f"it merges {name} both by 'or' and by 'and'"


def _wrong_outputs(network: Network, layer: Layer, after: str) -> Iterator[str]:
    norms = _norms_of(network, layer.made)
    if not layer.is_conv and norms:
        yield (
            f"{layer.name} makes the channels of {norms[0]}, and pns cuts only the inputs of a "
            "Linear"
        )
    elif after == "" and norms:
        yield f"{layer.name} makes the channels of {norms[0]}, but its next_bn is empty"
    elif (
        after != "" and layer.is_conv and not np.array_equal(network.norm_units(after), layer.made)
    ):
        yield (
            f"the next_bn of {layer.name} is {after}, but it does not make the channels of {after}"
        )


def _wrong_inputs(network: Network, layer: Layer, given: tuple[str, ...]) -> Iterator[str]:
    norms = _norms_of(network, layer.read)
    if not given:
        if norms:
            yield f"{layer.name} reads the channels of {norms[0]}, but its prev_bn is empty"
        return
    units = np.concatenate([network.norm_units(name) for name in given])
    if not layer.is_conv and len(layer.read) % len(units) == 0:
        units = np.repeat(units, len(layer.read) // len(units))
    if not np.array_equal(units, layer.read):
        found = f"it reads the channels of {', '.join(norms)}" if norms else "it reads others"
        yield f"{layer.name} is said to read the channels of {', '.join(given)}, but {found}"


def _norms_of(network: Network, units: np.ndarray) -> list[str]:
    """Return the batch norms that share groups with some units, in graph order."""
    found = {
        name
        for number in network.groups_of(units)
        for name in network.norms_of_group.get(number, [])
    }
    return [name for name in network.norms if name in found]


def _beyond_pns(network: Network) -> Iterator[str]:
    """Weights that would have to be cut along, and that pns does not know."""
    known = {layer.weight.value.name.rpartition(".")[0] for layer in network.layers.values()} | set(
        network.norms
    )
    for layer in network.layers.values():
        if layer.grouped and _norms_of(network, np.concatenate([layer.made, layer.read])):
            yield f"{layer.name} is a convolution in groups, which pns cannot cut"
    for slot in network.coupling.slots:
        held = slot.value.is_weight and slot.value.name.rpartition(".")[0] not in known
        if held and any(
            number in network.norms_of_group for number in network.groups_of(slot.units)
        ):
            yield (
                f"{slot.value.name} holds channels of batch norms, and pns cuts Conv2d, "
                "BatchNorm2d and Linear only"
            )
