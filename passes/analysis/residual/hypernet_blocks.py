"""Which block every layer stands in, and what it does there, read from the channel groups and the
flow between layers.

MetaPruning (Liu et al., ICCV 2019, arXiv 1903.10258) feeds the hypernetwork of a weight with the
widths of the weight's own block, and its final training decays weights by what they do in the
block. No layer is named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.groups import Coupling, groups_in
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.residual.gene_order import (
    Structure,
    is_depthwise,
    output_layers,
    residual_branches,
)

__all__ = ["LayerPlace", "Role", "layer_places"]

Role = Literal[
    "output", "expand", "depthwise", "project", "pointwise", "branch", "shortcut", "alone"
]


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """A layer with a weight of its own, its part in its block, and the block's groups.

    Attributes:
        op: the layer.
        weight: its parameter.
        role: ``expand``, ``depthwise`` and ``project`` of an inverted residual; ``depthwise`` and
            ``pointwise`` of a separable convolution; ``branch`` inside a residual branch and
            ``shortcut`` beside it; ``output`` for a layer that makes the network's outputs;
            ``alone`` for all others.
        groups: of a block ``(mid, in, out)``, of a separable convolution ``(in, out)``, of a layer
            outside any block those it reads and those it makes. Input and output may be several
            groups, or none (the image).
        block: whether the layer stands in a block.
        inverted: whether that block is an inverted residual: a depthwise layer between an expansion
            and a projection.
    """

    op: Op
    weight: Value
    role: Role
    groups: tuple[str, ...]
    block: bool
    inverted: bool


def layer_places(coupling: Coupling) -> list[LayerPlace]:
    """The place of every layer whose weight is a parameter, in graph order; embeddings are no
    layers here."""
    finder = _Finder(coupling)
    for op in output_layers(coupling, finder.structure):
        finder.claim(op, "output", None)
    finder.inverted_residuals()
    finder.residual_branches()
    finder.separable()
    finder.shortcuts()
    for op in finder.layers:
        finder.claim(op, "alone", None)
    return [finder.places[op] for op in coupling.graph.ops if op in finder.places]


@dataclass(frozen=True, slots=True)
class _Branch:
    """A residual branch: what it reads and makes, its groups for a hypernetwork, and its last
    layer."""

    read: tuple[str, ...]
    made: tuple[str, ...]
    groups: tuple[str, ...]
    last: Op


class _Finder:
    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.structure = Structure(coupling)
        self.layers = {
            op: weight for op in coupling.graph.ops if (weight := _own_weight(op)) is not None
        }
        self.place_of = {op: number for number, op in enumerate(coupling.graph.ops)}
        self.before = _feeders(coupling)
        self.after: dict[Op, list[Op]] = {}
        for op, feeders in self.before.items():
            for feeder in feeders:
                self.after.setdefault(feeder, []).append(op)
        self.places: dict[Op, LayerPlace] = {}
        self.branches: list[_Branch] = []

    def claim(
        self, op: Op, role: Role, groups: tuple[str, ...] | None, inverted: bool = False
    ) -> None:
        """Give a layer its place, unless it has one; without ``groups`` its own."""
        if op in self.layers and op not in self.places:
            own = (*self.read(op), *(() if is_depthwise(op) else self.made(op)))
            block = groups is not None
            self.places[op] = LayerPlace(op, self.layers[op], role, groups or own, block, inverted)

    def made(self, op: Op) -> tuple[str, ...]:
        """The groups along the output axis of a layer's weight."""
        return self._groups(op, made=True)

    def read(self, op: Op) -> tuple[str, ...]:
        """The groups that a layer reads; a depthwise layer reads what it makes."""
        return self._groups(op, made=is_depthwise(op))

    def _groups(self, op: Op, *, made: bool) -> tuple[str, ...]:
        layer = layer_weight(op)
        if layer is None:
            return ()
        slots = [
            slot for slot in self.coupling.slots_of(layer.value) if layer.makes(slot.axes) == made
        ]
        numbers = [number for slot in slots for number in groups_in(slot, self.coupling.unit_group)]
        return tuple(self.coupling.groups[number].name for number in dict.fromkeys(numbers))

    # Blocks

    def inverted_residuals(self) -> None:
        """Expand, depthwise, project: nobody but layers right behind the depthwise ones reads what
        they make."""
        for group in self.coupling.groups:
            deep = [op for op in self.coupling.producers(group) if is_depthwise(op)]
            behind = sorted(
                {op for item in deep for op in self.after.get(item, ())} - set(deep),
                key=self._order,
            )
            expand = {op for item in deep for op in self.before[item]} - set(deep)
            if (
                len(expand) != 1
                or not behind
                or not set(self.structure.read[group.name]) <= set(behind)
            ):
                continue
            first, last = expand.pop(), behind[-1]
            # A layer right behind a depthwise one is that one's pointwise (MobileNetV1), not an
            # expansion.
            if (
                not self.read(first)
                or any(is_depthwise(op) for op in self.before[first])
                or last in self.places
            ):
                continue
            groups = (group.name, *self.read(first), *self.made(last))
            self.claim(first, "expand", groups, inverted=True)
            for op in deep:
                self.claim(op, "depthwise", groups, inverted=True)
            self.claim(last, "project", groups, inverted=True)

    def residual_branches(self) -> None:
        """The layers of a chain up to the one that makes a sum."""
        for chain in residual_branches(self.coupling):
            first = self.structure.made[chain[0]][0]
            last = self.structure.read[chain[-1]][0]
            read, made = self.read(first), self.made(last)
            groups = (chain[0], *read, *made)
            self.branches.append(_Branch(read, made, groups, last))
            for op in (*(self.structure.made[name][0] for name in chain), last):
                self.claim(op, "branch", groups)

    def separable(self) -> None:
        """A depthwise layer and the last layer right behind it, or the block in which that one
        stands."""
        for op in self.layers:
            behind = sorted(self.after.get(op, ()), key=self._order) if is_depthwise(op) else []
            last = behind[-1] if behind else None
            if (
                last is None
                or op in self.places
                or (last in self.places and not self.places[last].block)
            ):
                continue
            groups = (
                self.places[last].groups
                if last in self.places
                else (*self.read(op), *self.made(last))
            )
            self.claim(op, "depthwise", groups)
            self.claim(last, "pointwise", groups)

    def shortcuts(self) -> None:
        """Layers that read what a residual branch reads and make what it makes: part of the nearest
        such branch."""
        for op in self.layers:
            read, made = self.read(op), self.made(op)
            beside = [item for item in self.branches if (item.read, item.made) == (read, made)]
            if beside and any(len(self.structure.made[name]) > 1 for name in made):
                nearest = min(
                    beside, key=lambda item: abs(self._order(item.last) - self._order(op))
                )
                self.claim(op, "shortcut", nearest.groups)

    def _order(self, op: Op) -> int:
        return self.place_of[op]


def _own_weight(op: Op) -> Value | None:
    """The parameter that a layer multiplies by, if it is one tensor of the network's own."""
    layer = layer_weight(op)
    return (
        layer.value
        if layer is not None and layer.value.kind == "param" and op.base != "embedding"
        else None
    )


def _feeders(coupling: Coupling) -> dict[Op, set[Op]]:
    """For every layer those whose results it reads with no other layer between."""
    sources: dict[Value, set[Op]] = {}
    found: dict[Op, set[Op]] = {}
    for op in coupling.graph.ops:
        into = set().union(*(sources.get(value, set()) for value in op.inputs))
        layer = layer_weight(op) is not None
        if layer:
            found[op] = into
        for value in op.results:
            sources[value] = {op} if layer else into
    return found
