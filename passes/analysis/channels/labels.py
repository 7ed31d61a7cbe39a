"""Channel labels of every value of a graph, found by running the graph on labels.

Every layer that produces channels (convolution, linear, embedding) gives its output axis fresh
labels. Labels then flow: an op that only moves data is executed as it is on them, an op that
combines tensors unites them, and an op without a rule freezes what it touches. The rules stand in
`pruneopt.passes.analysis.ops`; this file holds the state they work on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import InternalError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import BatchSize, Dim
from pruneopt.passes.analysis.channels.planes import Plane, align, compress, varying

__all__ = [
    "BATCH",
    "Blocks",
    "Labels",
    "Note",
    "Unknown",
    "Unlabelled",
    "number",
    "numbers",
    "propagate",
]

BATCH = 2
"""The batch size at which labels are propagated: one would make the batch axis look like any axis
of size 1."""
MAX_SWEEPS = 4


@dataclass(frozen=True, slots=True)
class Note:
    """An op whose result changes by construction when channels go: a statistic runs over them."""

    op: Op
    plane: Plane
    of_weights: bool = False
    """A product of weights alone: a statistic where its channels are also those of an activation
    (the norm of a weight by power iteration), else a layer in itself (the rank of a factorised
    weight).
    """


@dataclass(frozen=True, slots=True)
class Unknown:
    """An op without a rule; everything it touches is frozen."""

    op: Op
    why: str


class Unlabelled(Exception):
    """Raised by a rule that cannot say where channels go through an op."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Labels over several axes: along the innermost of them that shrinks, every row must keep the
    same number."""

    plane: Tensor
    op: Op
    pinned: int = 0
    """How many leading axes must stay as they are (groups, heads of a product); the others may
    shrink (a view)."""


@dataclass(eq=False)
class Labels:
    """Labels per value, and what was learned about them: edges (same unit), frozen labels, blocks,
    notes."""

    graph: Graph
    whole_heads: bool = False
    """Attention loses whole heads, not channels within each; see
    `pruneopt.passes.analysis.ops.heads`."""
    whole_groups: bool = False
    """Grouped convolutions and group norms lose whole groups, not channels within each."""
    planes: dict[Value, tuple[Plane, ...]] = field(default_factory=dict)
    count: int = 1
    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    produced: list[np.ndarray] = field(default_factory=list)
    """Labels of output channels of layers; what no layer produces (positions, padding) is never
    removed."""
    computed: set[Value] = field(default_factory=set)
    """Results computed from weights alone."""
    blocks: list[Blocks] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    pairs: list[Tensor] = field(default_factory=list)
    """Rows of labels over which a statistic runs that says nothing of a single number: at least two
    of each stay."""
    unknown: list[Unknown] = field(default_factory=list)

    def of(self, value: Value | None) -> tuple[Plane, ...]:
        """Return the planes of a value; none while nothing is known about it."""
        return () if value is None else self.planes.get(value, ())

    def shape(self, value: Value) -> tuple[int, ...]:
        return value.type.shape(BATCH)

    def set(self, value: Value, planes: Iterable[Plane]) -> None:
        """Give a result its planes; what could not be sliced as a box is frozen.

        A plane that varies nowhere is one picked channel; two planes along one axis are channels of
        two kinds that a view has multiplied. Labels that no layer produces (padding, copies) give
        way to those of a layer.
        """
        kept: list[Plane] = []
        compact = [compress(plane) for plane in planes]
        if len(compact) > 1:
            # Labels of layers first: those that come later give way.
            compact.sort(key=self._is_unproduced)
            compact = self.tie_shared_axis(compact)
        for plane in compact:
            axes = varying(plane)
            rivals = [own for own in kept if set(varying(own)) & set(axes)]
            if not axes:
                self.freeze(plane, f"channel picked out singly by {value.producer}")
            elif any(_is_uneven(value.type.dims[axis]) for axis in axes):
                self.freeze(plane, f"channels are mixed with the batch by {value.producer}")
            elif not rivals:
                kept.append(plane)
            elif not all(own.shape == plane.shape and torch.equal(own, plane) for own in rivals):
                soft = self._is_unproduced(plane)
                for own in (plane, *([] if soft else rivals)):
                    self.freeze(
                        own, f"channels of two kinds run along one axis of {value.producer}"
                    )
                kept = (
                    kept
                    if soft
                    else [own for own in kept if not any(own is rival for rival in rivals)]
                )
        self.planes[value] = tuple(kept)

    def tie_shared_axis(self, planes: Iterable[Plane]) -> list[Plane]:
        """Tie planes along an axis that they share (heads) where each has another for itself (a
        product of keys and values over tokens): the same channels of every head go. Where whole
        heads go, nothing is done."""
        found: list[Plane] = []
        for plane in planes:
            for index, rival in enumerate(() if self.whole_heads else found):
                mine, theirs = set(varying(plane)), set(varying(rival))
                shared = mine & theirs
                if shared and mine - shared and theirs - shared:
                    plane, found[index] = self.tie(plane, shared), self.tie(rival, shared)
            found.append(plane)
        return found

    def _is_unproduced(self, plane: Plane) -> bool:
        """Return whether no layer produces any of the labels."""
        labels = plane.numpy()
        labels = labels[labels > 0]
        low, high = labels.min(initial=self.count), labels.max(initial=0)
        return not any(
            a[0] <= high and a[-1] >= low and np.isin(labels, a).any() for a in self.produced
        )

    def is_weight(self, value: Value) -> bool:
        """Return whether a value depends on weights alone."""
        return value.is_weight or value in self.computed

    def fresh(self, count: int, produced: bool = False) -> Tensor:
        """Return ``count`` new labels; ``produced`` when they are output channels of a layer."""
        labels = torch.arange(self.count, self.count + count)
        self.count += count
        if produced:
            self.produced.append(labels.numpy())
        return labels

    def label_axes(self, weight: Value) -> None:
        """Give a weight that is moved or combined before a layer reads it labels along each of its
        axes."""
        if weight.is_weight and weight.type.dtype.startswith(("f", "bf")) and not self.of(weight):
            for axis, size in enumerate(self.shape(weight)):
                if size > 1:
                    self.add_axis(weight, axis, self.fresh(size))

    def unite(self, a: Tensor, b: Tensor, why: str) -> None:
        """Make labels the same unit, element by element (broadcasting); an element of no channel
        freezes its partner."""
        if a is b:  # the usual case along a chain of pointwise ops
            return
        x, y = a.numpy(), b.numpy()
        if x.shape != y.shape:
            x, y = np.broadcast_arrays(x, y)
        differ = x != y
        if not differ.any():
            return
        x, y = x[differ], y[differ]
        both = (x > 0) & (y > 0)
        if both.any():
            self.edges.append((x[both], y[both]))
        if not both.all():
            self.frozen.append((np.maximum(x, y)[~both], why))

    def tie(self, plane: Tensor, axes: Iterable[int], why: str = "") -> Tensor:
        """Unite the labels over ``axes``; returns the plane with those axes at size 1."""
        for axis in axes:
            if plane.shape[axis] > 1:
                first = plane.narrow(axis, 0, 1)
                self.unite(first, plane, why)
                plane = first
        return plane

    def needs_two(self, plane: Plane, axes: Iterable[int], shape: Sequence[int]) -> None:
        """Keep at least two of the channels over which, and over nothing else, a statistic runs:
        one alone would be normalised to a constant."""
        inside = [axis for axis in axes if plane.shape[axis] > 1]
        if inside and all(shape[axis] == 1 for axis in axes if axis not in inside):
            last = range(plane.dim() - len(inside), plane.dim())
            rows = plane.movedim(inside, tuple(last))
            self.pairs.append(rows.reshape(-1, rows.shape[last[0] :].numel()))

    def freeze(self, labels: Tensor, why: str) -> None:
        array = labels.numpy()
        array = array[array > 0]
        if array.size:
            self.frozen.append((array, why))

    def freeze_value(self, value: Value | None, why: str) -> None:
        for plane in self.of(value):
            self.freeze(plane, why)

    def operand(self, op: Op, index: int) -> Value:
        """Return operand ``index``; where an op that was declared to be like another lacks it, its
        rule ends in `freeze_unknown`."""
        value = op.value(index)
        if value is None:
            raise Unlabelled("operands are missing")
        return value

    def freeze_unknown(self, op: Op, why: str) -> None:
        """Freeze all that an op without a rule reads; its results carry no labels."""
        self.unknown.append(Unknown(op, why))
        for value in op.results:
            self.planes[value] = ()

    # Weights

    def axis_labels(self, weight: Value, axis: int) -> Tensor | None:
        """Return the labels of the output channels along one axis of a weight, made when first
        asked; None where unknown."""
        found = [plane for plane in self.of(weight) if varying(plane) == (axis,)]
        if found:
            for other in found[1:]:
                self.unite(found[0], other, "")
            labels = found[0].reshape(-1)
            # Labels that the weight had before (it was moved, or is shared) are made here as well.
            if self.is_weight(weight):
                self.produced.append(np.unique(labels.numpy()))
            return labels
        mixed = [plane for plane in self.of(weight) if axis in varying(plane)]
        if mixed:
            for plane in mixed:
                self.freeze(plane, f"labels of {weight} mix two axes")
            return None
        size = self.shape(weight)[axis]
        if not weight.is_weight or size == 1:
            return None
        labels = self.fresh(size, produced=True)
        self.add_axis(weight, axis, labels)
        return labels

    def add_axis(self, weight: Value, axis: int, labels: Tensor) -> None:
        """Label one more axis of a weight."""
        shape = [1] * len(self.shape(weight))
        shape[axis] = labels.numel()
        if labels.numel() > 1:
            self.planes[weight] = (*self.of(weight), labels.reshape(shape))

    def adopt(self, weight: Value | None, plane: Plane, why: str) -> None:
        """Let a weight that is combined with a labelled tensor carry that tensor's labels
        (broadcasting)."""
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
        """Return a plane of a tensor as seen by an operand of ``shape`` that broadcasts against
        it."""
        if plane.dim() < len(shape):
            plane = align(plane, len(shape))
        lead = plane.dim() - len(shape)
        target = (1,) * lead + shape
        mine = [axis for axis in varying(plane) if target[axis] > 1]
        if not mine:
            return plane.reshape(-1)[:1].reshape((1,) * len(shape))
        plane = self.tie(plane, [axis for axis in varying(plane) if target[axis] == 1])
        return plane.reshape(plane.shape[lead:])


def number(op: Op, name: str) -> int:
    """Return an attribute of an op that is a whole number."""
    value = op.attrs[name]
    if not isinstance(value, int):
        raise InternalError(f"{op} has {name} = {value}, where a number was expected")
    return value


def numbers(op: Op, name: str) -> tuple[int, ...]:
    """Return an attribute of an op that is a list of whole numbers, one of them, or nothing."""
    value = op.attrs.get(name)
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    whole = tuple(item for item in items if isinstance(item, int))
    if len(whole) != len(items):
        raise InternalError(f"{op} has {name} = {value}, where numbers were expected")
    return whole


def _is_uneven(dim: Dim) -> bool:
    """Return whether a dimension follows the batch size other than in proportion."""
    return isinstance(dim, BatchSize) and (dim.offset != 0 or dim.divisor != 1)


def propagate(
    graph: Graph,
    apply: Callable[[Labels, Op], None],
    whole_heads: bool = False,
    whole_groups: bool = False,
) -> Labels:
    """Return the labels of every value. A weight may get labels after an op has read it bare; then
    the graph is run once more."""
    labels = Labels(graph, whole_heads, whole_groups)
    for _ in range(MAX_SWEEPS):
        # Only the labels of weights are carried into the next run; the rest is learned anew.
        labels.edges, labels.frozen, labels.blocks, labels.notes = [], [], [], []
        labels.pairs, labels.unknown = [], []
        seen: list[tuple[Value, int]] = []
        for op in graph.ops:
            apply(labels, op)
            if op.operands and all(labels.is_weight(value) for value in op.inputs):
                labels.computed.update(op.results)
            seen.extend((value, len(labels.of(value))) for value in op.inputs if value.is_weight)
        if all(len(labels.of(value)) == count for value, count in seen):
            break
    else:
        for value, count in seen:
            if len(labels.of(value)) != count:
                labels.freeze_value(value, f"{value} is used in ways that could not be reconciled")
    # Weights may have got their labels after the op that froze them: so they are frozen at the end.
    for unknown in labels.unknown:
        for value in unknown.op.inputs:
            labels.freeze_value(value, f"read by {unknown.op}: {unknown.why}")
    for value in graph.output_values:
        labels.freeze_value(value, "model output")
    return labels
