"""Channel labels of every value of a graph, found by running the graph on labels.

Every layer that produces channels (convolution, linear, embedding) gives its output axis fresh labels. Labels then flow:
an op that only moves data is executed as it is on them, an op that combines tensors unites them, and an op without a rule
freezes what it touches. The rules stand in `label_rules`; this file holds the state they work on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.passes.analysis.planes import Plane, align, compress, varying

__all__ = ["Blocks", "Labels", "Note", "Unknown", "propagate"]

BATCH = 2
"""The batch size at which labels are propagated: one would make the batch axis look like any axis of size 1."""
MAX_SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Note:
    """An op whose result changes by construction when channels go: a statistic runs over them."""

    op: Op
    plane: Plane


@dataclass(frozen=True, slots=True)
class Unknown:
    """An op without a rule; everything it touches is frozen."""

    op: Op
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Labels of shape (blocks, size): every block must keep the same number of channels."""

    rows: Tensor
    op: Op
    may_vanish: bool
    """Whether a whole row may go with its units (a view), or must stay (heads of a product, groups)."""


@dataclass(eq=False)
class Labels:
    """Labels per value, and what was learned about them: edges (same unit), frozen labels, blocks, notes."""

    graph: Graph
    planes: dict[Value, tuple[Plane, ...]] = field(default_factory=dict)
    count: int = 1
    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    produced: list[tuple[int, int]] = field(default_factory=list)
    """Half-open label ranges that belong to output channels of layers."""
    blocks: list[Blocks] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)

    def of(self, value: Value | None) -> tuple[Plane, ...]:
        """The planes of a value; none while nothing is known about it."""
        return () if value is None else self.planes.get(value, ())

    def shape(self, value: Value) -> tuple[int, ...]:
        return value.type.shape(BATCH)

    def set(self, value: Value, planes: Iterable[Plane]) -> None:
        """Give a value its planes. A plane that varies nowhere is one picked channel, whose value cannot shrink: frozen."""
        kept: list[Plane] = []
        for plane in planes:
            plane = compress(plane)
            if varying(plane):
                kept.append(plane)
            else:
                self.freeze(plane, f"channel picked out singly by {value.producer}")
        self.planes[value] = tuple(kept)

    def fresh(self, count: int, produced: bool = False) -> Tensor:
        """``count`` new labels; ``produced`` when they are output channels of a layer."""
        labels = torch.arange(self.count, self.count + count)
        if produced:
            self.produced.append((self.count, self.count + count))
        self.count += count
        return labels

    def unite(self, a: Tensor, b: Tensor, why: str) -> None:
        """Element by element the same unit (broadcasting); an element that belongs to no channel freezes its partner."""
        left, right = torch.broadcast_tensors(a, b)
        x, y = left.reshape(-1).numpy(), right.reshape(-1).numpy()
        both = (x > 0) & (y > 0)
        differ = both & (x != y)
        if differ.any():
            self.edges.append((x[differ], y[differ]))
        lonely = (x > 0) ^ (y > 0)
        if lonely.any():
            self.frozen.append((np.maximum(x, y)[lonely], why))

    def tie(self, plane: Tensor, axes: Iterable[int], why: str = "") -> Tensor:
        """Unite the labels over ``axes``; returns the plane with those axes at size 1."""
        for axis in axes:
            if plane.shape[axis] > 1:
                first = plane.narrow(axis, 0, 1)
                self.unite(first, plane, why)
                plane = first
        return plane

    def freeze(self, labels: Tensor, why: str) -> None:
        array = torch.unique(labels).numpy()
        array = array[array > 0]
        if array.size:
            self.frozen.append((array, why))

    def freeze_value(self, value: Value | None, why: str) -> None:
        for plane in self.of(value):
            self.freeze(plane, why)

    def give_up(self, op: Op, why: str) -> None:
        """No rule for this op: freeze all it reads; its results carry no labels."""
        self.unknown.append(Unknown(op, why))
        for value in op.results:
            self.planes[value] = ()

    # Weights

    def axis_labels(self, weight: Value, axis: int, produced: bool) -> Tensor | None:
        """The labels along one axis of a weight, made when a parameter is asked first; None where nothing is known."""
        found = [plane for plane in self.of(weight) if varying(plane) == (axis,)]
        size = self.shape(weight)[axis]
        if found:
            for other in found[1:]:
                self.unite(found[0], other, "")
            return found[0].reshape(-1)
        mixed = [plane for plane in self.of(weight) if axis in varying(plane)]
        if mixed:
            for plane in mixed:
                self.freeze(plane, f"labels of {weight} mix two axes")
            return None
        if weight.kind != "param" or size == 1:
            return None
        labels = self.fresh(size, produced)
        self.add_axis(weight, axis, labels)
        return labels

    def add_axis(self, weight: Value, axis: int, labels: Tensor) -> None:
        """Label one more axis of a weight."""
        shape = [1] * len(self.shape(weight))
        shape[axis] = labels.numel()
        if labels.numel() > 1:
            self.planes[weight] = (*self.of(weight), labels.reshape(shape))

    def adopt(self, weight: Value | None, plane: Plane, why: str) -> None:
        """Let a weight that is combined with a labelled tensor carry that tensor's labels (broadcasting to the right)."""
        if weight is None:
            return
        shape = self.shape(weight)
        plane = self.restrict(plane, shape)
        axes = varying(plane)
        if not axes:
            return
        same = [own for own in self.of(weight) if set(varying(own)) & set(axes)]
        for own in same:
            self.unite(own, plane, why)
        if not same:
            self.planes[weight] = (*self.of(weight), plane)

    def restrict(self, plane: Plane, shape: tuple[int, ...]) -> Plane:
        """A plane of a tensor as seen by an operand of ``shape`` that broadcasts against it."""
        if plane.dim() < len(shape):
            plane = align(plane, len(shape))
        lead = plane.dim() - len(shape)
        target = (1,) * lead + shape
        mine = [axis for axis in varying(plane) if target[axis] > 1]
        if not mine:
            return plane.reshape(-1)[:1].reshape((1,) * len(shape))
        plane = self.tie(plane, [axis for axis in varying(plane) if target[axis] == 1])
        return plane.reshape(plane.shape[lead:])


def propagate(graph: Graph, apply: Callable[[Labels, Op], None]) -> Labels:
    """Labels of every value. A weight may get labels after an op has read it bare; then the graph is run once more."""
    labels = Labels(graph)
    for _ in range(MAX_SWEEPS):
        labels.blocks, labels.notes, labels.unknown = [], [], []
        seen: list[tuple[Value, int]] = []
        for op in graph.ops:
            apply(labels, op)
            seen.extend((value, len(labels.of(value))) for value in op.inputs if value.is_weight)
        if all(len(labels.of(value)) == count for value, count in seen):
            break
    else:
        for value, count in seen:
            if len(labels.of(value)) != count:
                labels.freeze_value(value, f"{value} is used in ways that could not be reconciled")
    for unknown in labels.unknown:
        for value in unknown.op.inputs:
            labels.freeze_value(value, f"read by {unknown.op}: {unknown.why}")
    for value in graph.output_values:
        labels.freeze_value(value, "model output")
    return labels
