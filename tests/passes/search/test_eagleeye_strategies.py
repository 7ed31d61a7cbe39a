"""The four strategies that EagleEye released (arXiv 2007.02491), read as text and recomputed to the
printed digits.

Costs are those of convolutions and the classifier; what a plan leaves is also counted on the cut
network itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.states import coupling_of
from torch import nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.analysis.residual.gene_order import eagleeye_order
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.result import Result
from pruneopt.passes.search.strategy import (
    StrategyPass,
    load_strategy,
    read_strategies,
    strategy_widths,
)

MOBILENET_50 = """0.1411 0.50805 .34522834 .25616112 .34354134 .3639849 .35014121 .34809587
.1421153 .28915166 .30550963 .39298936 .32038612 .15806762 .13184949 .39613"""
RESNET_25 = """0.00526 0.25 0.1939672 0.21797366 0.46062495 0.65938095 0.71535156 0.79856479
0.28947926 0.6437196 0.13621386 0.3310043 0.7447816 0.57806314 0.71184711 0.38868329 0.76312789
0.55029199 0.46928421 0.10625824 0.28823312 0.55573736 0.53709531 0.23434097 0.78005569 0.46100279
0.49465864 0.78342664 0.62700501 0.22615819 0.69553466 0.68402133 0.69224432 0.18955793 0.72702437
0.52134052 0.17007695 0.29444271 0.53916772"""
RESNET_50 = """0.12644 0.50 0.10272261 0.2827283 0.46222381 0.46675718 0.39910313 0.46953703
0.45295396 0.21956719 0.13951918 0.39655863 0.04569472 0.31119637 0.30863393 0.4472352 0.38888706
0.38405677 0.29581274 0.1234234 0.23327343 0.1541599 0.37519254 0.19114498 0.30318672 0.32446214
0.37455404 0.04177907 0.29925152 0.40318202 0.41735264 0.44579575 0.20660986 0.39657288 0.25469524
0.41795762 0.30585931 0.14133776 0.04950175"""
RESNET_75 = """0.60264 0.75 0.03805596 0.11375178 0.12906994 0.29345854 0.29473912 0.23196617
0.07760712 0.18177539 0.03299144 0.03357534 0.24132784 0.18612661 0.1085735 0.0887458 0.26656344
0.2919708 0.08160947 0.07458963 0.21765288 0.06074208 0.15334014 0.13102724 0.12475932 0.19935437
0.006374 0.11714018 0.16346813 0.17526527 0.27989531 0.10789936 0.07112449 0.19612177 0.20006662
0.24498201 0.20368413 0.04279182 0.03836601"""


def one_line(text: str) -> str:
    return " ".join(text.split()) + " \n"  # the released search ends its lines with a blank


def plan_of(name: str, text: str, folder: Path) -> tuple[Coupling, dict[str, np.ndarray]]:
    """Return the plan of a strategy, by EagleEye's ranking: L1 of the first layer of a group."""
    coupling = coupling_of(name)
    path = folder / "strategy.txt"
    path.write_text(one_line(text), encoding="utf-8")
    scores = score_units(coupling, coupling.graph.weights, "l1", leader=True)
    return coupling, load_strategy(path, coupling, scores)


def counted(coupling: Coupling, plan: dict[str, np.ndarray]) -> tuple[int, int]:
    """MACs and weights of the convolutions and the classifier of the cut network, from its shapes
    alone."""
    graph = slice_graph(coupling.graph, coupling, plan)
    macs = weights = 0
    for op in graph.ops:
        if op.base in ("conv2d", "linear"):
            weight = op.value(1)
            assert weight is not None
            size = graph.weights[weight.name].numel()
            places = op.result.type.shape(1)[2:]
            macs += size * int(np.prod(places))
            weights += size
    return macs, weights


@pytest.mark.parametrize(
    ("name", "text", "giga", "share", "weights"),
    [
        ("mobilenet_v1", MOBILENET_50, 0.2890, 0.5081, None),
        ("resnet50", RESNET_25, 1.0336, 0.2528, 6.964),
        ("resnet50", RESNET_50, 2.0565, 0.5029, 14.37),
        ("resnet50", RESNET_75, 3.0799, 0.7532, 19.77),
    ],
)
def test_released_strategies(
    name: str, text: str, giga: float, share: float, weights: float | None, tmp_path: Path
) -> None:
    coupling, plan = plan_of(name, text, tmp_path)
    cost = CostModel(coupling.graph, coupling, "eagleeye")
    widths = cost.widths(plan)
    macs, params = int(cost.measure("flops", widths)), int(cost.measure("params", widths))
    assert round(macs / 1e9, 4) == giga
    assert round(macs / float(cost.measure("flops", cost.full)), 4) == share
    if weights is not None:
        assert round(params / 1e6, 3 if weights < 10 else 2) == weights
    assert (macs, params) == counted(coupling, plan)


def test_mobilenet_v1_in_full(tmp_path: Path) -> None:
    coupling, plan = plan_of("mobilenet_v1", MOBILENET_50, tmp_path)
    order = [group.name for group in eagleeye_order(coupling)]
    assert [len(plan[name]) for name in order] == [
        21,
        48,
        85,
        82,
        167,
        167,
        440,
        364,
        356,
        311,
        348,
        432,
        889,
        619,
    ]
    cost = CostModel(coupling.graph, coupling, "eagleeye")
    assert round(float(cost.measure("flops", cost.widths(plan))) / 1e6, 3) == 288.950
    assert round(float(cost.measure("flops", cost.full)) / 1e6, 3) == 568.740
    share = float(cost.measure("flops", cost.widths(plan))) / float(
        cost.measure("flops", cost.full)
    )
    assert share == pytest.approx(0.50805, abs=5e-6)


def test_the_filters_with_the_smallest_norm_of_the_leader_go(tmp_path: Path) -> None:
    """Of a stage's outputs, the last convolution of its first block decides for all that are added
    to it."""
    coupling, plan = plan_of("resnet50", RESNET_50, tmp_path)
    for name, weight in (
        ("layer2.1.conv1", "layer2.1.conv1.weight"),
        ("layer3", "layer3.0.conv3.weight"),
    ):
        norms = coupling.graph.weights[weight].abs().sum((1, 2, 3)).numpy()
        worst = np.sort(np.argsort(norms)[: len(norms) - len(plan[name])])
        assert np.setdiff1d(np.arange(len(norms)), plan[name]).tolist() == worst.tolist()


def test_as_a_pass(tmp_path: Path) -> None:
    """Through a pipeline, with the budget that it is inside of and one that it is not."""
    coupling, plan = plan_of("mobilenet_v1", MOBILENET_50, tmp_path)
    path = tmp_path / "strategy.txt"

    def run(*budgets: str) -> Result:
        steps = parse_pipeline(f"couple,cost{{convention=eagleeye}},strategy{{file={path}}},slice")
        return PassManager(steps).run(
            coupling.graph, budgets=[parse_budget(text) for text in budgets]
        )

    result = run("51%FLOPs")
    assert result.plan is not None
    assert {name: kept.tolist() for name, kept in result.plan.items()} == {
        n: k.tolist() for n, k in plan.items()
    }
    assert [round(use.kept, 4) for use in result.budgets] == [0.5081]
    with pytest.raises(
        BudgetError, match=r"leaves 289 MFLOPs, more than the budget '50%FLOPs' allows"
    ):
        run("50%FLOPs")


def test_the_pass_needs_a_file() -> None:
    with pytest.raises(UserError, match="strategy needs the option 'file'"):
        parse_pipeline("strategy")
    with pytest.raises(UserError, match="random scores have no leader"):
        StrategyPass(file="best.txt", criterion="random")  # type: ignore[arg-type]


# Files


class Grouped(nn.Module):
    """Three groups in EagleEye's order: a stem, four blocks of eight channels, and a plain
    layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 32, 3, padding=1, groups=4)
        self.last = nn.Conv2d(32, 10, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.last(self.grouped(self.stem(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def grouped() -> Coupling:
    torch.manual_seed(0)
    return couple(capture(Grouped(), torch.zeros(2, 1, 8, 8)))


@pytest.fixture
def load(grouped: Coupling, tmp_path: Path) -> Callable[..., dict[str, int]]:
    """``load(text, line=...)``: the widths of the plan."""

    def run(text: str, line: int | None = None) -> dict[str, int]:
        path = tmp_path / "found.txt"
        path.write_text(text, encoding="utf-8")
        scores = score_units(grouped, grouped.graph.weights, "l1")
        plan = load_strategy(path, grouped, scores, line=line)
        grouped.kept_units(plan)
        return {name: len(kept) for name, kept in plan.items()}

    return run


def test_the_best_line_or_the_one_asked_for(load: Callable[..., dict[str, int]]) -> None:
    text = "0.2 0.5 0 0 0.1\n\n0.7, 0.5, 0, 0, 0.25\n0.7 0.5 0 0 0.9\n"
    assert load(text)["last"] == 10 - 2
    assert load(text, line=1)["last"] == 9
    assert load(text, line=3)["last"] == 1


def test_blocks_lose_equally_and_one_unit_always_stays(grouped: Coupling) -> None:
    assert [group.step for group in eagleeye_order(grouped)] == [4, 4, 1]
    widths = strategy_widths(np.array([0.6, 0.3, 0.999]), grouped)
    # Two channels per block of the stem lose floor(1.2); eight per block lose floor(2.4); ten lose
    # floor(9.99).
    assert list(widths.values()) == [4, 24, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no strategy: its lines must read score ratio r_1"),
        ("0.5 0.5\n", r"line 1 of .* is no strategy: it must read"),
        ("0.5 0.5 0.1 0.1 0.1\n0.5 x 0.1\n", r"line 2 of .* is no strategy \(could not convert"),
        ("0.5 0.5 0.1 1 0.1\n", "ratio 2 is 1, but a layer loses a share from 0 to below 1"),
        ("0.5 0.5 0.1 nan 0.1\n", "ratio 2 is nan"),
        ("nan 0.5 0.1 0.1 0.1\n", "the score nan is no finite number"),
        (
            "0.5 0.5 0.1 0.1\n",
            r"found.txt: the strategy has 2 ratios, but Grouped has 3 channel groups",
        ),
    ],
)
def test_refused_files(load: Callable[..., dict[str, int]], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(text)


def test_refused_lines_and_missing_files(
    load: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has 1 strategies: there is no number 2"):
        load("0.5 0.5 0.1 0.1 0.1", line=2)
    with pytest.raises(UserError, match=r"cannot read the list of strategies .*: No such file"):
        read_strategies(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no list of strategies: it is not UTF-8 text"):
        read_strategies(tmp_path / "binary")
