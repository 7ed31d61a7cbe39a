"""Least squares: exact where it can be, never worse where it cannot, and the same however it is
run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.states import outputs
from helpers.workloads import images
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.verifier import verify_graph
from pruneopt.passes.analysis.channels.sizes import gather_kept
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.repair.lstsq import LayerFit
from pruneopt.passes.repair.repair import Repair, RepairReport
from pruneopt.passes.transform.recalibrate import Recalibrate

CutState = Callable[..., State]


def report(state: State, method: str = "lstsq") -> RepairReport:
    found = state.records[f"repair-{method}"]
    assert isinstance(found, RepairReport)
    return found


class Redundant(nn.Module):
    """Every layer's last channels are multiples of its first, so that nothing is lost when they
    go."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm = nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        self.grouped = nn.Conv2d(9, 12, 3, padding=1, groups=3)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.head, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        with torch.no_grad():
            for tensor in (
                self.norm.weight,
                self.norm.bias,
                self.norm.running_mean,
                self.norm.running_var,
            ):
                tensor.copy_(torch.rand(9) + 0.5)
            self._repeat(self.first.weight, 3)
            for tensor in (self.norm.weight, self.norm.bias):
                self._repeat(tensor, 3)
            self.norm.running_mean.view(3, 3)[:, 2] = 2 * self.norm.running_mean.view(3, 3)[:, 0]
            self.norm.running_var.view(3, 3)[:, 2] = 4 * self.norm.running_var.view(3, 3)[:, 0]
            self.norm.eps = 1e-12
            self.norm.weight.view(3, 3)[:, 2] = self.norm.weight.view(3, 3)[:, 0]
            self.norm.bias.view(3, 3)[:, 2] = self.norm.bias.view(3, 3)[:, 0]
            for tensor in (
                self.grouped.weight,
                self.grouped.bias,
                self.deep.weight,
                self.deep.bias,
            ):
                self._repeat(tensor, 3)
            self.deep.weight.view(3, 4, 3, 3)[:, 3] = self.deep.weight.view(3, 4, 3, 3)[:, 0]
            for tensor in (
                self.up.weight.transpose(0, 1),
                self.up.bias,
                self.head.weight,
                self.head.bias,
            ):
                self._repeat(tensor, 1)

    @staticmethod
    def _repeat(tensor: Tensor | None, blocks: int) -> None:
        """The last channel of every block becomes twice its first."""
        assert tensor is not None
        parts = tensor.unflatten(0, (blocks, -1))
        parts[:, -1] = 2 * parts[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.deep(self.grouped(x)))
        x = F.relu(self.up(x)).mean((2, 3))
        return self.last(F.relu(self.head(x)))


REDUNDANT = {"first": [2, 5, 8], "grouped": [3, 7, 11], "up": [7], "head": [7]}


@pytest.mark.parametrize("ridge", [0.0, 1e-9])
def test_what_is_redundant_is_restored(cut_state: CutState, ridge: float) -> None:
    x = images(40)
    state = cut_state(Redundant(), x, REDUNDANT)
    assert state.graph.params["first.weight"].type.shape()[0] == 6
    assert state.graph.params["grouped.weight"].type.shape()[:2] == (9, 2)
    wanted = outputs(state.original, x)
    assert (outputs(state.graph, x) - wanted).abs().max() > 0.05
    assert Repair(method="lstsq", ridge=ridge, positions=1000, images=40).run(state)
    torch.testing.assert_close(outputs(state.graph, x), wanted, rtol=1e-4, atol=1e-5)
    fresh = images(8, seed=7)  # not merely on what it was fitted to
    torch.testing.assert_close(
        outputs(state.graph, fresh), outputs(state.original, fresh), rtol=1e-4, atol=1e-5
    )
    verify_graph(state.graph)
    fitted = {item.layer: item for item in report(state).layers}
    assert set(fitted) == {"grouped", "up", "head", "last", "deep"}
    for name in ("grouped", "up", "last"):
        assert isinstance(fitted[name], LayerFit)
        assert fitted[name].before > 0.01
        assert fitted[name].after < 1e-5


class Deep(nn.Module):
    """Every kind of layer, with batch norm and biases and without, and nothing redundant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.side = nn.Conv2d(8, 8, 1, bias=False)
        self.grouped, self.norm2 = (
            nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(8),
        )
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1)
        self.w = nn.Parameter(torch.randn(6, 5))
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            for norm in (self.norm, self.norm2):
                norm.running_mean.copy_(torch.randn(8) * 0.2)
                norm.running_var.copy_(torch.rand(8) + 0.5)
                norm.weight.copy_(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.side(x) + self.norm2(self.grouped(x)))
        x = F.relu(self.up(F.relu(self.deep(x)))).mean((2, 3))
        return self.head(torch.tanh(x @ self.w))


DEEP = {"stem": [1, 6], "side": [0, 5], "up": [2]}


@pytest.fixture
def deep(cut_state: CutState) -> Callable[..., State]:
    def make(count: int = 24) -> State:
        return cut_state(Deep(), images(count), DEEP)

    return make


def _results(graph: Graph, weights: Mapping[str, Tensor], x: Tensor) -> dict[Op, Tensor]:
    steps = Interpreter(graph).steps(weights, x)
    return {op: results[0] for op, results in steps}


HOMES = {
    "side.weight": "side.bias",
    "grouped.weight": "norm2.running_mean",
    "deep.weight": "deep.bias",
    "up.weight": "up.bias",
    "w": "w_bias",
    "head.weight": "head.bias",
}
"""Every fitted weight of `Deep`, in the order of the layers, and what takes the constant."""


def test_no_layer_gets_worse_and_the_report_says_the_truth(deep: Callable[..., State]) -> None:
    """Each layer by hand: the network repaired up to it, run with the layer's weights of before and
    of after."""
    state = deep()
    before = dict(state.graph.weights)
    Repair(method="lstsq", positions=10_000, ridge=0.02).run(state)
    after, x = state.graph.weights, images(24)
    coupling, kept = state.need_coupling(), state.need_coupling().kept_units(state.plan or {})
    with torch.no_grad():
        full = _results(coupling.graph, state.original.weights, x)
    fits = report(state).layers
    mixed = {**before, **{name: torch.zeros_like(after[name]) for name in ("side.bias", "w_bias")}}
    calls = {
        value.name: op for op in coupling.graph.ops for value in op.inputs if value.name in HOMES
    }
    assert list(calls) == list(HOMES)
    for fit, (weight, target) in zip(fits, HOMES.items(), strict=True):
        assert isinstance(fit, LayerFit)
        old = calls[weight]
        wanted = gather_kept(full[old], coupling.slots_of(old.result), kept).double()
        errors = []
        for stage in (mixed, after):
            mixed.update({name: stage[name] for name in (weight, target)})
            with torch.no_grad():
                mine = next(
                    y for op, y in _results(state.graph, mixed, x).items() if _same(op, old)
                ).double()
            if target.endswith("running_mean"):
                mine = mine + (before[target] - mixed[target]).reshape(1, -1, 1, 1)
            elif target == "w_bias":  # added by an op of its own
                mine = mine + mixed[target]
            errors.append(float((mine - wanted).norm() / wanted.norm()))
        assert errors[1] < errors[0]
        assert fit.before == pytest.approx(errors[0], rel=1e-4)
        assert fit.after == pytest.approx(errors[1], rel=1e-4)


def _same(op: Op, old: Op) -> bool:
    return op.results[0].name == old.results[0].name


def test_holding_the_batches_and_starting_again_are_the_same(deep: Callable[..., State]) -> None:
    held, again = deep(), deep()
    Repair(method="lstsq", batch_size=7, positions=20).run(held)
    Repair(method="lstsq", batch_size=7, positions=20, memory=1e-4).run(again)
    assert not report(again).left
    for name, tensor in held.graph.weights.items():
        assert torch.equal(tensor, again.graph.weights[name]), name


def test_a_normal_matrix_that_does_not_fit_is_left_with_the_reason(
    deep: Callable[..., State],
) -> None:
    state = deep()
    before = state.graph.weights["head.weight"]
    Repair(method="lstsq", memory=1e-6).run(state)
    left = {item.layer: item.why for item in report(state).left}
    assert "normal matrix takes" in left["up"]
    assert "head" not in left
    assert not torch.equal(before, state.graph.weights["head.weight"])


def test_a_strong_ridge_keeps_the_weights(deep: Callable[..., State]) -> None:
    state = deep()
    before = dict(state.graph.weights)
    Repair(method="lstsq", ridge=1e9).run(state)
    for name in ("grouped.weight", "deep.weight", "up.weight", "head.weight"):
        torch.testing.assert_close(state.graph.weights[name], before[name], rtol=1e-4, atol=1e-5)


def test_cut_only_leaves_layers_whose_inputs_merely_changed(deep: Callable[..., State]) -> None:
    state = deep()
    before = dict(state.graph.weights)
    Repair(method="lstsq", cut_only=True).run(state)
    assert torch.equal(state.graph.weights["head.weight"], before["head.weight"])
    assert not torch.equal(state.graph.weights["up.weight"], before["up.weight"])


def test_what_feeds_the_cut_is_not_touched(deep: Callable[..., State]) -> None:
    state = deep()
    before = dict(state.graph.weights)
    Repair(method="lstsq").run(state)
    for name in (
        "stem.weight",
        "norm.weight",
        "norm.running_mean",
        "norm2.weight",
        "norm2.running_var",
    ):
        assert state.graph.weights[name] is before[name], name


def test_labels_are_never_looked_at(cut_state: CutState) -> None:
    found = []
    for targets in (torch.full((24,), float("nan")), torch.zeros(24), torch.arange(24)):
        state = cut_state(Deep(), images(24), {"stem": [1, 6]}, targets=targets)
        for method in ("bias", "lstsq", "bn"):
            Repair(method=method).run(state)
        found.append(state.graph.weights)
    for other in found[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())


def test_runs_repeat_and_follow_the_seed(deep: Callable[..., State]) -> None:
    def weights(seed: int) -> Tensor:
        state = deep()
        state.seed = seed
        Repair(method="lstsq", positions=3).run(state)
        return state.graph.weights["up.weight"]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


class Shared(nn.Module):
    """One convolution used twice, each time behind another batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.one, self.two = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.twice(F.relu(self.stem(x)))))
        return self.head(F.relu(self.two(self.twice(x))))


def test_a_shared_weight_is_fitted_once_on_all_its_uses(cut_state: CutState) -> None:
    state = cut_state(Shared(), images(24), {"stem": [2, 3]})
    x, before = images(24), dict(state.graph.weights)
    Repair(method="lstsq", positions=1000, ridge=0.0).run(state)
    assert [item.layer for item in report(state).layers] == ["twice", "head"]
    weight = state.graph.weights["twice.weight"].double()
    # By hand: both uses as the cut network runs before the fit, stacked, each with an intercept of
    # its own.
    coupling, kept = state.need_coupling(), state.need_coupling().kept_units(state.plan or {})
    with torch.no_grad():
        full = _results(coupling.graph, state.original.weights, x)
        mine = _results(state.graph, before, x)
    systems, rights = [], []
    calls = [
        (a, b)
        for a, b in zip(coupling.graph.ops, state.graph.ops, strict=True)
        if a.loc.module == "twice"
    ]
    for number, (old, new) in enumerate(calls):
        source = new.value(0)
        assert source is not None
        assert source.producer is not None
        inputs = mine[source.producer]
        rows = F.unfold(inputs.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
        ones = torch.zeros(len(rows), 2, dtype=torch.float64)
        ones[:, number] = 1
        systems.append(torch.cat([rows, ones], 1))
        kept_part = gather_kept(full[old], coupling.slots_of(old.result), kept)
        rights.append(kept_part.double().flatten(2).transpose(1, 2).flatten(0, 1))
    wanted = torch.linalg.lstsq(torch.cat(systems), torch.cat(rights)).solution
    torch.testing.assert_close(weight.flatten(1).t(), wanted[:-2], rtol=1e-5, atol=1e-6)
    for number, name in enumerate(("one", "two")):
        moved = before[f"{name}.running_mean"] - state.graph.weights[f"{name}.running_mean"]
        torch.testing.assert_close(moved.double(), wanted[-2 + number], rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    """The head reads the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table = nn.Parameter(torch.randn(6, 8))
        self.stem, self.back = nn.Linear(5, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)) + self.table[0]
        return F.linear(self.back(x), self.table)


def test_a_weight_that_others_read_too_is_left(cut_state: CutState) -> None:
    state = cut_state(Tied(), torch.randn(30, 5), {"stem": [1, 2]})
    table = state.graph.weights["table"]
    Repair(method="lstsq").run(state)
    assert state.graph.weights["table"] is table
    assert [item.why for item in report(state).left] == [
        "its weight is also read by ops that are no such layer"
    ]


def test_a_sparse_weight_is_not_filled(deep: Callable[..., State]) -> None:
    state = deep()
    before = state.graph.weights["up.weight"]
    state.masks = {"up.weight": torch.ones(before.shape, dtype=torch.bool)}
    Repair(method="lstsq").run(state)
    assert state.graph.weights["up.weight"] is before
    assert any(item.layer == "up" and "sparse" in item.why for item in report(state).left)


def test_a_batch_norm_that_has_changed_is_no_aim(deep: Callable[..., State]) -> None:
    state = deep()
    Recalibrate(batches=1, batch_size=8).run(state)
    with pytest.raises(UserError, match=r"norm.running_var has changed since the cut"):
        Repair(method="lstsq").run(state)


def test_bias_first_changes_nothing_of_the_optimum(deep: Callable[..., State]) -> None:
    alone, after = deep(), deep()
    options: dict[str, Any] = {"method": "lstsq", "ridge": 0.0, "positions": 1000}
    Repair(**options).run(alone)
    Repair(method="bias").run(after)
    Repair(**options).run(after)
    x = images(24, seed=9)
    torch.testing.assert_close(
        outputs(alone.graph, x), outputs(after.graph, x), rtol=1e-3, atol=1e-4
    )
    first = {item.layer: item for item in report(alone).layers if isinstance(item, LayerFit)}
    second = {item.layer: item for item in report(after).layers if isinstance(item, LayerFit)}
    assert second["grouped"].before < first["grouped"].before
    assert second["grouped"].after == pytest.approx(first["grouped"].after, rel=1e-4)
