"""Recurrent layers and cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from randomnets.base import Dice, Made, Shape, unary

MAX_STEPS = 8
"""Capture takes recurrences step by step: a long one takes seconds."""


@unary("tokens")
def recurrent(dice: Dice, shape: Shape) -> Made | None:
    """LSTM, GRU, RNN: one or two layers, one or both directions, all states or the last one."""
    if shape.size[0] > MAX_STEPS:
        return None
    kind = dice.pick([nn.LSTM, nn.GRU, nn.RNN])
    hidden, both, layers, first = dice.pick([4, 6]), dice.flag(), dice.pick([1, 1, 2]), dice.flag()
    layer = kind(
        shape.channels, hidden, layers, batch_first=first, bidirectional=both, bias=dice.flag()
    )
    outs = hidden * (2 if both else 1)
    last = dice.flag()

    def run(m: nn.Module, x: Tensor) -> Tensor:
        states: Tensor = m(x if first else x.transpose(0, 1))[0]
        states = states if first else states.transpose(0, 1)
        return x.mean() + (states[:, -1:] if last else states)

    return Made(
        f"{layer} {'last' if last else 'all'}",
        Shape("tokens", outs, (1,) if last else shape.size),
        run,
        [layer],
        sized=True,
    )


@unary("tokens")
def final_state(dice: Dice, shape: Shape) -> Made | None:
    """Only the final hidden state is read."""
    if shape.size[0] > MAX_STEPS:
        return None
    layer = dice.pick([nn.GRU, nn.LSTM])(shape.channels, 4, batch_first=True)

    def run(m: nn.Module, x: Tensor) -> Tensor:
        state = m(x)[1]
        final: Tensor = state[0] if isinstance(state, tuple) else state
        return final[-1]

    return Made(f"final state of {layer}", Shape("vector", 4, ()), run, [layer], sized=True)


@unary("tokens")
def cell(dice: Dice, shape: Shape) -> Made:
    """A cell called once for each token: a module used many times."""
    c, hidden, steps = shape.channels, dice.pick([4, 6]), min(3, shape.size[0])
    kind = dice.pick(["gru", "lstm", "written"])
    after = Shape("tokens", hidden, (steps,))
    if kind == "written":
        parts = [nn.Linear(c, hidden), nn.Linear(hidden, hidden, bias=False)]

        def run(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
            states = [a(x[:, 0]).tanh()]
            for i in range(1, steps):
                states.append((a(x[:, i]) + b(states[-1])).tanh())
            return torch.stack(states, 1)

        return Made(f"written rnn {hidden}", after, run, parts)
    layer: nn.Module = nn.GRUCell(c, hidden) if kind == "gru" else nn.LSTMCell(c, hidden)

    def cells(m: nn.Module, x: Tensor) -> Tensor:
        state, states = None, []
        for i in range(steps):
            state = m(x[:, i], state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(states, 1)

    return Made(f"{layer}", after, cells, [layer], sized=True)
