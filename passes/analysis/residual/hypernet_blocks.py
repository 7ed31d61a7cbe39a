"""Which block every layer stands in, and what it does there, read from the channel groups and the
flow between layers.

MetaPruning (Liu et al., ICCV 2019, arXiv 1903.10258) feeds the hypernetwork of a weight with the
widths of the weight's own block, and its final training decays weights by what they do in the
block. No layer is named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.residual.structure import ResidualStructure, is_depthwise

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
    """Return the place of every layer whose weight is a parameter, in graph order; embeddings are
    no layers here."""
    finder = _Finder(ResidualStructure(coupling))
    for op in finder.structure.output_layers():
        finder.claim(op, "output", None)
    finder.inverted_residuals()
    finder.residual_branches()
    finder.separable()
    finder.shortcuts()
    for op in finder.layers:
        finder.claim(op, "alone", None)
    return [finder.places[op] for op in finder.layers]


@dataclass(frozen=True, slots=True)
class _Branch:
    """A residual branch: what it reads and makes, its groups for a hypernetwork, and its last
    layer."""

    read: tuple[str, ...]
    made: tuple[str, ...]
    groups: tuple[str, ...]
    last: Op


class _Finder:
    """The places that are known so far. The first claim of a layer holds, so blocks are looked for
    from the most special kind to the least."""

    def __init__(self, structure: ResidualStructure) -> None:
        self.structure = structure
        self.flow = structure.flow
        self.layers = structure.flow.layers
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
        """Return the groups along the output axis of a layer's weight."""
        return self.structure.groups_along(op, made=True)

    def read(self, op: Op) -> tuple[str, ...]:
        """Return the groups that a layer reads; a depthwise layer reads what it makes."""
        return self.structure.groups_along(op, made=is_depthwise(op))

    # Blocks

    def inverted_residuals(self) -> None:
        """Claim expand, depthwise, project: nobody but layers right behind the depthwise ones reads
        what they make."""
        for name, deep in self.structure.deep.items():
            behind = self._behind(deep)
            expand = {op for item in deep for op in self.flow.before[item]} - set(deep)
            if len(expand) != 1 or not behind or not set(self.structure.read[name]) <= set(behind):
                continue
            first, last = expand.pop(), behind[-1]
            # A layer right behind a depthwise one is that one's pointwise (MobileNetV1), not an
            # expansion.
            pointwise = any(is_depthwise(op) for op in self.flow.before[first])
            if pointwise or not self.read(first) or last in self.places:
                continue
            groups = (name, *self.read(first), *self.made(last))
            self.claim(first, "expand", groups, inverted=True)
            for op in deep:
                self.claim(op, "depthwise", groups, inverted=True)
            self.claim(last, "project", groups, inverted=True)

    def residual_branches(self) -> None:
        """Claim the layers of a chain up to the one that makes a sum."""
        for chain in self.structure.chains():
            makers = [self.structure.made[name][0] for name in chain]
            last = self.structure.read[chain[-1]][0]
            read, made = self.read(makers[0]), self.made(last)
            groups = (chain[0], *read, *made)
            self.branches.append(_Branch(read, made, groups, last))
            for op in (*makers, last):
                self.claim(op, "branch", groups)

    def separable(self) -> None:
        """Claim a depthwise layer and the last layer right behind it, or the block in which that
        one stands."""
        for op in filter(is_depthwise, self.layers):
            behind = self._behind([op])
            if not behind or op in self.places:
                continue
            last = self.places.get(behind[-1])
            if last is None:
                groups = (*self.read(op), *self.made(behind[-1]))
            elif last.block:
                groups = last.groups
            else:
                continue
            self.claim(op, "depthwise", groups)
            self.claim(behind[-1], "pointwise", groups)

    def shortcuts(self) -> None:
        """Claim layers that read what a residual branch reads and make what it makes: they are part
        of the nearest such branch."""
        order = self.flow.order
        for op in self.layers:
            read, made = self.read(op), self.made(op)
            beside = [item for item in self.branches if (item.read, item.made) == (read, made)]
            if beside and any(len(self.structure.made[name]) > 1 for name in made):
                nearest = min(beside, key=lambda item: abs(order[item.last] - order[op]))
                self.claim(op, "shortcut", nearest.groups)

    def _behind(self, ops: Sequence[Op]) -> list[Op]:
        """Return the layers right behind some layers, in graph order."""
        found = {op for item in ops for op in self.flow.after[item]} - set(ops)
        return sorted(found, key=self.flow.order.__getitem__)
