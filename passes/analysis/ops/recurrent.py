"""How labels pass through recurrences: LSTM, GRU and plain recurrent networks, as layers and as
single cells.

A hidden channel is a row of every gate in the weights of its layer and direction, and a column
wherever the next step or the next layer reads it. All layers and directions share one hidden size,
as their states lie in one tensor: each may lose channels of its own, but all equally many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Blocks, Labels
from pruneopt.passes.analysis.channels.planes import varying
from pruneopt.passes.analysis.ops.convolution import channel_labels, meet_weight
from pruneopt.passes.analysis.ops.layers import Cell, Recurrence, recurrence_of
from pruneopt.passes.analysis.ops.rules import CREATED, rule

__all__: list[str] = []


@rule(
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"
)
def recurrent(labels: Labels, op: Op) -> None:
    """Layer by layer: inputs meet the weights, hidden channels come out; then the states have the
    same channels."""
    x, found = op.value(0), recurrence_of(op)
    if x is None or found is None:
        labels.give_up(op, "it runs over packed sequences or lacks weights")
        return
    if any(min(labels.shape(weight)) == 1 for cell in found.cells for weight in cell.matrices[1:]):
        labels.give_up(op, "it has one hidden channel")
        return
    channels, rest = channel_labels(labels, op, x, x.type.rank - 1)
    for plane in rest:
        labels.freeze(plane, f"channels lie along time or batch of {op}")
    hidden, given = _run(labels, op, found, channels)
    if not hidden:
        labels.give_up(op, "its weights are computed in ways that mix their channels")
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
    """The labels of the hidden channels of every cell, and those of what it gives to the next step
    and layer."""
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
    """PyTorch knows a projection by its having fewer channels than are hidden: every projected
    channel goes along with one hidden channel, and one more stays.
    """
    count = projected.numel()
    labels.unite(hidden[:count], projected, f"{op}")
    labels.freeze(
        hidden[count : count + 1], f"there must be more hidden than projected channels in {op}"
    )


def _gates(labels: Labels, op: Op, cell: Cell, gates: int) -> Tensor | None:
    """The labels of a cell's hidden channels: the rows of each gate, in every weight and bias."""
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
    """An initial state, `[cells, batch, channels]` (or `[batch, channels]` of a single cell), has
    the labels of the hidden channels.
    """
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
    """The output has the channels of the last layer, directions beside each other; last states
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
