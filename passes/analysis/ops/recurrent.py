"""Recurrences: LSTM, GRU and plain recurrent networks, as layers and as single cells.

A hidden channel is a row of every gate in the weights of its layer and direction, and a column
wherever the next step or the next layer reads it. All layers and directions share one hidden size,
as their states lie in one tensor: each may lose channels of its own, but all equally many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Blocks, Labels
from pruneopt.passes.analysis.channels.layer_weight import LayerWeight
from pruneopt.passes.analysis.channels.planes import varying
from pruneopt.passes.analysis.ops.convolution import channel_labels, meet_weight
from pruneopt.passes.analysis.ops.count import Count, elements
from pruneopt.passes.analysis.ops.creation import CREATED
from pruneopt.passes.analysis.ops.definition import OpDefinition

__all__ = ["DEFINITIONS"]

# What a recurrence is made of

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
    """Return how a recurrent op is made up; None for other ops, and for those on packed
    sequences."""
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
    """Return the cells whose weights follow each other, ``each`` of them per cell; none where one
    is missing."""
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


# Labels


def recurrent(labels: Labels, op: Op) -> None:
    """Pass labels layer by layer: inputs meet the weights, hidden channels come out; then the
    states have the same channels."""
    x, found = op.value(0), recurrence_of(op)
    if x is None or found is None:
        labels.freeze_unknown(op, "it runs over packed sequences or lacks weights")
        return
    if any(min(labels.shape(weight)) == 1 for cell in found.cells for weight in cell.matrices[1:]):
        labels.freeze_unknown(op, "it has one hidden channel")
        return
    channels, rest = channel_labels(labels, op, x, x.type.rank - 1)
    for plane in rest:
        labels.freeze(plane, f"channels lie along time or batch of {op}")
    hidden, given = _run(labels, op, found, channels)
    if not hidden:
        labels.freeze_unknown(op, "its weights are computed in ways that mix their channels")
        return
    for rows in (hidden, given):
        if len(rows) > 1:  # the states of all layers and directions lie in one tensor
            labels.blocks.append(Blocks(torch.stack(rows), op, pinned=1))
    kinds = [given] if len(found.states) == 1 else [given, hidden]
    for state, rows in zip(found.states, kinds, strict=True):
        _meet_state(labels, op, state, rows)
    _set_results(labels, op, kinds, given[-found.directions :])


def _run(
    labels: Labels, op: Op, found: Recurrence, channels: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the labels of the hidden channels of every cell, and those of what it gives to the
    next step and layer."""
    hidden: list[Tensor] = []
    given: list[Tensor] = []
    for index, cell in enumerate(found.cells):
        if index >= found.directions and index % found.directions == 0:
            channels = torch.cat(given[-found.directions :])
        own = _gates(labels, op, cell, found.gates)
        out = (
            own
            if cell.projection is None or own is None
            else labels.axis_labels(cell.projection, 0)
        )
        if own is None or out is None:
            return [], []
        meet_weight(labels, op, cell.inputs, 1, channels)
        meet_weight(labels, op, cell.hidden, 1, out)
        if cell.projection is not None:
            meet_weight(labels, op, cell.projection, 1, own)
            _stay_wider(labels, op, own, out)
        hidden.append(own)
        given.append(out)
    return hidden, given


def _stay_wider(labels: Labels, op: Op, hidden: Tensor, projected: Tensor) -> None:
    """Keep more hidden than projected channels, by which PyTorch knows a projection: every
    projected channel goes along with one hidden channel, and one more stays."""
    count = projected.numel()
    labels.unite(hidden[:count], projected, f"{op}")
    labels.freeze(
        hidden[count : count + 1], f"there must be more hidden than projected channels in {op}"
    )


def _gates(labels: Labels, op: Op, cell: Cell, gates: int) -> Tensor | None:
    """Return the labels of a cell's hidden channels: the rows of each gate, in every weight and
    bias."""
    rows = labels.axis_labels(cell.inputs, 0)
    if rows is None:
        return None
    own = labels.tie(rows.reshape(gates, -1), [0]).reshape(-1)
    every = own.repeat(gates)
    labels.adopt(cell.hidden, every.reshape(-1, 1), f"{op}")
    for bias in cell.biases:
        labels.adopt(bias, every, f"bias of {op}")
    return own


def _meet_state(labels: Labels, op: Op, state: Value, rows: list[Tensor]) -> None:
    """Give an initial state, `[cells, batch, channels]` (or `[batch, channels]` of a single cell),
    the labels of the hidden channels."""
    rank = state.type.rank
    spread = not op.role.endswith("_cell")
    plane = torch.stack(rows).reshape(
        [len(rows), *[1] * (rank - 2), -1] if spread else [*[1] * (rank - 1), -1]
    )
    if state.producer is not None and state.producer.role in CREATED and state.users == (op,):
        labels.planes[state] = (plane,)  # one number everywhere: it takes any labels
        return
    if state.is_weight:
        labels.adopt(state, plane, f"state of {op}")
        return
    along = [own for own in labels.of(state) if rank - 1 in varying(own)]
    for own in labels.of(state):
        if rank - 1 in varying(own):
            labels.unite(labels.tie(own, range(1 if spread else 0, rank - 1)), plane, f"{op}")
        else:
            labels.freeze(own, f"channels lie along the layers or the batch of {op}")
    if not along:
        labels.freeze(plane, f"combined with a state whose channels cannot be removed, {op}")


def _set_results(labels: Labels, op: Op, kinds: list[list[Tensor]], last: list[Tensor]) -> None:
    """Give the output the channels of the last layer, directions beside each other, and last states
    those of every cell."""
    if op.role.endswith("_cell"):
        for value, rows in zip(op.results, kinds, strict=True):
            labels.set(value, [rows[0].reshape(1, -1) if value.type.rank == 2 else rows[0]])
        return
    output, *states = op.results
    labels.set(output, [torch.cat(last).reshape([*[1] * (output.type.rank - 1), -1])])
    for value, rows in zip(states, kinds, strict=True):
        labels.set(
            value, [torch.stack(rows).reshape([len(rows), *[1] * (value.type.rank - 2), -1])]
        )


# Weights and costs


def weights_of(op: Op) -> tuple[LayerWeight, ...]:
    """Return the matrices of every cell: from inputs to gates, from hidden channels to gates, and
    projections."""
    found = recurrence_of(op)
    cells = () if found is None else found.cells
    return tuple(LayerWeight(weight, 0, 1) for cell in cells for weight in cell.matrices)


def macs(op: Op) -> list[Count]:
    """Count every weight matrix at every time step (of `lstm.input` and its like: one tensor, not
    packed sequences)."""
    x, weights = op.value(0), op.operands[-1]
    if x is None or not isinstance(weights, tuple):
        return []
    matrices = [weight for weight in weights if weight is not None and weight.type.rank == 2]
    return [Count(elements(x)[:-1] + elements(weight)) for weight in matrices]


DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(GATES, OpDefinition(rule=recurrent, layers=weights_of, macs=macs)),
    **dict.fromkeys(
        (f"{kind}_cell" for kind in GATES), OpDefinition(rule=recurrent, layers=weights_of)
    ),
}
