"""The pass plan: channels and weights that files decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models import zoo
from pruneopt.models.workload import seeded
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.plan import save_plan
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pns.result import write_result
from pruneopt.passes.result import Result
from pruneopt.passes.transform.given_plan import PlanRecord, with_kept_weights

Plan = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graph() -> Graph:
    with seeded(0):
        return capture(zoo.create("digits_resnet").eval(), (torch.randn(2, 1, 8, 8),))


def half(coupling: Coupling) -> Plan:
    random = np.random.default_rng(0)
    return {
        g.name: np.sort(np.concatenate([random.permutation(b)[: len(b) // 2] for b in g.blocks]))
        for g in coupling.free
    }


def run(graph: Graph, text: str, *budgets: str) -> Result:
    return PassManager.parse(f"couple,cost,{text},slice,verify").run(graph, budgets=budgets)


def test_a_plan_and_a_result_decide_the_same(graph: Graph, tmp_path: Path) -> None:
    coupling = couple(graph)
    plan = half(coupling)
    save_plan(tmp_path / "plan.json", plan, coupling)
    (tmp_path / "result.json").write_text(json.dumps(write_result(coupling, plan)))
    for file, form in (("plan.json", "pruneopt plan"), ("result.json", "pns result")):
        result = run(graph, f"plan{{file={tmp_path / file}}}")
        assert result.plan is not None
        assert {name: kept.tolist() for name, kept in result.plan.items()} == {
            n: k.tolist() for n, k in plan.items()
        }
        assert result.verification is not None
        assert result.verification.equivalent
        assert result.records["plan"] == PlanRecord(str(tmp_path / file), form, None)
        for name, tensor in slice_graph(graph, coupling, plan).weights.items():
            assert torch.equal(result.graph.weights[name], tensor)


def test_budgets_hold_for_given_plans(graph: Graph, tmp_path: Path) -> None:
    coupling = couple(graph)
    save_plan(tmp_path / "plan.json", half(coupling), coupling)
    text = f"plan{{file={tmp_path / 'plan.json'}}}"
    (use,) = run(graph, text, "30%FLOPs").budgets
    assert use.value < use.limit
    with pytest.raises(
        BudgetError,
        match=r"the plan of .*plan.json leaves .*, more than the budget '20%FLOPs' allows",
    ):
        run(graph, text, "20%FLOPs")


def retrained(graph: Graph, plan: Plan) -> dict[str, Tensor]:
    """The weights of the cut network, all of them changed."""
    cut = slice_graph(graph, couple(graph), plan)
    with seeded(1):
        return {
            n: torch.rand_like(t) if t.is_floating_point() else t + 7
            for n, t in cut.weights.items()
        }


@pytest.mark.parametrize("form", ["plan", "result"])
def test_weights_of_the_cut_network_are_put_in_place(
    graph: Graph, tmp_path: Path, form: str
) -> None:
    coupling = couple(graph)
    plan = half(coupling)
    weights = retrained(graph, plan)
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    if form == "plan":
        save_plan(tmp_path / "p.json", plan, coupling)
    else:
        (tmp_path / "p.json").write_text(json.dumps(write_result(coupling, plan)))
    result = run(graph, f"plan{{file={tmp_path / 'p.json'} weights={tmp_path / 'w.safetensors'}}}")
    assert result.verification is not None
    assert result.verification.equivalent
    assert result.graph.weights.keys() == weights.keys()
    assert all(torch.equal(result.graph.weights[name], tensor) for name, tensor in weights.items())
    build_module(result.graph, result.graph.weights)


class Grouped(nn.Module):
    """Convolutions in groups, transposed, and over several axes: kept weights lie in unusual
    places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.mid = nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.up(torch.relu(self.mid(torch.relu(self.norm(self.first(x))))))
        x = x.flatten(2).transpose(1, 2)
        return self.last(self.attend(x, x, x)[0])


def test_weights_go_back_wherever_they_lie() -> None:
    with seeded(0):
        graph = capture(Grouped().eval(), (torch.randn(2, 3, 4, 4),))
    coupling = couple(graph)
    assert any(group.step > 1 for group in coupling.free)
    for plan in (half(coupling), coupling.full_plan()):
        weights = retrained(graph, plan)
        full = with_kept_weights(coupling, plan, graph.weights, weights, "w")
        cut = slice_graph(graph, coupling, plan)
        again = slice_graph_with(graph, full, coupling, plan)
        assert all(torch.equal(again[name], weights[name]) for name in cut.weights)


def slice_graph_with(
    graph: Graph, weights: dict[str, Tensor], coupling: Coupling, plan: Plan
) -> dict[str, Tensor]:
    other = graph.copy()
    other.weights = weights
    return slice_graph(other, coupling, plan).weights


def test_weights_that_do_not_fit_are_named(graph: Graph) -> None:
    coupling = couple(graph)
    plan = half(coupling)
    weights = retrained(graph, plan)
    with pytest.raises(UserError, match=r"w lacks bn1\.bias, which DigitsResNet needs"):
        with_kept_weights(
            coupling,
            plan,
            graph.weights,
            {n: t for n, t in weights.items() if n != "bn1.bias"},
            "w",
        )
    with pytest.raises(
        UserError, match=r"bn1\.bias of w has the shape \[9\].* the plan leaves \[8\]"
    ):
        with_kept_weights(
            coupling, plan, graph.weights, {**weights, "bn1.bias": torch.ones(9)}, "w"
        )
    counts = {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")}
    found = with_kept_weights(coupling, plan, graph.weights, counts, "w")
    assert torch.equal(found["bn1.num_batches_tracked"], graph.weights["bn1.num_batches_tracked"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("{", "is no plan: it is not JSON"),
        ("{}", "is no plan: it lacks"),
        (
            '[{"name": "conv9", "keep_idxes": [0]}]',
            "names conv9, but the network has no layer of this name",
        ),
    ],
)
def test_files_that_are_no_plans(
    graph: Graph, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "p.json").write_text(content)
    with pytest.raises(UserError) as caught:
        run(graph, f"plan{{file={tmp_path / 'p.json'}}}")
    assert message in str(caught.value)
