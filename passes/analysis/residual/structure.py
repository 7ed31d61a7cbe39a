"""The residual structure of a network: the one analysis that the views of this room read.

From the graph alone, `Flow`: its layers, its sums, the value at which the two ways into a sum part,
and what lies on each of them. From the channel groups, `ResidualStructure`: which layers make and
which read every group, and the chains of groups inside residual branches. No network is named here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Set
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.passes.analysis.channels.groups import Coupling, groups_in
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import has_trait

__all__ = ["Flow", "ResidualStructure", "activations", "is_depthwise", "is_sum"]

Node = TypeVar("Node", bound=Hashable)


class Flow:
    """The ways through a graph.

    Attributes:
        graph: the graph.
        order: the number of every op in graph order.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = {op: number for number, op in enumerate(graph.ops)}

    @cached_property
    def layers(self) -> dict[Op, Value]:
        """The layers that multiply by a parameter of their own, with that parameter, in graph
        order. Embeddings, which read no channels, are no layers here."""
        found: dict[Op, Value] = {}
        for op in self.graph.ops:
            layer = layer_weight(op)
            if layer is not None and layer.in_axis is not None and layer.value.kind == "param":
                found[op] = layer.value
        return found

    @cached_property
    def sums(self) -> list[Op]:
        """The ops that add two activations, in graph order."""
        return [op for op in self.graph.ops if is_sum(op) and len(activations(op)) == 2]

    def fork(self, op: Op) -> Value | None:
        """Return the nearest value that all ways from the inputs to ``op`` pass through, its
        dominator; None where only the inputs together are such."""
        return self._dominators.common(op.inputs)

    def between(self, value: Value, stops: Set[Value]) -> set[Op]:
        """Return the ops that ``value`` is computed by, back to ``stops`` or to the inputs."""
        found: set[Op] = set()
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if item not in stops and item.producer is not None and item.producer not in found:
                found.add(item.producer)
                waiting.extend(activations(item.producer))
        return found

    def only_for(self, total: Op, branch: Value) -> tuple[Op, ...]:
        """Return the ops whose results lead nowhere but to the operand ``branch`` of a sum, in
        graph order: those that die when it no longer reads it."""
        last = branch.producer
        if last is None or self._is_read_elsewhere(last, total, branch):
            return ()
        found = [last]
        for op in found:  # grows while it is walked
            found.extend(self._postdominated.get(op, ()))
        return tuple(sorted(found, key=self.order.__getitem__))

    def _is_read_elsewhere(self, op: Op, total: Op, branch: Value) -> bool:
        read = [value for value in op.results if value.users or value in self._outputs]
        return read != [branch] or branch in self._outputs or set(branch.users) != {total}

    @cached_property
    def before(self) -> dict[Op, set[Op]]:
        """For every layer, embeddings and computed weights included, the layers whose results reach
        it with no other layer between."""
        sources: dict[Value, set[Op]] = {}
        found: dict[Op, set[Op]] = {}
        for op in self.graph.ops:
            into = set().union(*(sources.get(value, set()) for value in op.inputs))
            is_layer = layer_weight(op) is not None
            if is_layer:
                found[op] = into
            sources.update(dict.fromkeys(op.results, {op} if is_layer else into))
        return found

    @cached_property
    def after(self) -> dict[Op, list[Op]]:
        """`before`, the other way round: for every layer those right behind it, in graph order."""
        found: dict[Op, list[Op]] = {op: [] for op in self.before}
        for op, feeders in self.before.items():
            for feeder in feeders:
                found[feeder].append(op)
        return found

    @cached_property
    def _outputs(self) -> set[Value]:
        return set(self.graph.output_values)

    @cached_property
    def _dominators(self) -> _Dominators[Value]:
        tree: _Dominators[Value] = _Dominators()
        for value in self.graph.inputs:
            tree.hang(value, None)
        for op in self.graph.ops:
            # Weights and constants, and what is computed of them alone, are on no way from the
            # inputs: they stay out of the tree.
            if any(value in tree for value in op.inputs):
                above = tree.common(op.inputs)
                for value in op.results:
                    tree.hang(value, above)
        return tree

    @cached_property
    def _postdominated(self) -> dict[Op, list[Op]]:
        """For every op those that it is the nearest postdominator of: all ways from them to the
        outputs pass through it."""
        tree: _Dominators[Op] = _Dominators()
        found: dict[Op, list[Op]] = {}
        for op in reversed(self.graph.ops):
            leaves = any(value in self._outputs for value in op.results)
            users = (user for value in op.results for user in value.users)
            nearest = None if leaves else tree.common(users)
            tree.hang(op, nearest)
            if nearest is not None:
                found.setdefault(nearest, []).append(op)
        return found


class _Dominators(Generic[Node]):
    """A dominator tree, built from its root: None is what stands above all."""

    def __init__(self) -> None:
        self._above: dict[Node, Node | None] = {}
        self._depth: dict[Node, int] = {}

    def hang(self, node: Node, above: Node | None) -> None:
        """Add a node right below another one."""
        self._above[node] = above
        self._depth[node] = 1 + (0 if above is None else self._depth[above])

    def __contains__(self, node: Node) -> bool:
        return node in self._above

    def common(self, nodes: Iterable[Node]) -> Node | None:
        """Return the nearest node that is above all of some nodes, or one of them; nodes outside
        the tree do not count."""
        first, *others = [node for node in nodes if node in self] or (None,)
        for other in others:
            first = self._meet(first, other)
        return first

    def _meet(self, a: Node | None, b: Node | None) -> Node | None:
        while a is not b:
            if a is None or b is None:
                return None
            if self._depth[a] >= self._depth[b]:
                a = self._above[a]
            else:
                b = self._above[b]
        return a


def is_sum(op: Op) -> bool:
    """Return whether an op adds its operands."""
    return has_trait(op, Trait.ADD)


def activations(op: Op) -> list[Value]:
    """Return what an op reads that is no weight, in operand order, with repetitions."""
    return [value for value in op.inputs if not value.is_weight]


class ResidualStructure:
    """Which layers make the channels of every group and which read them.

    Attributes:
        flow: the ways through the graph.
        made, read: for every group its layers, in graph order. Depthwise layers, which do both,
            count as neither: ``deep`` has them.
        output_of: for every layer that is not depthwise the groups that it makes.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.flow = Flow(coupling.graph)
        names = [group.name for group in coupling.groups]
        self.made: dict[str, list[Op]] = {name: [] for name in names}
        self.read: dict[str, list[Op]] = {name: [] for name in names}
        self.deep: dict[str, list[Op]] = {name: [] for name in names}
        self.output_of: dict[Op, tuple[str, ...]] = {}
        for op in coupling.graph.ops:
            layer = layer_weight(op)
            if layer is not None and layer.value.is_weight:
                self._place(op, reads=layer.in_axis is not None)

    def _place(self, op: Op, reads: bool) -> None:
        made, deep = self.groups_along(op, made=True), is_depthwise(op)
        for name in made:
            (self.deep if deep else self.made)[name].append(op)
        for name in self.groups_along(op, made=False) if reads else ():
            if not deep or name not in made:
                self.read[name].append(op)
        if not deep:
            self.output_of[op] = made

    def groups_along(self, op: Op, *, made: bool) -> tuple[str, ...]:
        """Return the groups along the output axis of a layer's weight, or along the others."""
        layer = layer_weight(op)
        slots = [] if layer is None else self.coupling.slots_of(layer.value)
        numbers = [
            number
            for slot in slots
            if layer is not None and layer.makes(slot.axes) == made
            for number in groups_in(slot, self.coupling.unit_group)
        ]
        return tuple(self.coupling.groups[number].name for number in dict.fromkeys(numbers))

    def internal(self, name: str) -> bool:
        """Return whether one layer alone makes a group: it is not summed with anything."""
        return len(self.made[name]) == 1 and self.coupling.group(name).frozen is None

    def next(self, name: str) -> str | None:
        """Return the group that the only reader of a group makes, if there is one such reader and
        group."""
        readers = self.read[name]
        made = self.output_of.get(readers[0], ()) if len(readers) == 1 else ()
        return made[0] if len(made) == 1 and made[0] != name else None

    def chains(self) -> list[list[str]]:
        """Return the insides of residual branches, in graph order: groups that one layer makes and
        one layer reads, chained up to the layer that makes a sum.

        Neighbours A, B in a chain are tied to one width (MetaPruning's rule): A's only reader makes
        B, neither is summed, and they are equally wide. ResNet-50 has 16 of two groups each,
        ResNet-18 eight of one.
        """
        chains: list[list[str]] = []
        chain_of: dict[str, list[str]] = {}
        for group in reversed(self.coupling.free):
            after = self.next(group.name)
            if after is None or not self.internal(group.name):
                continue
            if len(self.made[after]) > 1:
                chain = [group.name]
                chains.append(chain)
            elif after in chain_of and self.coupling.group(after).width == group.width:
                chain = chain_of[after]
                chain.insert(0, group.name)
            else:
                continue
            chain_of[group.name] = chain
        return chains[::-1]

    def output_layers(self) -> set[Op]:
        """Return the layers that make the channels of the network's outputs."""
        numbers: set[int] = set()
        for value in self.coupling.graph.output_values:
            for slot in self.coupling.slots_of(value):
                numbers.update(np.unique(self.coupling.unit_group[slot.units[slot.units >= 0]]))
        return {op for number in numbers for op in self.made[self.coupling.groups[number].name]}


def is_depthwise(op: Op) -> bool:
    """Return whether a convolution reads exactly one channel for each that it makes."""
    weight, groups = op.value(1), op.attrs.get("groups", 1)
    return (
        weight is not None
        and isinstance(groups, int)
        and groups > 1
        and groups == weight.type.shape()[0]
    )
