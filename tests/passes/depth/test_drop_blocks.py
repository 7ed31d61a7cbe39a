"""The pass drop-blocks: what goes, what the rest of a pipeline makes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.data import load_data
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.plan import load_plan, save_plan
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.branches import find_branches
from pruneopt.passes.depth.drop_blocks import DropBlocks, DroppedBlocks, whole_cost
from pruneopt.passes.depth.ranking import change_of_output
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.result import Result


class Tower(nn.Module):
    """Four residual blocks of 8 channels; the first has two convolutions, so that it costs more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.b0 = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.b1, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b0(x))
        x = torch.relu(x + self.b1(x))
        y = self.b2(x)
        x = torch.relu(x + torch.tanh(y + self.inner(y)))
        return self.head(x.mean((2, 3)))


def tower(**scales: float) -> Graph:
    """The network, its branches' last weights scaled."""
    torch.manual_seed(0)
    model = Tower().eval()
    with torch.no_grad():
        for name, scale in scales.items():
            part = model.get_submodule(name)
            for parameter in (part[-1] if isinstance(part, nn.Sequential) else part).parameters():
                parameter.mul_(scale)
    return capture(model, (torch.randn(2, 1, 8, 8),))


def ran(graph: Graph, text: str, **options: Any) -> Result:
    return PassManager.parse(text).run(graph, **options)


def dropped(result: Result) -> list[str]:
    record = result.records["drop-blocks"]
    assert isinstance(record, DroppedBlocks)
    return [block.name for block in record.blocks]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_data("digits?subval=300&calibration=128", input_shape=(1, 1, 8, 8))


def test_the_branches_of_the_tower() -> None:
    assert [branch.name for branch in find_branches(tower())] == ["b0", "b1", "inner", "b2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count=1", ["b1"]),
        ("count=2", ["b1", "b0"]),
        ("count=1 keep=b1", ["b0"]),
        ("count=1 blocks=b0,inner", ["b0"]),
        ("blocks=b*", ["b0", "b1", "b2"]),
        ("blocks=b* keep=b0", ["b1", "b2"]),
        ("blocks=b2", ["b2"]),
        ("blocks=b2,b0 keep=inner", ["b0"]),  # the one that stays is inside b2
        ("budget=99%FLOPs", ["b1"]),
        ("budget=60%FLOPs", ["b1", "b0"]),
    ],
)
def test_what_goes(text: str, expected: list[str]) -> None:
    graph = tower(b1=0.01, b0=0.1, inner=9.0)
    result = ran(graph, f"drop-blocks{{{text}}}")
    assert sorted(dropped(result)) == sorted(expected)
    if "count" in text or "budget" in text:
        assert dropped(result) == expected
    left = [branch.name for branch in find_branches(result.graph)]
    assert not set(left) & set(expected)


def test_the_branch_with_the_least_effect_goes_first(workload: Workload) -> None:
    graph = tower(b0=0.1, b1=1e-3, inner=3.0)
    state = State(graph, graph, workload=workload)
    branches = find_branches(graph)
    changes = change_of_output(state, branches, 2)
    result = ran(graph, "drop-blocks{count=1 criterion=output}", workload=workload)
    assert dropped(result) == [
        min((name for name in changes if name != "b2"), key=changes.__getitem__)
    ]
    assert dropped(result) == ["b1"]
    # The change is that of the outputs of the networks that are really left.
    inputs = torch.cat(
        [x for _, (x, _) in zip(range(2), workload.calibration.batches(64), strict=False)]
    )
    with torch.no_grad():
        whole, less = (build_module(g, g.weights).eval()(inputs) for g in (graph, result.graph))
    assert changes["b1"] == pytest.approx(float((whole - less).norm() / whole.norm()), rel=1e-3)


def test_a_budget_is_a_share_of_the_original_before_blocks_went() -> None:
    graph = tower(b1=0.01)
    full = whole_cost(graph)
    result = ran(
        graph, "drop-blocks{count=1},couple,cost,l1{budget=50%FLOPs,60%params},slice,verify"
    )
    assert result.verification is not None
    assert result.verification.equivalent
    flops = result.budgets[0]
    assert flops.full == full.original("flops")
    assert flops.limit == 0.5 * flops.full
    assert 0.45 <= whole_cost(result.graph).original("flops") / flops.full <= 0.5
    assert whole_cost(result.graph).original("params") <= 0.6 * full.original("params")
    record = result.records["drop-blocks"]
    assert isinstance(record, DroppedBlocks)
    assert record.share["flops"] == pytest.approx(1 - 9 * 64 * 64 / flops.full)
    assert record.notes[0].startswith("dropped b1: ")
    assert "blocks.1" not in str(result.graph)


def test_a_budget_that_the_blocks_met_leaves_the_channels() -> None:
    result = ran(
        tower(b1=0.01), "drop-blocks{blocks=b*},couple,cost,l1{budget=60%FLOPs},slice,verify"
    )
    assert getattr(result.records["budget"], "reached", "") == "full"


def test_passes_one_after_the_other_report_all_blocks() -> None:
    result = ran(tower(), "drop-blocks{blocks=b0},drop-blocks{blocks=b1}")
    assert dropped(result) == ["b0", "b1"]


def test_a_plan_does_not_fit_the_network_with_its_blocks(tmp_path: Path) -> None:
    graph = tower()
    result = ran(graph, "drop-blocks{blocks=b0},couple,cost,l1{budget=50%FLOPs},slice,verify")
    assert result.coupling is not None
    assert result.plan is not None
    path = tmp_path / "plan.json"
    sums = {block.name: block.sum for block in result.records["drop-blocks"].blocks}  # type: ignore[attr-defined]
    save_plan(path, result.plan, result.coupling, dropped=sums)
    with pytest.raises(UserError, match=r"without the blocks b0: .* drop-blocks\{blocks=b0\}"):
        load_plan(path, couple(graph))
    again = ran(graph, f"drop-blocks{{blocks=b0}},couple,cost,plan{{file={path}}},slice,verify")
    assert {name: kept.tolist() for name, kept in (again.plan or {}).items()} == {
        name: kept.tolist() for name, kept in result.plan.items()
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count=9", "count=9 is too much: Tower has 3 blocks that may be dropped"),
        ("blocks=b7", "Tower has no block 'b7' that can be dropped"),
        ("count=1 keep=c*", r"no block 'c\*'"),
        ("couple-first", ""),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    if text == "couple-first":
        with pytest.raises(UserError, match="run drop-blocks before couple"):
            ran(tower(), "couple,drop-blocks{count=1}")
        return
    with pytest.raises(UserError, match=message):
        ran(tower(), f"drop-blocks{{{text}}}")


def test_a_budget_out_of_reach() -> None:
    with pytest.raises(
        BudgetError, match="out of reach: without all 3 blocks that may be dropped Tower still has"
    ):
        ran(tower(), "drop-blocks{budget=1%FLOPs}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs count=2, blocks="),
        ({"count": 1, "budget": ("50%FLOPs",)}, "contradict each other"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"count": 1, "batches": 0}, "batches=0 must be at least 1"),
        ({"count": 1, "criterion": "l1"}, "criterion must be one of weight, output"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DropBlocks(**options)


def test_only_a_ranking_by_output_needs_data() -> None:
    assert DropBlocks(count=1).needs_data is None
    assert DropBlocks(blocks=("b0",), criterion="output").needs_data is None
    assert DropBlocks(count=1, criterion="output").needs_data == "drop-blocks with criterion=output"
    with pytest.raises(UserError, match="needs data"):
        ran(tower(), "drop-blocks{count=1 criterion=output}")


def test_a_network_without_blocks() -> None:
    graph = capture(
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(),
        (torch.randn(2, 1, 4, 4),),
    )
    with pytest.raises(UserError, match="no block that can be dropped: no addition has a branch"):
        ran(graph, "drop-blocks{count=1}")


def test_a_search_and_training_follow(workload: Workload) -> None:
    torch.manual_seed(0)
    graph = capture(DigitsResNet((6, 8, 12)).eval(), torch.zeros(2, 1, 8, 8))
    name = find_branches(graph)[0].name
    text = (
        f"drop-blocks{{blocks={name}}},couple,cost,prune{{criterion=taylor "
        f"budget=60%FLOPs}},slice,verify"
    )
    result = ran(graph, f"{text},finetune{{epochs=1}}", workload=workload)
    assert dropped(result) == [name]
    assert result.budgets[0].value <= result.budgets[0].limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "gone"),
    [
        ("resnet56", "count=6", 6),
        ("mobilenet_v2", "blocks=features.6.*,features.16.conv", 2),
        ("vit", "blocks=*encoder_layer_1.mlp,*encoder_layer_0.self_attention", 2),
    ],
)
def test_real_networks_lose_blocks_and_channels(name: str, text: str, gone: int) -> None:
    from torchvision.models import VisionTransformer, mobilenet_v2

    from pruneopt.models.resnet_cifar import resnet56

    torch.manual_seed(0)
    makers: dict[str, Callable[[], nn.Module]] = {
        "resnet56": resnet56,
        "mobilenet_v2": mobilenet_v2,
        "vit": lambda: VisionTransformer(32, 8, 3, 4, 64, 128),
    }
    model = makers[name]().eval()
    graph = capture(model, (torch.randn(2, 3, 32, 32),))
    result = ran(graph, f"drop-blocks{{{text}}},couple,cost,l1{{budget=50%FLOPs}},slice,verify")
    assert len(dropped(result)) == gone
    assert result.verification is not None
    assert result.verification.equivalent
    assert result.budgets[0].value <= 0.5 * whole_cost(graph).original("flops")
    with torch.no_grad():
        assert (
            result.module.eval()(torch.randn(3, 3, 32, 32)).shape
            == model(torch.randn(3, 3, 32, 32)).shape
        )
