"""A network as pns sees it: layers by name, and the nearest batch norms around each.

pns prunes batch norms, and tells every other layer by name which batch norm its inputs and its
outputs follow. Here the names are found in the graph, and a batch norm is near a layer only if the
channel groups say that they share channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.ops.batch_norm import BatchNorm, batch_norms
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import LayerWeight, layer_weight
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.analysis.residual.structure import is_depthwise

__all__ = ["Layer", "Network", "merge_sets"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Layer:
    """A Conv2d or Linear: its op, and the units (int64, -1: none) of its outputs and inputs."""

    name: str
    op: Op
    weight: LayerWeight
    made: np.ndarray
    read: np.ndarray

    @property
    def is_conv(self) -> bool:
        return self.weight.value.type.rank == 4

    @property
    def depthwise(self) -> bool:
        return self.is_conv and is_depthwise(self.op) and len(self.made) == len(self.read)

    @property
    def grouped(self) -> bool:
        """True for a convolution in groups that is not depthwise: pns has no rule for these."""
        return self.is_conv and self.op.attrs.get("groups", 1) != 1 and not self.depthwise


class Network:
    """The layers that pns knows, in the order of their weights."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        graph = coupling.graph
        self.norms: dict[str, BatchNorm] = {
            norm.name: norm for norm in batch_norms(graph) if _is_2d(norm)
        }
        order = {name: place for place, name in enumerate(graph.params)}
        found = {layer.name: layer for layer in map(self._layer, graph.ops) if layer is not None}
        places = {
            name: order.get(layer.weight.value.name, len(order)) for name, layer in found.items()
        }
        self.layers: dict[str, Layer] = dict(
            sorted(found.items(), key=lambda item: places[item[0]])
        )

    def norm_units(self, name: str) -> np.ndarray:
        """Return the unit (or -1) of every channel of a batch norm, `[C]`."""
        scale = self.norms[name].scale
        return self._units(scale, 0)

    def groups_of(self, units: np.ndarray) -> frozenset[int]:
        """Return the numbers of the groups that units belong to."""
        return frozenset(np.unique(self.coupling.unit_group[units[units >= 0]]).tolist())

    @cached_property
    def norms_of_group(self) -> dict[int, list[str]]:
        """The batch norms of every group that has one, in graph order."""
        found: dict[int, list[str]] = {}
        for name in self.norms:
            for number in sorted(self.groups_of(self.norm_units(name))):
                found.setdefault(number, []).append(name)
        return found

    # The nearest batch norms

    def before(self, layer: Layer) -> str:
        """Return the batch norm whose channels a layer reads; empty without one."""
        wanted = self.groups_of(layer.read)
        source = layer.op.value(0)
        return (self._behind(source, wanted) if source is not None else "") or self._any(wanted)

    def after(self, layer: Layer) -> str:
        """Return the batch norm of what a layer makes, or what that is joined with; else empty."""
        wanted = self.groups_of(layer.made)
        queue, seen = deque([layer.op.result]), [layer.op.result]
        while queue:
            for op in queue.popleft().users:
                norm = self._norm_of.get(op)
                if norm is not None:
                    if self._shares(norm, wanted):
                        return norm
                elif layer_weight(op) is None:
                    fresh = [value for value in op.results if value not in seen]
                    seen.extend(fresh)
                    queue.extend(fresh)
        joined = (
            value
            for made in seen[1:]
            if made.producer
            for value in made.producer.inputs
            if value not in seen
        )
        return next(
            filter(None, (self._behind(value, wanted) for value in joined)), ""
        ) or self._any(wanted)

    def ties(self) -> list[list[str]]:
        """Return sets of batch norms that sums and products join, in graph order."""
        found = []
        for op in self.coupling.graph.ops:
            values = [value for value in op.inputs if not value.is_weight]
            joins = (
                len(values) > 1
                and not has_trait(op, Trait.CONCATENATION)
                and layer_weight(op) is None
            )
            if joins and op not in self._norm_of and op.results:
                wanted = self._value_groups(op.results[0])
                found.append(
                    [name for name in (self._behind(value, wanted) for value in values) if name]
                )
        return [
            sorted(names, key=list(self.norms).index)
            for names in merge_sets(found)
            if len(names) > 1
        ]

    def concatenated(self, layer: Layer) -> list[str]:
        """Return the batch norms that, side by side, a layer reads; empty if none."""
        source = layer.op.value(0)
        joint = self._concatenation(source) if source is not None else None
        if joint is None:
            return []
        names = [self._behind(value, self._value_groups(value)) for value in self._pieces(joint)]
        if not all(names):
            return []
        units = np.concatenate([self.norm_units(name) for name in names])
        return names if np.array_equal(units, layer.read) else []

    # The graph

    @cached_property
    def _norm_of(self) -> dict[Op, str]:
        """The name of the batch norm that an op applies; a module may be applied several times."""
        by_scale = {norm.scale: name for name, norm in self.norms.items()}
        found = {}
        for op in self.coupling.graph.ops:
            scale = op.value(1) if has_trait(op, Trait.BATCH_NORM) else None
            if scale in by_scale:
                found[op] = by_scale[scale]
        return found

    def _behind(self, value: Value, wanted: frozenset[int]) -> str:
        """Return the first batch norm on the way back from a value that shares the wanted groups.

        First operands come first.
        """
        stack, seen = [value], {value}
        while stack:
            op = stack.pop().producer
            if op is None:
                continue
            norm = self._norm_of.get(op)
            if norm is not None:
                if self._shares(norm, wanted):
                    return norm
            elif layer_weight(op) is None:
                fresh = [v for v in op.inputs if not v.is_weight and v not in seen]
                seen.update(fresh)
                stack.extend(reversed(fresh))
        return ""

    def _concatenation(self, value: Value) -> Op | None:
        """Return the concatenation that a value comes from, through ops of one activation."""
        op = value.producer
        while op is not None and not has_trait(op, Trait.CONCATENATION):
            inputs = [v for v in op.inputs if not v.is_weight]
            if len(inputs) != 1 or op in self._norm_of or layer_weight(op) is not None:
                return None
            op = inputs[0].producer
        return op

    def _pieces(self, op: Op) -> Iterator[Value]:
        """Yield what a concatenation joins, in order, nested ones flattened."""
        for value in op.inputs:
            inner = self._concatenation(value)
            yield from [value] if inner is None else self._pieces(inner)

    def _shares(self, norm: str, wanted: frozenset[int]) -> bool:
        return bool(self.groups_of(self.norm_units(norm)) & wanted)

    def _any(self, wanted: frozenset[int]) -> str:
        """Return the first batch norm of some groups, by ways that pns does not follow."""
        return next((name for name in self.norms if self._shares(name, wanted)), "")

    def _layer(self, op: Op) -> Layer | None:
        """Return the layer that an op applies, if it is one that pns knows."""
        weight, source = layer_weight(op), op.value(0)
        is_conv = has_trait(op, Trait.CONVOLUTION)
        if weight is None or source is None or not (is_conv or has_trait(op, Trait.LINEAR)):
            return None
        if weight.value.type.rank != (4 if is_conv else 2) or weight.out_axis != 0:
            return None
        name = weight.value.name.rpartition(".")[0] if weight.value.is_weight else op.loc.module
        channels = source.type.rank - (3 if is_conv else 1)
        return Layer(
            name,
            op,
            weight,
            self._units(weight.value, weight.out_axis),
            self._units(source, channels),
        )

    def _units(self, value: Value, axis: int) -> np.ndarray:
        """Return the unit of every place of an axis, -1 where it has none."""
        size = value.type.shape()[axis]
        for slot in self.coupling.slots_of(value):
            if slot.axes == (axis,):
                return np.broadcast_to(slot.units.reshape(-1), (size,))
        return np.full(size, -1, dtype=np.int64)

    def _value_groups(self, value: Value) -> frozenset[int]:
        return frozenset().union(
            *(self.groups_of(slot.units) for slot in self.coupling.slots_of(value))
        )


def _is_2d(norm: BatchNorm) -> bool:
    source = norm.op.value(0)
    return source is not None and source.type.rank == 4


def merge_sets(sets: list[list[str]]) -> list[list[str]]:
    """Return sets of names with those that overlap merged; in order of first occurrence."""
    merged: list[list[str]] = []
    for names in sets:
        touching = [other for other in merged if set(other) & set(names)]
        place = merged.index(touching[0]) if touching else len(merged)
        joint = list(dict.fromkeys([*(name for other in touching for name in other), *names]))
        merged = [other for other in merged if other not in touching]
        merged.insert(place, joint)
    return merged
