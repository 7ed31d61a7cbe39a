"""From scores and budgets to widths and units."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import parse_budget, within
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.selection.select import budget_report, ladders, select

Net = tuple[Coupling, CostModel, dict[str, np.ndarray]]


class Mixed(nn.Module):
    """Plain, residual, grouped (four blocks) and narrow groups; a flatten gives units several
    channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.body = nn.Conv2d(20, 20, 3, padding=1)
        self.wide = nn.Conv2d(20, 32, 1)
        self.grouped = nn.Conv2d(32, 48, 3, padding=1, groups=4)
        self.narrow = nn.Conv2d(48, 5, 1)
        self.hidden = nn.Linear(5 * 64, 60)
        self.head = nn.Linear(60, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.body(x))
        x = F.relu(self.narrow(F.relu(self.grouped(F.relu(self.wide(x))))))
        return self.head(F.relu(self.hidden(x.flatten(1))))


def built(model: nn.Module, size: int) -> Net:
    graph = capture(model.eval(), (torch.randn(2, 3, size, size),))
    coupling = couple(graph)
    return (
        coupling,
        CostModel(graph, coupling),
        score_units(coupling, graph.weights, "l1", normalise=True),
    )


@pytest.fixture(scope="module")
def mixed() -> Net:
    torch.manual_seed(0)
    return built(Mixed(), 8)


@pytest.fixture(scope="module")
def resnet50() -> Net:
    torch.manual_seed(0)
    return built(torchvision.models.resnet50(weights=None), 224)


def budgets(*texts: str) -> list:  # type: ignore[type-arg]
    return [parse_budget(text) for text in texts]


SCOPES = ["local", "global", "random"]
LIMITS = [("50%FLOPs",), ("30%FLOPs",), ("70%params",), ("60%memory",)]
LIMITS_AT_ONCE = [("50%FLOPs", "45%params"), ("40%bytes", "90%FLOPs")]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("limits", [*LIMITS, *LIMITS_AT_ONCE], ids=" ".join)
@pytest.mark.parametrize("round_to", [1, 8])
def test_inside_every_budget_and_no_step_left(
    mixed: Net, scope: str, limits: tuple[str, ...], round_to: int
) -> None:
    coupling, cost, scores = mixed
    limit = budgets(*limits)
    plan = select(scores, coupling, cost, limit, scope=scope, round_to=round_to)  # type: ignore[arg-type]
    coupling.kept_units(plan)
    widths = cost.widths(plan)
    assert bool(within(limit, cost, widths))
    above = ladders(coupling, cost, round_to=round_to).above(widths)
    for i in range(len(widths)):
        if above[i] > widths[i]:
            more = widths.copy()
            more[i] = above[i]
            assert not bool(within(limit, cost, more)), f"{cost.groups[i]} could keep more"
    report = budget_report(limit, cost, plan)
    assert report.tightest.share <= 1 + 1e-9
    assert report.reached == ("within 1 %" if report.tightest.share >= 0.99 else "one channel step")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "limits", [("50%FLOPs",), ("25%FLOPs",), ("1GFLOPs", "60%params")], ids=" ".join
)
def test_resnet50_is_within_one_percent(resnet50: Net, scope: str, limits: tuple[str, ...]) -> None:
    coupling, cost, scores = resnet50
    plan = select(scores, coupling, cost, budgets(*limits), scope=scope)  # type: ignore[arg-type]
    report = budget_report(budgets(*limits), cost, plan)
    assert 0.99 <= report.tightest.share <= 1
    assert report.reached == "within 1 %"


def test_local_cuts_all_groups_alike(resnet50: Net) -> None:
    coupling, cost, scores = resnet50
    widths = cost.widths(select(scores, coupling, cost, budgets("50%FLOPs"), scope="local"))
    ratio = widths / cost.full
    assert ratio.max() - ratio.min() <= 2 / 64


def test_global_keeps_what_scores_above_a_threshold(resnet50: Net) -> None:
    coupling, cost, scores = resnet50
    plan = select(scores, coupling, cost, budgets("50%FLOPs"), scope="global")
    kept = np.concatenate([scores[name][plan[name]] for name in cost.groups])
    gone = np.concatenate([np.delete(scores[name], plan[name]) for name in cost.groups])
    # Only the fill-up may keep a unit below the threshold.
    assert np.quantile(gone, 0.99) <= np.quantile(kept, 0.01)


def test_the_best_units_of_every_block_stay(mixed: Net) -> None:
    coupling, cost, scores = mixed
    plan = select(scores, coupling, cost, budgets("40%FLOPs"))
    for group in coupling.free:
        for block in group.blocks:
            kept = np.isin(block, plan[group.name])
            assert kept.sum() == len(plan[group.name]) // group.step
            if 0 < kept.sum() < len(block):
                assert (
                    scores[group.name][block[kept]].min() >= scores[group.name][block[~kept]].max()
                )


def test_a_step_of_a_group_with_blocks_counts_with_its_sum() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (
                nn.Conv2d(3, 8, 1),
                nn.Conv2d(8, 8, 1, groups=2),
                nn.Conv2d(8, 4, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))

    coupling, cost, _ = built(Two(), 4)
    ones = {"a": np.arange(1.0, 9), "b": np.array([4.0, 1, 2, 3, 40, 10, 20, 30])}
    plan = select(ones, coupling, cost, ratio=0.5)
    # Steps of a: 1+5, 2+6, 3+7, 4+8; of b: 1+10, 2+20, 3+30, 4+40. Half of 16 units are four steps.
    assert plan["a"].tolist() == [3, 7]
    assert plan["b"].tolist() == [0, 2, 3, 4, 6, 7]


def test_ratio_without_budget_removes_at_most_that_share(mixed: Net) -> None:
    coupling, cost, scores = mixed
    local = cost.widths(select(scores, coupling, cost, ratio=0.3, scope="local"))
    for width, full, step in zip(local, cost.full, cost.step, strict=True):
        assert width == (full - int(0.3 * full)) // step * step
    units = cost.widths(select(scores, coupling, cost, ratio=0.3, scope="global")).sum()
    total = cost.full.sum()
    assert total * 0.7 <= units <= total * 0.7 + cost.step.max()
    assert (cost.widths(select(scores, coupling, cost, ratio=0.0)) == cost.full).all()


@pytest.mark.parametrize("scope", SCOPES)
def test_rounding(mixed: Net, scope: str) -> None:
    coupling, cost, scores = mixed
    plan = select(scores, coupling, cost, budgets("40%FLOPs"), scope=scope, round_to=8)  # type: ignore[arg-type]
    widths = dict(zip(cost.groups, cost.widths(plan).tolist(), strict=True))
    for name, width in widths.items():
        assert width % 8 == 0 or width == coupling.group(name).width, name
    # Five channels cannot be a multiple of eight.
    assert widths["narrow"] == 5


def test_rounding_and_blocks_agree_on_a_common_multiple(mixed: Net) -> None:
    coupling, cost, _ = mixed
    rungs = dict(zip(cost.groups, ladders(coupling, cost, round_to=6).rungs, strict=True))
    assert rungs["grouped"].tolist() == [12, 24, 36, 48]
    assert rungs["stem"].tolist() == [6, 12, 18, 20]
    assert rungs["narrow"].tolist() == [5]


def test_units_of_several_channels_need_fewer_for_a_multiple() -> None:
    class Halves(nn.Module):
        """Channel i of the first half is added to channel i of the second: each unit owns two."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.a(x).chunk(2, 1)
            return self.b(first + second)

    coupling, cost, _ = built(Halves(), 4)
    assert cost.full.tolist() == [16]
    assert ladders(coupling, cost, round_to=8).rungs[0].tolist() == [4, 8, 12, 16]


@pytest.mark.parametrize(
    ("minimum", "least"),
    [(1, lambda w, s: s), (0.5, lambda w, s: w / 2), (10, lambda w, s: min(w, 10))],
)
def test_minimum(mixed: Net, minimum: float, least: Callable[[int, int], float]) -> None:
    coupling, cost, scores = mixed
    limit = "35%FLOPs" if minimum != 1 else "5%FLOPs"
    widths = cost.widths(select(scores, coupling, cost, budgets(limit), minimum=minimum))
    for width, full, step in zip(widths, cost.full, cost.step, strict=True):
        assert width >= least(int(full), int(step))


def test_ignored_and_frozen_groups_keep_all(mixed: Net) -> None:
    coupling, cost, scores = mixed
    plan = select(scores, coupling, cost, budgets("50%FLOPs"), ignore={"wide", "hidden"})
    assert len(plan["wide"]) == 32
    assert len(plan["hidden"]) == 60
    assert "head" not in plan


def test_a_wide_budget_removes_nothing(mixed: Net) -> None:
    coupling, cost, scores = mixed
    for scope in SCOPES:
        plan = select(scores, coupling, cost, budgets("100%FLOPs"), scope=scope)  # type: ignore[arg-type]
        assert (cost.widths(plan) == cost.full).all()
        assert budget_report(budgets("100%FLOPs"), cost, plan).reached == "full"


def test_the_same_seed_gives_the_same_random_plan(mixed: Net) -> None:
    coupling, cost, scores = mixed
    plans = [
        select(scores, coupling, cost, budgets("50%FLOPs"), scope="random", seed=seed)
        for seed in (0, 0, 1)
    ]
    widths = [cost.widths(plan).tolist() for plan in plans]
    assert widths[0] == widths[1] != widths[2]


def test_a_budget_out_of_reach_is_refused_before_any_work(
    mixed: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupling, cost, scores = mixed
    monkeypatch.setattr(
        "pruneopt.passes.selection.select.step_scores", lambda *_: pytest.fail("work was done")
    )
    with pytest.raises(BudgetError, match="out of reach"):
        select(scores, coupling, cost, budgets("50%FLOPs", "100FLOPs"))
    with pytest.raises(BudgetError, match="out of reach"):
        select(scores, coupling, cost, budgets("20%FLOPs"), minimum=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to aim at"),
        ({"ratio": 1.0}, "ratio=1 must be the share of channels to remove"),
        ({"ratio": -0.1}, "ratio=-0.1 must be"),
        ({"ratio": 0.5, "scope": "random"}, "random widths need a budget"),
        ({"ratio": 0.5, "round_to": 0}, "round-to=0 is impossible"),
        ({"ratio": 0.5, "minimum": 0}, "minimum=0 is impossible"),
    ],
)
def test_impossible_options(mixed: Net, options: dict[str, object], message: str) -> None:
    coupling, cost, scores = mixed
    with pytest.raises(UserError, match=message):
        select(scores, coupling, cost, (), **options)  # type: ignore[arg-type]


def test_budget_and_ratio_contradict(mixed: Net) -> None:
    coupling, cost, scores = mixed
    with pytest.raises(UserError, match="contradict"):
        select(scores, coupling, cost, budgets("50%FLOPs"), ratio=0.5)
