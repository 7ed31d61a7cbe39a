"""Regions: the pieces of a network whose time is measured and predicted as one.

A runtime fuses ops as it likes, and differently at different widths: onnxruntime takes a batch
norm, a sum and an activation into a convolution, and puts reorders between layouts where a width
does not suit its blocks. What stays the same at all widths is the order of the *layers* (ops with a
weight matrix). So a region is a layer with everything that follows from it until the next one:
every other op belongs to the region of its operand that is made last. The time of a fused op goes
to the region that it lies in, whatever it was fused from.

Regions that compute the same, apart from the lengths of their axes, have the same *key*: what is
measured of one tells about all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.schema import DTYPES
from pruneopt.ir.types import Attr, BatchSize
from pruneopt.passes.analysis.cost.conventions import convention_named
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.ops.count import elements
from pruneopt.passes.analysis.ops.layers import layer_weights

__all__ = ["Polynomial", "Region", "find_regions", "is_layer", "region_numbers"]

SHAPES = (
    "size",
    "shape",
    "split_size",
    "split_sizes",
    "sections",
    "normalized_shape",
    "num_groups",
    "output_size",
)
"""Attributes that repeat what the shapes of an op's results say."""
LengthOf = Callable[[Value, int], np.ndarray]


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A sum of products of a region's lengths: ``factor * prod_v lengths[v] ** powers[v]``."""

    terms: tuple[tuple[float, tuple[int, ...]], ...]

    def __call__(self, lengths: np.ndarray) -> np.ndarray:
        """Return the counts, `[P, V]` -> `[P]`."""
        total = np.zeros(len(lengths))
        for factor, powers in self.terms:
            total += factor * np.prod(lengths ** np.array(powers, dtype=np.float64), axis=1)
        return total


@dataclass(frozen=True, eq=False)
class Region:
    """A layer and what follows from it.

    Attributes:
        name: the layer's module.
        ops: of the graph, in its order, the layer first.
        key: what is computed, with the lengths that vary as variables; equal for regions that
            differ in them alone.
        forms: the lengths that vary as linear forms in the width vector, `[V, G + 1]`, the constant
            last.
        flops: multiply-accumulates at the batch, of the lengths.
        moved: bytes of the activations that the layer's ops read and write.
        weights: bytes of the weights that are read.
    """

    name: str
    ops: tuple[Op, ...]
    key: str
    forms: np.ndarray
    flops: Polynomial
    moved: Polynomial
    weights: Polynomial

    def lengths(self, widths: np.ndarray) -> np.ndarray:
        """Return the lengths at width vectors, `[P, G]` -> `[P, V]`, whole numbers."""
        rows = np.asarray(widths, dtype=np.float64)
        found: np.ndarray = np.rint(rows @ self.forms[:, :-1].T + self.forms[:, -1])
        return found


def is_layer(op: Op) -> bool:
    """Return whether an op begins a region: it meets its input with a weight matrix."""
    layers = layer_weights(op)
    return bool(layers) and all(
        layer.value.is_weight and layer.value.type.rank > 1 and layer.in_axis is not None
        for layer in layers
    )


def region_numbers(graph: Graph) -> dict[Op, int]:
    """Return the number of the region of every op, from 0; what comes before the first layer
    belongs to number 0."""
    numbers: dict[Op, int] = {}
    last = 0
    for op in graph.ops:
        if is_layer(op):
            last += 1
            numbers[op] = last
        else:
            made = (numbers[value.producer] for value in op.inputs if value.producer is not None)
            numbers[op] = max(made, default=0)
    return numbers


def find_regions(cost: CostModel, batch: int = 1) -> list[Region]:
    """Return the regions of a network in order; the first one has no layer and may have no op."""
    graph = cost.graph
    numbers, columns = region_numbers(graph), len(cost.groups) + 1
    ops: list[list[Op]] = [[] for _ in range(1 + max(numbers.values(), default=0))]
    for op in graph.ops:
        ops[numbers[op]].append(op)
    return [
        _region(number, members, cost.length_form, batch, columns)
        for number, members in enumerate(ops)
    ]


def _region(
    number: int, ops: Sequence[Op], length_of: LengthOf, batch: int, columns: int
) -> Region:
    axes = _Axes(length_of, batch, columns)
    key = "; ".join(_words(op, axes) for op in ops)
    macs = convention_named("macs")
    flops = [(count.factor, count.axes) for op in ops for count in macs.flops(op)]
    made = {value for op in ops for value in op.results}
    read = {value for op in ops for value in op.inputs}
    outer = {
        value for value in made if any(user not in ops for user in value.users) or not value.users
    }
    moved = [v for v in read | outer if not v.is_weight and (v not in made or v in outer)]
    name = next(
        (op.loc.module or op.result.name for op in ops[:1] if number), "before the first layer"
    )
    return Region(
        name,
        tuple(ops),
        key,
        axes.forms_array(),
        axes.polynomial(flops),
        axes.polynomial((_item_size(value), elements(value)) for value in moved),
        axes.polynomial((_item_size(value), elements(value)) for value in read if value.is_weight),
    )


def _words(op: Op, axes: _Axes) -> str:
    """Return one op of a key: what it does, its attributes, and the shapes of operands and
    results."""
    varies = any(axes.varies(value) for value in (*op.inputs, *op.results))
    attrs = []
    for name, value in sorted(op.attrs.items()):
        if name == "groups" and varies and value != 1:
            value = "channels"
        if not (name in SHAPES or value is None):
            attrs.append(f"{name}={_plain(value)}")
    shapes = [axes.text(value) for value in op.inputs]
    results = [axes.text(value) for value in op.results]
    return f"{op.target}({', '.join(shapes)}){{{' '.join(attrs)}}}->{', '.join(results)}"


def _plain(value: Attr) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _item_size(value: Value) -> int:
    return DTYPES[value.type.dtype].itemsize if value.type.dtype in DTYPES else 0


class _Axes:
    """The lengths of a region's axes: those that vary become variables, each a linear form in the
    widths."""

    def __init__(self, length_of: LengthOf, batch: int, columns: int) -> None:
        self.forms: list[np.ndarray] = []
        self._length_of, self._batch, self._columns = length_of, batch, columns
        self._known: dict[tuple[Value, int], tuple[float, int | None]] = {}

    def of(self, value: Value, axis: int) -> tuple[float, int | None]:
        """Return the length as a factor and the number of a variable (None: the factor alone)."""
        key = (value, axis)
        if key not in self._known:
            self._known[key] = self._found(value, axis)
        return self._known[key]

    def _found(self, value: Value, axis: int) -> tuple[float, int | None]:
        dim = value.type.dims[axis]
        form = self._length_of(value, axis)
        if isinstance(dim, BatchSize):
            at_batch = dim.at(self._batch) / max(1, dim.at(1))
            form = form * at_batch
        if not form[:-1].any():
            return float(form[-1]), None
        for number, known in enumerate(self.forms):
            place = int(np.argmax(np.abs(known[:-1])))
            ratio = float(form[place] / known[place])
            if ratio and np.allclose(form, ratio * known, rtol=1e-9):
                return ratio, number
        self.forms.append(form)
        return 1.0, len(self.forms) - 1

    def forms_array(self) -> np.ndarray:
        """Return all variables, `[V, G + 1]`."""
        return np.stack(self.forms) if self.forms else np.zeros((0, self._columns))

    def varies(self, value: Value) -> bool:
        return any(self.of(value, axis)[1] is not None for axis in range(value.type.rank))

    def text(self, value: Value) -> str:
        """A shape such as ``f32[1,a,56,56]``."""
        parts = []
        for axis in range(value.type.rank):
            factor, variable = self.of(value, axis)
            name = "" if variable is None else f"v{variable}"
            parts.append(
                f"{factor:g}" + (f"*{name}" if name and factor != 1 else "")
                if not name or factor != 1
                else name
            )
        return f"{value.type.dtype}[{','.join(parts)}]"

    def polynomial(self, counts: Iterable[tuple[float, Iterable[tuple[Value, int]]]]) -> Polynomial:
        terms: dict[tuple[int, ...], float] = {}
        found = []
        for factor, product in counts:
            lengths = [self.of(value, axis) for value, axis in product]
            found.append(
                (
                    factor * math.prod(length for length, _ in lengths),
                    [number for _, number in lengths],
                )
            )
        for factor, numbers in found:
            powers = tuple(numbers.count(variable) for variable in range(len(self.forms)))
            terms[powers] = terms.get(powers, 0.0) + factor
        return Polynomial(tuple((factor, powers) for powers, factor in terms.items()))
