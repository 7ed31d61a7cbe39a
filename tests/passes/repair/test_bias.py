"""The mean contribution of removed channels: by hand, exact for constants, and everywhere a
constant can go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.states import outputs
from helpers.workloads import images
from torch import Tensor, nn

from pruneopt.ir.codegen.module import build_module, generate_source
from pruneopt.ir.export.export import run_onnx
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.verifier import verify_graph
from pruneopt.passes.analysis.channels.sizes import gather_kept
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.repair.repair import Repair, RepairReport
from pruneopt.tools.bundle.artefacts import write_artefacts

CutState = Callable[..., State]


def report(state: State) -> RepairReport:
    found = state.records["repair-bias"]
    assert isinstance(found, RepairReport)
    return found


class Constant(nn.Module):
    """Channels 1 and 4 of the stem do not depend on the input: their filters are zero."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.plain = nn.Conv2d(6, 5, 3, padding=padding)
        self.before_norm, self.norm2 = (
            nn.Conv2d(6, 4, 3, padding=padding, bias=False),
            nn.BatchNorm2d(4),
        )
        self.bare = nn.Conv2d(6, 3, 1, bias=False)
        self.up = nn.ConvTranspose2d(6, 2, 1, bias=False)
        with torch.no_grad():
            self.stem.weight[[1, 4]] = 0
            self.norm.bias.copy_(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.sigmoid(self.norm(self.stem(x)))
        return self.plain(x), F.relu(self.norm2(self.before_norm(x))), self.bare(x), self.up(x)


def test_constant_channels_are_restored_exactly(cut_state: CutState) -> None:
    state = cut_state(Constant(), images(24), {"stem": [1, 4]})
    x = images(24, seed=5)
    wanted = state.original, outputs(state.original, x)
    assert all(
        not torch.allclose(a, b, atol=1e-2)
        for a, b in zip(outputs(state.graph, x), wanted[1], strict=True)
    )
    assert Repair(method="bias").run(state)
    for mine, theirs in zip(outputs(state.graph, x), wanted[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    into = {item.layer: item.into for item in report(state).layers}
    assert into == {
        "plain": "plain.bias",
        "before_norm": "norm2.running_mean",
        "bare": "bare.bias",
        "up": "up.bias",
    }
    assert state.trained_after_slice


def test_the_mean_over_positions_is_exact_where_zero_padding_makes_them_differ(
    cut_state: CutState,
) -> None:
    state = cut_state(Constant(padding=1), images(24), {"stem": [1, 4]})
    Repair(method="bias", batch_size=7).run(state)
    mine, theirs = outputs(state.graph, images(24))[0], outputs(state.original, images(24))[0]
    torch.testing.assert_close(mine.mean((0, 2, 3)), theirs.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    gap = (mine - theirs).abs().amax((0, 1))
    assert gap[0, 0] > 1e-3  # the corner sees fewer removed values than the mean position
    assert gap[2:-2, 2:-2].std() < 1e-5  # inside, all positions are off alike


class Chain(nn.Module):
    """Grouped, depthwise and linear layers behind what is removed; nothing is constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(F.relu(self.stem(x))))
        return self.head(F.relu(self.grouped(x)).mean((2, 3)))


def test_the_shift_is_the_removed_parts_mean_output(cut_state: CutState) -> None:
    """By hand: the original's own input of the grouped layer, all kept channels at zero."""
    module, x = Chain(), images(24)
    state = cut_state(module, x, {"stem": [0, 6]})
    before = state.graph.weights["grouped.bias"]
    Repair(method="bias", batch_size=10).run(state)
    gone = [0, 1, 12, 13]
    with torch.no_grad():
        inputs = F.relu(module.deep(F.relu(module.stem(x)))).double()
        removed = torch.zeros_like(inputs)
        removed[:, gone] = inputs[:, gone]
        part = F.conv2d(removed, module.grouped.weight.double(), None, padding=1, groups=2).mean(
            (0, 2, 3)
        )
    moved = (state.graph.weights["grouped.bias"] - before).double()
    torch.testing.assert_close(moved, part, rtol=1e-5, atol=1e-7)
    # Depthwise layers lose what removed channels feed; the head's inputs are all there.
    assert [item.layer for item in report(state).layers] == ["grouped"]
    assert report(state).layers[0].shift == pytest.approx(
        float(part.square().mean().sqrt()), rel=1e-5
    )
    assert "head.bias" not in state.graph.params


class Product(nn.Module):
    """A matrix product and an addition, in user code."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.stem = nn.Linear(5, 7)
        self.v, self.w, self.b = (
            nn.Parameter(torch.randn(shape)) for shape in ((7, 4), (7, 3), (3,))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        return torch.matmul(x, self.v), x @ self.w + self.b


def test_products_get_an_addition_or_use_the_one_behind_them(cut_state: CutState) -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    state = cut_state(Product(), x, {"stem": [2, 3]})
    Repair(method="bias").run(state)
    for mine, theirs in zip(outputs(state.graph, x), outputs(state.original, x), strict=True):
        torch.testing.assert_close(mine.mean(0), theirs.mean(0), rtol=1e-5, atol=1e-5)
    assert [item.into for item in report(state).layers] == ["v_bias", "b"]
    verify_graph(state.graph)


class Twice(nn.Module):
    """One layer without a bias, called twice, and known by a second name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.stem = nn.Conv2d(3, 6, 1)
        self.mix = nn.Conv2d(6, 6, 1, bias=False)
        self.again = self.mix
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(F.relu(self.again(F.relu(self.mix(x) + x))))


def test_a_shared_layer_gets_one_bias_with_the_mean_of_its_calls(cut_state: CutState) -> None:
    state = cut_state(Twice(), images(24), {"stem": [1, 2]})
    assert state.graph.params["mix.weight"].type.shape()[:2] == (4, 4)
    Repair(method="bias").run(state)
    module, x = build_module(state.graph, state.graph.weights), images(24)
    assert module.mix is module.again
    assert isinstance(module.mix.bias, nn.Parameter)
    original = build_module(state.original, state.original.weights)
    parts = []
    with torch.no_grad():
        first = F.relu(original.stem(x))
        for inputs in (first, F.relu(original.mix(first) + first)):
            removed = torch.zeros_like(inputs)
            removed[:, [1, 2]] = inputs[:, [1, 2]]
            parts.append(original.mix(removed).mean((0, 2, 3))[[0, 3, 4, 5]])
    torch.testing.assert_close(
        module.mix.bias.detach(), (parts[0] + parts[1]) / 2, rtol=1e-5, atol=1e-6
    )


def test_a_new_bias_is_a_bias_of_the_generated_layer_and_of_every_artefact(
    cut_state: CutState, tmp_path: Path
) -> None:
    state = cut_state(Constant(), images(24), {"stem": [1, 4]})
    Repair(method="bias").run(state)
    source = generate_source(state.graph)
    assert "nn.Conv2d(4, 3, 1)" in source
    assert "nn.ConvTranspose2d(4, 2, 1)" in source
    assert "nn.Conv2d(4, 4, 3, bias=False)" in source  # that one has its batch norm
    module = build_module(state.graph, state.graph.weights)
    assert isinstance(module.bare.bias, nn.Parameter)
    assert module.bare.bias.abs().max() > 1e-3
    assert state.uncut is not None
    write_artefacts(
        tmp_path,
        module=module,
        before=state.uncut,
        after=state.graph,
        coupling=state.need_coupling(),
        plan=state.plan or {},
        examples=(images(2),),
    )
    x = images(3, seed=4)
    with torch.no_grad():
        wanted = module(x)
    for mine, theirs in zip(run_onnx(tmp_path / "model.onnx", (x,)), wanted, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), theirs, rtol=1e-4, atol=1e-4)
    text = print_graph(state.graph)
    assert "@bare.bias" in text
    assert print_graph(parse_graph(text)) == text


def test_what_new_biases_cost_is_in_the_report(cut_state: CutState) -> None:
    state = cut_state(Constant(), images(24), {"stem": [1, 4]})
    Repair(method="bias").run(state)
    assert report(state).added == {"flops": 0, "params": 5, "bytes": 20, "memory": 0}


def test_a_budget_on_parameters_allows_no_new_bias(cut_state: CutState) -> None:
    state = cut_state(Constant(), images(24), {"stem": [1, 4]}, budgets=["90%params"])
    Repair(method="bias").run(state)
    assert "bare.bias" not in state.graph.params
    why = "it has no bias, and a new one would count against the budget"
    assert {item.layer: item.why for item in report(state).left} == {"bare": why, "up": why}
    assert {item.layer for item in report(state).layers} == {"plain", "before_norm"}
    assert report(state).added == {}


class Batched(nn.Module):
    """A batch norm without running statistics takes the mean of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.stem, self.mix = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.rank = nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        return self.norm(self.mix(x)), torch.einsum("nchw,cd->ndhw", x, self.rank)


def test_layers_that_cannot_be_repaired_are_named(cut_state: CutState) -> None:
    state = cut_state(Batched(), images(24), {"stem": [1, 2]})
    assert not Repair(method="bias").run(state)
    left = {item.layer: item.why for item in report(state).left}
    assert "takes the mean of each batch" in left.pop("mix")
    assert list(left.values()) == ["its weight is computed, or in a product of another form"]
    assert not state.trained_after_slice


def test_the_shift_lands_on_kept_channels_of_layers_that_are_cut_themselves(
    cut_state: CutState,
) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(11)
            self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.three(F.relu(self.two(F.relu(self.one(x)))))

    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    module = Both()
    state = cut_state(module, x, {"one": [0, 3], "two": [1, 2]})
    Repair(method="bias").run(state)
    with torch.no_grad():
        hidden = F.relu(module.one(x))
        shift = hidden[:, [0, 3]].mean(0) @ module.two.weight[:, [0, 3]].t()
        wanted = gather_kept(
            module.two.bias + shift,
            state.need_coupling().slots_of(state.need_coupling().graph.params["two.bias"]),
            state.need_coupling().kept_units(state.plan or {}),
        )
    torch.testing.assert_close(state.graph.weights["two.bias"], wanted, rtol=1e-5, atol=1e-6)
