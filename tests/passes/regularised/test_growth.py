"""The machine behind GReg against its text, written out naively, step by step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.stage_numbers import staged_layers
from pruneopt.passes.regularised.growth import Growth, Rates
from pruneopt.passes.selection.prunable import Prunable, prunable_groups

Smallest = Callable[[Mapping[str, int]], Any]


@pytest.fixture(scope="module")
def layers(graph: Graph) -> tuple[Prunable, ...]:
    coupling = couple(graph)
    return prunable_groups(coupling, staged_layers(coupling.graph), "filter", "internal")


# The machine, written from the text, with loops and Python numbers


@dataclass
class Naive:
    """The text of the paper's schedule for filters, layer by layer; penalties are exact
    fractions."""

    weights: dict[str, Tensor]
    counts: dict[str, int]
    rates: Rates
    early: bool
    state: str = "update_reg"
    stabilised_since: int = -1
    reg: dict[str, list[Fraction]] = field(default_factory=dict)
    picked: dict[str, list[int]] = field(default_factory=dict)
    average: dict[str, float] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.counts:
            self.reg[name] = [Fraction(0)] * len(self.weights[name])
            if self.early:
                self.pick(name)

    def scores(self, name: str) -> list[float]:
        return [float(row.double().abs().sum() / row.numel()) for row in self.weights[name]]

    def pick(self, name: str) -> None:
        scores = self.scores(name)
        self.picked[name] = sorted(range(len(scores)), key=lambda i: scores[i])[: self.counts[name]]

    def iteration(self, number: int) -> None:
        if self.state != "update_reg" or number % self.rates.interval != 0:
            return
        open_layers = [name for name in self.counts if name not in self.finished]
        for name in open_layers:
            self.grow(name)
        for name in open_layers:
            self.update_average(name)
        for name in open_layers:
            if self.is_finished(name):
                self.finished[name] = number
        if len(self.finished) == len(self.counts):
            self.state, self.stabilised_since = "stabilise_reg", number

    def grow(self, name: str) -> None:
        reg, rates = self.reg[name], self.rates
        if self.counts[name] == 0:
            return
        if self.early:
            for i in self.picked[name]:
                reg[i] += rates.grow
        elif name not in self.picked:
            for i in range(len(reg)):
                reg[i] += rates.pick_grow
            if max(reg) >= rates.pick_ceiling:
                self.pick(name)
        else:
            for i in range(len(reg)):
                reg[i] = reg[i] + rates.grow if i in self.picked[name] else rates.recover

    def update_average(self, name: str) -> None:
        if self.counts[name] == 0 or name not in self.picked:
            return
        scores = self.scores(name)
        gone = [scores[i] for i in self.picked[name]]
        kept = [scores[i] for i in range(len(scores)) if i not in self.picked[name]]
        ratio = (sum(kept) / len(kept)) / (sum(gone) / len(gone))
        self.average[name] = (
            0.9 * self.average[name] + 0.1 * ratio if name in self.average else ratio
        )

    def is_finished(self, name: str) -> bool:
        if self.counts[name] == 0:
            return True
        if max(self.reg[name]) > self.rates.ceiling and name in self.picked:
            return True
        if self.early:
            return all(
                self.average[other] >= self.rates.limit
                for other in self.counts
                if self.counts[other]
            )
        return name in self.picked and self.average[name] >= self.rates.limit


def reg_of(machine: Growth, layer: Prunable) -> list[Fraction]:
    """Return the machine's penalty on every group."""
    at = machine.of[layer.name]
    goes, stays = machine.values(at)
    return [
        goes if at.removed is not None and bool(at.removed[i]) else stays
        for i in range(layer.count)
    ]


FAST = Rates(
    interval=3,
    stabilise=7,
    pick_grow=Fraction(1, 100),
    grow=Fraction(1, 10),
    recover=Fraction(-1, 1000),
    pick_ceiling=Fraction(3, 100),
    ceiling=Fraction(1),
    limit=1000.0,
)


def walk(
    layers: tuple[Prunable, ...],
    graph: Graph,
    rates: Rates,
    counts: dict[str, int],
    early: bool,
    rate: float,
    smallest: Smallest,
) -> list[str]:
    """Run both machines beside each other under the same noisy descent, starting the tested one
    anew from its own state in every iteration; returns the states passed through.
    """
    weights = {f"{name}.weight": graph.weights[f"{name}.weight"].clone() for name in counts}
    naive = Naive({name: weights[f"{name}.weight"] for name in counts}, counts, rates, early)
    machine = Growth(layers, rates, early=early, decide=smallest(counts))
    machine.start(weights)
    generator = torch.Generator().manual_seed(1)
    states = []
    for number in range(10_000):
        naive.iteration(number)
        machine.update(number, weights)
        for layer in layers:
            at = machine.of[layer.name]
            if counts[layer.name]:
                assert reg_of(machine, layer) == naive.reg[layer.name], (number, layer.name)
            assert at.finished == naive.finished.get(layer.name)
            assert (at.ratio is None) == (layer.name not in naive.average)
            assert at.ratio is None or math.isclose(
                at.ratio, naive.average[layer.name], rel_tol=1e-12
            )
        states.append(
            machine.state
            + ("" if any(at.removed is None for at in machine.of.values()) else "+picked")
        )
        parameters = {name: nn.Parameter(tensor) for name, tensor in weights.items()}
        for name, parameter in parameters.items():
            parameter.grad = 0.01 * torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.clone()
            reg = torch.tensor([float(value) for value in naive.reg[name.removesuffix(".weight")]])
            weights[name] = parameter.detach() - rate * (
                gradient + reg[:, None, None, None] * parameter.detach()
            )
        machine.penalise(parameters)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            moved = parameter.detach() - rate * parameter.grad
            torch.testing.assert_close(moved, weights[name])
        naive.weights = {name: weights[f"{name}.weight"] for name in counts}
        if machine.done(number + 1):
            break
        saved = copy.deepcopy(machine.state_dict())
        machine = Growth(layers, rates, early=early, decide=smallest(counts))
        machine.start(weights)
        machine.load_state_dict(saved)
    assert naive.state == "stabilise_reg"
    assert number + 1 == naive.stabilised_since + 1 + rates.stabilise
    return states


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    ("rates", "rate"),
    [
        (FAST, 0.01),  # the ceiling ends it
        (
            replace(FAST, limit=3.0, ceiling=Fraction(100)),
            0.5,
        ),  # the ratios end it, at different times
        (replace(FAST, interval=1, stabilise=0), 0.1),
        (replace(FAST, pick_grow=Fraction(7, 1000), grow=Fraction(3, 100), limit=8.0), 0.3),
    ],
)
@pytest.mark.parametrize("counts", [{"a": 2, "b": 3}, {"a": 0, "b": 5}])
def test_every_step_is_that_of_the_text(
    graph: Graph,
    layers: tuple[Prunable, ...],
    rates: Rates,
    rate: float,
    early: bool,
    counts: dict[str, int],
    smallest: Smallest,
) -> None:
    # A late machine cannot know before it picks that a layer loses nothing: such layers are not
    # given to it.
    mine = layers if early else tuple(layer for layer in layers if counts[layer.name])
    asked = counts if early else {name: count for name, count in counts.items() if count}
    states = walk(mine, graph, rates, asked, early, rate, smallest)
    wanted = (
        ["update+picked", "stabilise+picked"]
        if early
        else ["update", "update+picked", "stabilise+picked"]
    )
    assert list(dict.fromkeys(states)) == wanted


def test_ratios_finish_globally_in_greg1_and_by_layer_in_greg2(
    layers: tuple[Prunable, ...], smallest: Smallest
) -> None:
    rates = replace(
        FAST, interval=1, pick_ceiling=Fraction(1, 100), limit=10.0, ceiling=Fraction(100)
    )
    apart = torch.tensor([1.0, 1.0, 0.01, 0.01])[:, None, None, None].expand(4, 1, 3, 3)
    close = torch.tensor([1.0, 1.0, 1.0, 0.9, 0.9, 0.9])[:, None, None, None].expand(6, 4, 3, 3)
    weights = {"a.weight": apart.contiguous(), "b.weight": close.contiguous()}
    early = Growth(layers, rates, early=True, decide=smallest({"a": 2, "b": 3}))
    late = Growth(layers, rates, early=False, decide=smallest({"a": 2, "b": 3}))
    for machine in (early, late):
        machine.start(weights)
        for number in range(3):
            machine.update(number, weights)
    assert early.of["a"].ratio == pytest.approx(100)
    assert [early.of[name].finished for name in "ab"] == [None, None]
    assert [late.of[name].finished for name in "ab"] == [0, None]
    weights["b.weight"] = torch.where(close < 1, 1e-9, close)
    for machine in (early, late):
        machine.update(3, weights)
        assert machine.state == "stabilise"
        assert machine.of["b"].finished == 3


def test_thresholds_are_strict_where_the_paper_is(
    layers: tuple[Prunable, ...], smallest: Smallest
) -> None:
    weights = {"a.weight": torch.ones(4, 1, 3, 3), "b.weight": torch.ones(6, 4, 3, 3)}
    rates = replace(FAST, interval=1, grow=Fraction(1, 2), limit=1.0)
    machine = Growth(
        layers, replace(rates, limit=1.5), early=True, decide=smallest({"a": 1, "b": 1})
    )
    machine.start(weights)
    machine.update(0, weights)
    machine.update(1, weights)
    assert machine.largest(machine.of["a"]) == 1
    state: str = machine.state
    assert state == "update", "a penalty of exactly 1.0 does not exceed the ceiling"
    machine.update(2, weights)
    assert machine.state == "stabilise"
    equal = Growth(layers, rates, early=True, decide=smallest({"a": 1, "b": 1}))
    equal.start(weights)
    equal.update(0, weights)
    assert equal.state == "stabilise", "a ratio of exactly the limit is enough"


class Joined(nn.Module):
    """One layer reads the channels of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3))


def test_two_groups_in_one_weight() -> None:
    """Columns of the reading layer: each group scores and penalises its own alone."""
    graph = capture(Joined().eval(), (torch.randn(1, 1, 4, 4),))
    coupling = couple(graph)
    layers = prunable_groups(coupling, staged_layers(coupling.graph), "channel", "coupled")
    assert [(layer.name, layer.count) for layer in layers] == [("a", 3), ("b", 2)]
    weight = nn.Parameter(graph.weights["c.weight"].clone())
    columns = weight.detach().double().abs().mean((0, 2, 3))
    for layer, wanted in zip(layers, (columns[:3], columns[3:]), strict=True):
        torch.testing.assert_close(layer.magnitudes({"c.weight": weight}), wanted)
    rates = replace(FAST, interval=1, pick_ceiling=Fraction(1, 100), recover=Fraction(-1, 4))
    flags = [torch.tensor([True, False, True]), torch.tensor([False, True])]
    machine = Growth(layers, rates, early=False, decide=lambda _: flags)
    for number, factors in ((0, [0.01] * 5), (1, [0.11, -0.25, 0.11, -0.25, 0.11])):
        machine.update(number, {"c.weight": weight})
        weight.grad = None
        machine.penalise({"c.weight": weight})
        reg = torch.tensor(factors)[None, :, None, None].expand(weight.shape)
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, reg * weight.detach())


class Attending(nn.Module):
    """Queries and keys meet each other; only values are read by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(x, x, x, need_weights=False)[0]
        return self.last(self.head(mixed).relu())


def test_what_no_weight_reads_is_not_pruned_by_input_channels() -> None:
    coupling = couple(capture(Attending().eval(), (torch.randn(1, 4, 8),)))
    places = staged_layers(coupling.graph)
    made = prunable_groups(coupling, places, "filter", "coupled")
    assert [layer.group for layer in made] == ["attention", "attention.out_proj", "head"]
    layers = prunable_groups(coupling, places, "channel", "coupled")
    assert [layer.group for layer in layers] == ["attention.out_proj", "head"]
    assert all(layer.magnitudes(coupling.graph.weights).isfinite().all() for layer in layers)
