"""Where the weight of a layer stands, and which of its axes makes channels and which consumes them:
one table."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import numbers

__all__ = [
    "GATES",
    "LAYERS",
    "Cell",
    "LayerWeight",
    "Recurrence",
    "layer_weight",
    "layer_weights",
    "recurrence_of",
]

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
MATMULS = ("matmul", "bmm", "mm")
PRODUCTS = ("addmm", "baddbmm", *MATMULS, "einsum", "tensordot", "bilinear")
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, "linear", "embedding", *PRODUCTS)


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """A layer's weight (it may be computed), the axis of its output channels, and that of its input
    channels if any."""

    value: Value
    out_axis: int
    in_axis: int | None

    def makes(self, axes: tuple[int, ...]) -> bool:
        """Whether labels over ``axes`` of the weight are those of its output channels.

        Those of a grouped transposed convolution lie along both axes: (groups, outputs of one
        group).
        """
        return axes[-1] == self.out_axis


def layer_weight(op: Op) -> LayerWeight | None:
    """The weight that a layer contracts its input with; None for other ops, and for products of
    activations."""
    if op.role in CONVOLUTIONS or op.role in TRANSPOSED:
        weight, axes = op.value(1), (0, 1)
        if op.role in TRANSPOSED or op.attrs.get("transposed") is True:
            axes = (1, 0)
        return None if weight is None else LayerWeight(weight, *axes)
    if op.role == "linear":
        weight = op.value(1)
        return None if weight is None else LayerWeight(weight, 0, weight.type.rank - 1)
    if op.role == "embedding":
        weight = op.value(0)
        return None if weight is None else LayerWeight(weight, 1, None)
    if op.role == "bilinear":
        weight = op.value(2)
        return None if weight is None else LayerWeight(weight, 0, 1)
    if op.role == "tensordot":
        return _of_tensordot(op)
    if op.role in (*MATMULS, "addmm", "baddbmm"):
        left, right = (op.value(i) for i in ((1, 2) if op.role in ("addmm", "baddbmm") else (0, 1)))
        if right is not None and right.is_weight and right.type.rank > 1:
            return LayerWeight(right, right.type.rank - 1, right.type.rank - 2)
        if left is not None and left.is_weight and left.type.rank > 1:
            return LayerWeight(left, left.type.rank - 2, left.type.rank - 1)
    return None


def _of_tensordot(op: Op) -> LayerWeight | None:
    """A matrix of which one axis is summed over."""
    for index, name in ((1, "dims_other"), (0, "dims_self")):
        weight, summed = op.value(index), numbers(op, name)
        if weight is not None and weight.is_weight and weight.type.rank == 2 and len(summed) == 1:
            return LayerWeight(weight, 1 - summed[0] % 2, summed[0] % 2)
    return None


def layer_weights(op: Op) -> tuple[LayerWeight, ...]:
    """The weights that an op contracts its input with: one for a layer, several for a recurrence
    (from inputs to gates, from hidden channels to gates, projections), none for other ops.
    """
    recurrence = recurrence_of(op)
    if recurrence is not None:
        return tuple(
            LayerWeight(weight, 0, 1) for cell in recurrence.cells for weight in cell.matrices
        )
    layer = layer_weight(op)
    return () if layer is None else (layer,)


# Recurrences

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""How many blocks of rows, one for each gate, the weights of a recurrence have."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The weights of one layer and direction: `[gates * hidden, inputs]`, `[gates * hidden,
    recurrent]`, two biases `[gates * hidden]` if any, and a projection `[recurrent, hidden]` if
    any.
    """

    inputs: Value
    hidden: Value
    biases: tuple[Value, ...]
    projection: Value | None

    @property
    def matrices(self) -> tuple[Value, ...]:
        return (
            (self.inputs, self.hidden)
            if self.projection is None
            else (self.inputs, self.hidden, self.projection)
        )


@dataclass(frozen=True, slots=True)
class Recurrence:
    """An LSTM, GRU or plain recurrent network: a cell for every layer and direction, directions of
    a layer adjacent.

    ``states`` are the initial states: hidden ones first and, for an LSTM, cell states.
    """

    gates: int
    cells: tuple[Cell, ...]
    directions: int
    states: tuple[Value, ...]


def recurrence_of(op: Op) -> Recurrence | None:
    """How a recurrent op is made up; None for other ops, and for those on packed sequences."""
    kind = op.role.removesuffix("_cell")
    gates = GATES.get(kind)
    if gates is None or (kind == op.role and not op.target.endswith(".input")):
        return None
    states = op.operands[1] if isinstance(op.operands[1], tuple) else (op.value(1),)
    found = tuple(state for state in states if state is not None)
    if kind != op.role:
        cells = _cells([op.value(index) for index in range(2, len(op.operands))], 4, False)
        return Recurrence(gates, cells, 1, found) if cells else None
    weights = op.operands[2] if isinstance(op.operands[2], tuple) else ()
    directions = 2 if op.attrs["bidirectional"] is True else 1
    layers = op.attrs["num_layers"]
    each = len(weights) // (layers * directions) if isinstance(layers, int) else 0
    cells = _cells(list(weights), each, each in (3, 5))
    return Recurrence(gates, cells, directions, found) if cells else None


def _cells(weights: list[Value | None], each: int, projected: bool) -> tuple[Cell, ...]:
    """The cells whose weights follow each other, ``each`` of them per cell; none where one is
    missing."""
    cells = []
    for start in range(0, len(weights), each) if each else ():
        inputs, hidden, *rest = weights[start : start + each]
        if inputs is None or hidden is None:
            return ()
        projection = rest.pop() if projected else None
        cells.append(
            Cell(inputs, hidden, tuple(bias for bias in rest if bias is not None), projection)
        )
    return tuple(cells)
