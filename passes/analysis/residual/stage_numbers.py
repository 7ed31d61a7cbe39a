"""Where the layers of a network stand: their number, and in residual networks the stage, block and
place in it.

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

from collections.abc import Iterator
from dataclasses import dataclass

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.passes.analysis.ops.layers import layer_weight

__all__ = ["Place", "Places", "find_places"]

SUMS = ("add", "add_")
SHORTCUT = -1


@dataclass(frozen=True, slots=True)
class Place:
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
class Places:
    """The layers of a network in graph order; ``stages`` counts the residual stages (0: there are
    none)."""

    layers: tuple[Place, ...]
    stages: int

    def of(self, op: Op) -> Place | None:
        """The place of an op, or of the first op that reads the same weight; None for what is no
        such layer."""
        layer = layer_weight(op)
        weight = None if layer is None else layer.value
        return next((place for place in self.layers if place.weight is weight), None)


@dataclass(frozen=True, slots=True)
class _Block:
    """The ops of a block, and those on its longest branch."""

    total: Op
    ops: frozenset[Op]
    main: frozenset[Op]


def find_places(graph: Graph) -> Places:
    """The layers of a graph: every convolution or linear layer with a parameter as weight, each
    weight once."""
    layers = _layers(graph)
    blocks = _blocks(graph, set(layers))
    if not blocks:
        found = (Place(op, weight, index) for index, (op, weight) in enumerate(layers.items()))
        return Places(tuple(found), 0)
    stages, numbers = _stages(blocks)
    order = {op: number for number, op in enumerate(graph.ops)}
    ends = [order[block.total] for block in blocks]
    convs = {op: conv for block in blocks for op, conv in _numbered(block, layers)}
    inside = {op: number for number, block in enumerate(blocks) for op in block.ops}
    places = []
    for index, (op, weight) in enumerate(layers.items()):
        if op in inside:
            stage, block = numbers[inside[op]]
            places.append(Place(op, weight, index, stage, block, convs[op]))
        else:
            following = next((number for number, end in enumerate(ends) if end > order[op]), None)
            outside = (
                0 if following == 0 else stages + 1 if following is None else numbers[following][0]
            )
            places.append(Place(op, weight, index, outside))
    return Places(tuple(places), stages)


def _layers(graph: Graph) -> dict[Op, Value]:
    """The layers with their weights, in graph order."""
    seen: set[Value] = set()
    found: dict[Op, Value] = {}
    for op in graph.ops:
        layer = layer_weight(op)
        if (
            layer is not None
            and layer.in_axis is not None
            and layer.value.kind == "param"
            and layer.value not in seen
        ):
            seen.add(layer.value)
            found[op] = layer.value
    return found


def _stages(blocks: list[_Block]) -> tuple[int, list[tuple[int, int]]]:
    """How many stages there are, and stage and number in it of every block."""
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


def _numbered(block: _Block, layers: dict[Op, Value]) -> Iterator[tuple[Op, int]]:
    """The layers of a block with their numbers."""
    conv = 0
    for op in layers:
        if op in block.main:
            yield op, conv
            conv += 1
        elif op in block.ops:
            yield op, SHORTCUT


# Blocks


def _blocks(graph: Graph, layers: set[Op]) -> list[_Block]:
    """The outermost residual blocks, in graph order."""
    dominators = _Dominators(graph)
    found: list[_Block] = []
    covered: set[Op] = set()
    for op in reversed(graph.ops):
        if op in covered or op.role not in SUMS:
            continue
        branches = [value for value in op.inputs if not value.is_weight]
        fork = dominators.of(op)
        if len(branches) != 2 or fork is None:
            continue
        sides = [_between(value, fork) for value in branches]
        ops = frozenset().union(*sides)
        if not ops & layers:
            continue
        # A layer that feeds both branches is on the longer one.
        main = max(sides, key=lambda side: len(side & layers))
        found.append(_Block(op, ops, frozenset(main)))
        covered |= ops
    return found[::-1]


def _between(value: Value, fork: Value) -> set[Op]:
    """The ops that a value is computed by, back to the fork."""
    found: set[Op] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if item is not fork and item.producer is not None and item.producer not in found:
            found.add(item.producer)
            waiting.extend(operand for operand in item.producer.inputs if not operand.is_weight)
    return found


class _Dominators:
    """For every value the nearest value that all ways from the inputs to it pass through."""

    def __init__(self, graph: Graph) -> None:
        self._above: dict[Value, Value | None] = dict.fromkeys(graph.inputs)
        self._depth: dict[Value, int] = dict.fromkeys(graph.inputs, 1)
        for op in graph.ops:
            above = self.of(op)
            for value in op.results:
                self._above[value] = above
                self._depth[value] = 1 + (0 if above is None else self._depth[above])

    def of(self, op: Op) -> Value | None:
        """The nearest value on all ways to an op; None where there is none but the inputs
        together."""
        # What is computed from nothing (a constant tensor) is on no way from the inputs.
        operands = [
            value for value in op.inputs if value in self._above and not self._constant(value)
        ]
        if not operands:
            return None
        found: Value | None = operands[0]
        for value in operands[1:]:
            found = self._common(found, value)
        return found

    def _constant(self, value: Value) -> bool:
        return value.producer is not None and not any(
            not operand.is_weight for operand in value.producer.inputs
        )

    def _common(self, a: Value | None, b: Value | None) -> Value | None:
        while a is not b:
            if a is None or b is None:
                return None
            if self._depth[a] >= self._depth[b]:
                a = self._above[a]
            else:
                b = self._above[b]
        return a
