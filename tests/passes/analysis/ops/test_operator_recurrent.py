"""LSTM, GRU and plain recurrence, as layers and as cells: what may be pruned, and a proof of what
pruning leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.graph_rewrites.slice import slice_graph

SEQUENCE = (2, 5, 6)


class Recurrent(nn.Module):
    """A layer, a recurrence, a head; ``forward`` may say how they meet."""

    def __init__(
        self,
        kind: Callable[..., nn.RNNBase],
        forward: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        options = {"hidden_size": 4, "batch_first": True, **options}
        self.a = nn.Linear(6, 8)
        self.m = kind(8, **options)
        width = options.get("proj_size") or options["hidden_size"]
        self.out = nn.Linear(width * (2 if options.get("bidirectional") else 1), 5)
        self._forward = forward

    def forward(self, *inputs: torch.Tensor) -> Any:
        if self._forward is not None:
            return self._forward(self, *inputs)
        return self.out(self.m(self.a(inputs[0]).relu())[0])


def from_own_state(s: Any, x: torch.Tensor) -> Any:
    """Initial states computed by layers, one for each layer of the recurrence."""
    first = x.mean(1)
    h = torch.stack([s.h0(first), s.h1(first)])
    c = torch.stack([s.c0(first), s.c1(first)])
    return s.out(s.m(s.a(x), (h, c))[0])


def learned_state(s: Any, x: torch.Tensor) -> Any:
    return s.out(s.m(s.a(x), s.h.expand(-1, x.shape[0], -1).contiguous())[0])


def last_states(s: Any, x: torch.Tensor) -> Any:
    """Return what a classifier reads: the last states of both directions."""
    _, (h, c) = s.m(s.a(x))
    return s.out(torch.cat([h[-2], h[-1]], 1)) + s.other(c.transpose(0, 1).flatten(1))


def with_parts(net: Recurrent, **parts: Any) -> Recurrent:
    for name, part in parts.items():
        setattr(net, name, part)
    return net


def weight_normed() -> nn.Module:
    net = Recurrent(nn.LSTM)
    nn.utils.parametrizations.weight_norm(net.m, "weight_hh_l0")
    return net


LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), {"a": 8, "m": 4}),
    "rnn, relu, without biases": (
        lambda: Recurrent(nn.RNN, nonlinearity="relu", bias=False),
        {"a": 8, "m": 4},
    ),
    "gru, time first": (lambda: Recurrent(nn.GRU, batch_first=False), {"a": 8, "m": 4}),
    "two layers, both directions": (
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        {"a": 8, "m": 16},
    ),
    "gru, both directions": (lambda: Recurrent(nn.GRU, bidirectional=True), {"a": 8, "m": 8}),
    "projected, two layers, both directions": (
        lambda: Recurrent(nn.LSTM, hidden_size=6, proj_size=3, num_layers=2, bidirectional=True),
        {"a": 8, "m": 12, "m.3": 8},
    ),
    "projected without biases": (
        lambda: Recurrent(nn.LSTM, proj_size=3, bias=False),
        {"a": 8, "m": 3},
    ),
    "states of its own": (
        lambda: with_parts(
            Recurrent(nn.LSTM, from_own_state, num_layers=2),
            h0=nn.Linear(6, 4),
            h1=nn.Linear(6, 4),
            c0=nn.Linear(6, 4),
            c1=nn.Linear(6, 4),
        ),
        {"a": 8, "h0": 4},
    ),
    "a learned state": (
        lambda: with_parts(
            Recurrent(nn.GRU, learned_state, num_layers=2), h=nn.Parameter(torch.rand(2, 1, 4))
        ),
        {"a": 8, "h": 4},
    ),
    "last states": (
        lambda: with_parts(
            Recurrent(nn.LSTM, last_states, bidirectional=True), other=nn.Linear(8, 5)
        ),
        {"a": 8, "m": 8},
    ),
    "weight norm": (weight_normed, {"a": 8, "m": 4}),
}


FAST = (
    "gru, time first",
    "projected, two layers, both directions",
    "states of its own",
    "weight norm",
)
"""Each capture goes through torch.export, which takes seconds for a recurrence: the others are slow
tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in LAYERS]
)
def test_a_recurrent_layer_loses_hidden_channels(name: str, prove: Callable[..., Any]) -> None:
    make, free = LAYERS[name]
    torch.manual_seed(0)
    coupling = prove(make(), torch.randn(SEQUENCE))
    assert {group.name: group.width for group in coupling.free} == free


class Decoding(nn.Module):
    """Encoder and decoder share their states, hence their hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.decoder = nn.Linear(6, 8), nn.GRU(8, 4, 2), nn.GRU(8, 4, 2)
        self.out = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        _, state = self.m(self.a(x))
        return self.out(self.decoder(self.a(y), state)[0])


class Stepping(nn.Module):
    """Two cells, one above the other, called for every step."""

    def __init__(self, kind: Callable[[int, int], nn.RNNCellBase]) -> None:
        super().__init__()
        self.a, self.low, self.high, self.out = (
            nn.Linear(6, 8),
            kind(8, 4),
            kind(4, 6),
            nn.Linear(6, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        low: Any = None
        high: Any = None
        for step in range(x.shape[1]):
            low = self.low(x[:, step], low)
            high = self.high(low[0] if isinstance(low, tuple) else low, high)
        return self.out(high[0] if isinstance(high, tuple) else high)


class GivenState(Recurrent):
    """The caller gives the initial state, so its size may not change."""

    def __init__(self) -> None:
        super().__init__(
            nn.GRU, lambda s, x, h: s.out(s.m(s.a(x), h.transpose(0, 1).contiguous())[0])
        )


def test_two_recurrences_that_share_their_states(prove: Callable[..., Any]) -> None:
    coupling = prove(Decoding(), torch.randn(2, 5, 6), torch.randn(2, 5, 6))
    assert {group.name: group.width for group in coupling.free} == {"a": 8, "m": 8}


@pytest.mark.parametrize(
    "kind",
    [
        nn.LSTMCell,
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (nn.GRUCell, nn.RNNCell)),
    ],
)
def test_cells_called_step_by_step(
    kind: Callable[[int, int], nn.RNNCellBase], prove: Callable[..., Any]
) -> None:
    coupling = prove(Stepping(kind), torch.randn(2, 3, 6))
    assert {group.name: group.width for group in coupling.free} == {"a": 8, "low": 4, "high": 6}


def test_what_a_caller_gives_keeps_its_size(prove: Callable[..., Any]) -> None:
    coupling = prove(GivenState(), torch.randn(SEQUENCE), torch.randn(2, 1, 4))
    assert [group.name for group in coupling.free] == ["a"]
    assert "combined with a state" in coupling.group("m").frozen


def test_one_hidden_channel_stays(prove: Callable[..., Any]) -> None:
    coupling = prove(Recurrent(nn.GRU, hidden_size=1), torch.randn(SEQUENCE))
    assert not coupling.free
    assert coupling.unknown[0].why == "it has one hidden channel"


def test_every_layer_and_direction_keeps_as_many() -> None:
    """The states of all of them lie in one tensor; and each may lose other channels than its
    neighbour."""
    graph = capture(
        Recurrent(nn.LSTM, num_layers=2, bidirectional=True).eval(), (torch.randn(SEQUENCE),)
    )
    coupling = couple(graph)
    group = coupling.group("m")
    assert group.step == 4
    plan = {"m": np.array([0, 1, 5, 6, 8, 11, 12, 13])}
    pruned = slice_graph(graph, coupling, plan)
    assert pruned.params["m.weight_ih_l1_reverse"].type.shape() == (8, 4)
    # Units 8 and 11 are channels 0 and 3 of the second layer: of every gate.
    rows = [
        0,
        3,
        4,
        7,
        8,
        11,
        12,
        15,
    ]
    torch.testing.assert_close(
        pruned.weights["m.weight_hh_l1"],
        graph.weights["m.weight_hh_l1"][rows][:, [0, 3]],
        rtol=0,
        atol=0,
    )
    with pytest.raises(UserError, match="all must be equal"):
        slice_graph(graph, coupling, {"m": np.array([0, 4, 8, 12, 13])})


def test_recurrences_have_costs_and_scores() -> None:
    graph = capture(Recurrent(nn.LSTM).eval(), (torch.randn(SEQUENCE),))
    coupling = couple(graph)
    cost = CostModel(graph, coupling)
    full, half = (cost.measure("flops", cost.widths({"m": np.arange(n)})) for n in (4, 2))
    # five steps: inputs to gates, hidden to gates, and what the head reads
    assert full - half == 5 * (16 * 8 + 16 * 4 + 4 * 5) - 5 * (8 * 8 + 8 * 2 + 2 * 5)
    score = score_units(coupling, graph.weights, "l1")["m"]
    weights = [
        graph.weights[f"m.weight_{kind}_l0"].detach().double().abs() for kind in ("ih", "hh")
    ]
    np.testing.assert_allclose(
        score, sum(weight.sum(1).reshape(4, 4).sum(0) for weight in weights).numpy()
    )
