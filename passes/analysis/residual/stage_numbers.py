"""The number of every layer of a network, and in residual networks its stage, block and place.

GReg (arXiv 2012.09243) names layers by `stage.block.conv`, read from torchvision's names. Here the
same numbers come from the graph, so that every residual network has them:

- A *block* lies between a value and the sum that its branches end in: the sum's nearest dominator.
  Sums inside a block belong to it.
- Blocks whose sums have one shape are a *stage*, from 1; a new width or resolution begins the next.
  Layers before the first block are the stem, stage 0, and those behind the last block come after
  the last stage. A layer between two blocks belongs to the stage of the block that follows.
- Inside a block, layers are numbered from 0 along the branch with most of them; the others are its
  shortcut, -1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.residual.structure import Flow, activations

__all__ = ["StagedLayer", "StagedLayers", "staged_layers"]

SHORTCUT = -1


@dataclass(frozen=True, slots=True)
class StagedLayer:
    """A convolution or linear layer: its op, weight and number in graph order, from 0.

    ``stage``, ``block`` and ``conv`` are None in networks without residual blocks; ``block`` and
    ``conv`` also outside of blocks.
    """

    op: Op
    weight: Value
    index: int
    stage: int | None = None
    block: int | None = None
    conv: int | None = None

    @property
    def module(self) -> str:
        """The name of the layer's module."""
        return self.weight.name.rpartition(".")[0] or self.weight.name

    @property
    def id(self) -> str:
        """``stage.block.conv`` as far as it is known, such as ``2.3.1`` or ``0``; the number where
        there is none."""
        parts = [part for part in (self.stage, self.block, self.conv) if part is not None]
        return ".".join(map(str, parts)) if parts else str(self.index)


@dataclass(frozen=True, slots=True)
class StagedLayers:
    """The layers of a network in graph order; ``stages`` counts the residual stages (0: there are
    none)."""

    layers: tuple[StagedLayer, ...]
    stages: int

    def of(self, op: Op) -> StagedLayer | None:
        """Return the place of an op, or of the first op that reads the same weight; None for what
        is no such layer."""
        layer = layer_weight(op)
        weight = None if layer is None else layer.value
        return next((place for place in self.layers if place.weight is weight), None)


@dataclass(frozen=True, slots=True)
class _Block:
    """The ops of a block, and those on its longest branch."""

    total: Op
    ops: frozenset[Op]
    main: frozenset[Op]


def staged_layers(graph: Graph) -> StagedLayers:
    """Return the layers of a graph: every convolution or linear layer with a parameter as weight,
    each weight once."""
    flow = Flow(graph)
    layers = _first_readers(flow.layers)
    blocks = _blocks(flow, layers.keys())
    if not blocks:
        found = (
            StagedLayer(op, weight, index) for index, (op, weight) in enumerate(layers.items())
        )
        return StagedLayers(tuple(found), 0)
    stages, numbers = _stages(blocks)
    ends = [flow.order[block.total] for block in blocks]
    convs = {op: conv for block in blocks for op, conv in _numbered(block, layers)}
    inside = {op: number for number, block in enumerate(blocks) for op in block.ops}
    places = []
    for index, (op, weight) in enumerate(layers.items()):
        if op in inside:
            stage, block = numbers[inside[op]]
            places.append(StagedLayer(op, weight, index, stage, block, convs[op]))
            continue
        following = bisect_right(ends, flow.order[op])
        after_last, before_first = following == len(blocks), following == 0
        outside = 0 if before_first else stages + 1 if after_last else numbers[following][0]
        places.append(StagedLayer(op, weight, index, outside))
    return StagedLayers(tuple(places), stages)


def _first_readers(layers: Mapping[Op, Value]) -> dict[Op, Value]:
    """Return the layers, but of those that share a weight the first alone."""
    first: dict[Value, Op] = {}
    for op, weight in layers.items():
        first.setdefault(weight, op)
    return {op: weight for weight, op in first.items()}


def _stages(blocks: list[_Block]) -> tuple[int, list[tuple[int, int]]]:
    """Return how many stages there are, and stage and number in it of every block."""
    numbers: list[tuple[int, int]] = []
    stage = count = 0
    shape: object = None
    for block in blocks:
        dims = block.total.result.type.plain().dims[1:]
        if dims != shape:
            stage, count, shape = stage + 1, 0, dims
        numbers.append((stage, count))
        count += 1
    return stage, numbers


def _numbered(block: _Block, layers: Iterable[Op]) -> Iterator[tuple[Op, int]]:
    """Yield the layers of a block with their numbers."""
    conv = 0
    for op in layers:
        if op in block.main:
            yield op, conv
            conv += 1
        elif op in block.ops:
            yield op, SHORTCUT


def _blocks(flow: Flow, layers: Set[Op]) -> list[_Block]:
    """Return the outermost residual blocks, in graph order."""
    found: list[_Block] = []
    covered: set[Op] = set()
    for total in reversed(flow.sums):
        fork = None if total in covered else flow.fork(total)
        if fork is None:
            continue
        sides = [flow.between(value, {fork}) for value in activations(total)]
        ops = frozenset().union(*sides)
        if not ops & layers:
            continue
        # A layer that feeds both branches is on the longer one.
        main = max(sides, key=lambda side: len(side & layers))
        found.append(_Block(total, ops, frozenset(main)))
        covered |= ops
    return found[::-1]
