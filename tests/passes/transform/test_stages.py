"""Whole pipelines on a small network: couple, cost, every way of choosing, slice, verify,
finetune."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.workloads import noise
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.models.workload import Workload
from pruneopt.passes.manager import PassManager
from pruneopt.passes.result import Result
from pruneopt.passes.selection.select import BudgetReport
from pruneopt.passes.training.log import TrainingLog


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.body_bn = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.mix, self.mix_bn = nn.Conv2d(16, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + F.silu(self.body_bn(self.body(x)))
        x = F.relu(self.mix_bn(self.mix(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(1)
    return capture(Small().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return noise(32, 5)


CHOICES = [
    "prune{budget=50%FLOPs}",
    "prune{criterion=l2 scope=local budget=50%FLOPs leader}",
    "prune{criterion=bn-scale budget=40%params round-to=4}",
    "prune{criterion=taylor{batches=2} budget=60%FLOPs}",
    "prune{criterion=fpgm ratio=0.4 minimum=0.25}",
    "prune{criterion=random budget=50%FLOPs normalise=false ignore=mix_bn}",
    "uniform{budget=50%FLOPs budget=60%memory}",
    "l1{budget=50%bytes}",
    "random{budget=40%FLOPs}",
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_way_of_choosing_is_proved(graph: Graph, workload: Workload, choice: str) -> None:
    before = print_graph(graph)
    result = PassManager.parse(f"couple,cost,{choice},slice,verify").run(graph, workload=workload)
    assert print_graph(graph) == before
    assert result.verification is not None
    assert result.verification.equivalent
    assert result.module(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    assert result.plan is not None
    assert sum(p.numel() for p in result.module.parameters()) < sum(
        p.numel() for p in Small().parameters()
    )
    assert list(result.timings) == ["couple", "cost", choice.partition("{")[0], "slice", "verify"]
    for use in result.budgets:
        assert use.value <= use.limit * (1 + 1e-9)
        assert use.kept < 1
    if "budget" in choice:
        report = result.records["budget"]
        assert isinstance(report, BudgetReport)
        assert report.uses == result.budgets


def test_budgets_of_the_run_and_of_the_pass_add_up(graph: Graph) -> None:
    result = PassManager.parse("couple,cost,prune{budget=50%FLOPs}").run(
        graph, budgets=["60%params", "50%FLOPs"]
    )
    assert [use.text for use in result.budgets] == ["60%params", "50%FLOPs"]


def test_the_plan_stands_in_the_header(graph: Graph) -> None:
    manager = PassManager.parse("couple,cost,prune{budget=50%FLOPs}")
    result = manager.run(graph)
    assert result.plan is not None
    kept = {group.name: group.kept for group in result.graph.channels}
    assert {name: len(units) for name, units in result.plan.items()} == {
        name: kept[name] for name in result.plan
    }


def test_runs_repeat(graph: Graph) -> None:
    def plan(seed: int) -> dict[str, list[int]]:
        result = PassManager.parse("couple,cost,random{budget=50%FLOPs}").run(graph, seed=seed)
        return {name: kept.tolist() for name, kept in (result.plan or {}).items()}

    assert plan(0) == plan(0) != plan(1)


@pytest.mark.parametrize("names", [["mix_bn"], ["mix"], ["mix.bias", "head"]])
def test_ignored_modules_keep_their_channels(graph: Graph, names: list[str]) -> None:
    def width(result: Result) -> int:
        return int(result.graph.params["mix.weight"].type.shape()[0])

    by_run = PassManager.parse("couple,cost,prune{ratio=0.3},slice").run(graph, ignore=names)
    by_pass = PassManager.parse(
        f"couple,cost,prune{{ratio=0.3 ignore={','.join(names)}}},slice"
    ).run(graph)
    assert width(by_run) == width(by_pass) == 24
    assert (
        width(PassManager.parse("couple,cost,prune{ratio=0.3 scope=local},slice").run(graph)) < 24
    )


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("cost", "cost cannot run here: run couple first"),
        ("prune{ratio=0.5}", "prune cannot run here: run couple first"),
        ("couple,l1{budget=50%FLOPs}", "l1 cannot run here: run cost first"),
        ("couple,cost,slice", "slice cannot run here: choose channels first"),
        ("slice", "slice cannot run here: run couple first"),
        ("couple,verify", "verify cannot run here: there is nothing to prove yet: run slice first"),
        ("couple,couple", "couple cannot run here: .*run couple once"),
        ("couple,cost,prune{ratio=0.5},slice,slice", "already cut"),
        ("couple,cost,prune{ratio=0.5},slice,couple", "couple must come before slice"),
        ("couple,cost,prune{ratio=0.5},slice,cost", "cost must come before slice"),
        ("couple,cost,prune{ratio=0.5},slice,prune{ratio=0.5}", "choose channels before slice"),
        ("finetune", "finetune cannot run here: it needs data"),
        ("couple,cost,prune", "nothing to aim at"),
        ("couple,cost,prune{ratio=0.5 budget=50%FLOPs}", "contradict"),
        ("couple,cost,prune{criterion=taylor ratio=0.5}", "taylor needs data"),
        (
            "couple,cost,prune{ratio=0.5 ignore=nothing}",
            "no parameter, module or channel group has this name",
        ),
        ("couple,cost,prune{budget=50%sugar}", "50%sugar"),
        ("couple,cost{convention=odd}", "no FLOPs convention 'odd'"),
    ],
)
def test_pipelines_out_of_order(graph: Graph, pipeline: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PassManager.parse(pipeline).run(graph)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "prune{criterion=l1{batches=3} ratio=0.5}",
            "pipeline:1:20: error: l1 has no option 'batches'",
        ),
        (
            "prune{criterion=random leader ratio=0.5}",
            "pipeline:1:1: error: prune: random scores have no leader",
        ),
        ("prune{criterion=l3}", "pipeline:1:17: error: there is no criterion 'l3'"),
    ],
)
def test_options_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PassManager.parse(text)


def test_a_budget_out_of_reach(graph: Graph) -> None:
    with pytest.raises(BudgetError, match="out of reach"):
        PassManager.parse("couple,cost,uniform{budget=0.01%FLOPs}").run(graph)


def test_finetune_trains_the_cut_network(graph: Graph, workload: Workload) -> None:
    told: list[tuple[str, int, int | None]] = []
    result = PassManager.parse(
        "couple,cost,prune{budget=50%FLOPs},slice,verify,finetune{epochs=2 batch-size=8}"
    ).run(
        graph,
        workload=workload,
        progress=lambda text, done=0, total=None: told.append((text, done, total)),
    )
    log = result.records["finetune"]
    assert isinstance(log, TrainingLog)
    assert [(done, total) for _, done, total in told] == [(4, 8), (8, 8)]
    assert log.steps == 8
    x = torch.randn(2, 3, 8, 8)
    cut = PassManager.parse("couple,cost,prune{budget=50%FLOPs},slice").run(graph)
    assert not torch.equal(result.module(x), cut.module(x))
    assert result.graph.weights["bn.num_batches_tracked"] == 8


def test_nothing_is_proved_after_training(graph: Graph, workload: Workload) -> None:
    pipeline = "couple,cost,prune{budget=50%FLOPs},slice,finetune{epochs=1},verify"
    with pytest.raises(UserError, match="run verify before finetune"):
        PassManager.parse(pipeline).run(graph, workload=workload)


def test_training_before_the_cut_is_cut_and_proved(graph: Graph, workload: Workload) -> None:
    pipeline = "couple,cost,finetune{epochs=1 batch-size=8},prune{budget=50%FLOPs},slice,verify"
    result = PassManager.parse(pipeline).run(graph, workload=workload)
    assert result.verification is not None
    assert result.verification.equivalent
    assert result.graph.weights["bn.num_batches_tracked"] == 4


def test_no_epochs_change_nothing(graph: Graph, workload: Workload) -> None:
    result = PassManager.parse("finetune{epochs=0}").run(graph, workload=workload)
    assert print_graph(result.graph) == print_graph(graph)


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(nn.Linear(3, 4)), lambda: nn.Sequential(nn.ReLU())]
)
def test_networks_with_nothing_to_prune(make: Callable[[], nn.Module]) -> None:
    graph = capture(make().eval(), (torch.randn(2, 3),))
    result = PassManager.parse("couple,cost,uniform,slice,verify").run(graph, budgets=["100%FLOPs"])
    assert result.module(torch.ones(2, 3)).shape[0] == 2
