"""Sampled plans obey every constraint and use the budget up; the compat switches do what EagleEye's
code does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.budget import Budget, parse_budget, within
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers import sampling
from pruneopt.passes.search.searchers.sampling import (
    Draw,
    WidthSampler,
    floor_widths,
    untied_widths,
)

relaxed = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sampler(state: State, *budgets: str, scores: Any = None, **options: Any) -> WidthSampler:
    coupling, cost = state.need_coupling(), state.need_cost()
    if scores is None:
        scores = score_units(coupling, state.graph.weights, "l1")
    return WidthSampler(coupling, cost, [parse_budget(text) for text in budgets], scores, **options)


def share(budget: Budget, cost: CostModel, draw: Draw) -> float:
    return float(cost.measure(budget.unit, draw.widths)) / budget.limit(cost)


# Solving


@given(
    seed=st.integers(0, 99),
    index=st.integers(0, 10_000),
    flops=st.integers(25, 100),
    params=st.one_of(st.none(), st.integers(25, 100)),
    most=st.sampled_from([0.75, 0.9, 1.0]),
    least=st.sampled_from([0.0, 0.1]),
    round_to=st.sampled_from([1, 2, 4]),
)
@relaxed
def test_every_plan_is_valid_and_just_inside(
    mixed: State,
    seed: int,
    index: int,
    flops: int,
    params: int | None,
    most: float,
    least: float,
    round_to: int,
) -> None:
    texts = [f"{flops}%FLOPs", *([] if params is None else [f"{params}%params"])]
    try:
        found = sampler(
            mixed, *texts, max_ratio=most, min_ratio=least, round_to=round_to, seed=seed
        )
    except BudgetError:
        return
    draw, coupling, cost = found.draw(index), mixed.need_coupling(), mixed.need_cost()
    coupling.kept_units(draw.plan)
    assert (cost.widths(draw.plan) == draw.widths).all()
    assert within(found.budgets, cost, draw.widths)
    if max(share(budget, cost, draw) for budget in found.budgets) < 0.99:
        above = found.ranged.above(draw.widths)
        for group in np.flatnonzero(above > draw.widths):
            trial = draw.widths.copy()
            trial[group] = above[group]
            assert not within(found.budgets, cost, trial), "one step more must not fit"
    if round_to == 1:
        assert (draw.widths >= cost.full - np.floor(most * cost.full)).all()
        assert (
            draw.widths <= np.maximum(cost.full - np.floor(least * cost.full), found.ranged.lowest)
        ).all()


def test_a_network_with_room_is_within_one_percent(mixed: State) -> None:
    found = sampler(mixed, "50%FLOPs", max_ratio=0.8)
    shares = [share(found.budgets[0], found.cost, found.draw(index)) for index in range(50)]
    assert np.median(shares) > 0.99
    assert max(shares) <= 1


def test_a_draw_depends_on_seed_and_number_alone(mixed: State) -> None:
    first, second = sampler(mixed, "50%FLOPs", seed=3), sampler(mixed, "50%FLOPs", seed=3)
    forward = [first.draw(index).widths.tolist() for index in range(6)]
    backward = [second.draw(index).widths.tolist() for index in reversed(range(6))]
    assert forward == backward[::-1]
    assert len({tuple(widths) for widths in forward}) >= 5
    other = sampler(mixed, "50%FLOPs", seed=4)
    assert [other.draw(index).widths.tolist() for index in range(6)] != forward


def test_ratios_stay_proportional_to_what_was_drawn(mixed: State) -> None:
    found = sampler(mixed, "70%FLOPs", max_ratio=0.9, floor=True)
    full = found.cost.full
    for index in range(20):
        draw = found.draw(index)
        removed = 1 - draw.widths / full
        times = np.median(removed[draw.ratios > 0.2] / draw.ratios[draw.ratios > 0.2])
        grain = found.cost.step / full
        assert (np.abs(removed - np.minimum(times * draw.ratios, 0.9)) <= 2 * grain + 0.1).all()


def test_the_units_with_the_smallest_norms_go(mixed: State) -> None:
    found = sampler(mixed, "50%FLOPs")
    draw = found.draw(0)
    for name, kept in draw.plan.items():
        for block in found.coupling.group(name).blocks:
            scores = found.scores[name]
            gone = np.setdiff1d(block, kept)
            if len(gone):
                assert scores[gone].max() <= scores[np.intersect1d(block, kept)].min()


def test_without_a_budget_ratios_are_taken_as_drawn(mixed: State) -> None:
    found = sampler(mixed, max_ratio=0.6, min_ratio=0.2)
    for index in range(10):
        draw = found.draw(index)
        wanted = floor_widths(draw.ratios, found.cost.full)
        assert (abs(wanted - draw.widths) < found.cost.step).all()
        assert draw.ratios.min() >= 0.2
        assert draw.ratios.max() <= 0.6


def test_a_range_too_narrow_names_one_that_works(mixed: State) -> None:
    with pytest.raises(
        BudgetError, match=r"removing at most 0\.2 .* 30%FLOPs: use max-ratio=0\.\d+ or more"
    ) as error:
        sampler(mixed, "30%FLOPs", max_ratio=0.2)
    named = float(str(error.value).partition("max-ratio=")[2].split()[0])
    sampler(mixed, "30%FLOPs", max_ratio=named).draw(0)
    with pytest.raises(BudgetError):
        sampler(mixed, "30%FLOPs", max_ratio=named - 0.01)


@pytest.mark.parametrize(
    "wrong", [(0.5, 0.4), (-0.1, 0.5), (0.0, 1.1), (0.0, 0.0), (0.0, float("nan"))]
)
def test_impossible_ranges(mixed: State, wrong: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="no range of shares"):
        sampler(mixed, "50%FLOPs", min_ratio=wrong[0], max_ratio=wrong[1])


def test_a_budget_below_the_smallest_network(mixed: State) -> None:
    with pytest.raises(BudgetError, match="out of reach"):
        sampler(mixed, "0.01%FLOPs", max_ratio=1.0)


# Compat: floor


def test_floor_gives_the_widths_of_the_released_mobilenet() -> None:
    ratios = (
        ".34522834 .25616112 .34354134 .3639849 .35014121 .34809587 .1421153 .28915166 "
        ".30550963 .39298936 "
    )
    ratios += ".32038612 .15806762 .13184949 .39613"
    full = np.array([32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024])
    wanted = [21, 48, 85, 82, 167, 167, 440, 364, 356, 311, 348, 432, 889, 619]
    assert floor_widths(np.array(ratios.split(), dtype=float), full).tolist() == wanted


def slow_floor(scores: np.ndarray, removed: int) -> int:
    """EagleEye's mask, filter by filter: keep what is above the removed-th smallest norm."""
    if removed == 0:
        return len(scores)
    threshold = sorted(scores.tolist())[removed - 1]
    return sum(1 for score in scores.tolist() if score > threshold)


@given(data=st.data())
@relaxed
def test_ties_go_too(mixed: State, data: st.DataObject) -> None:
    coupling, cost = mixed.need_coupling(), mixed.need_cost()
    levels = data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    scores = {
        name: rng.integers(0, levels, coupling.group(name).width).astype(float)
        for name in cost.groups
    }
    widths = np.array(
        [
            rng.integers(1, full // step + 1) * step
            for full, step in zip(cost.full, cost.step, strict=True)
        ]
    )
    found = untied_widths(widths, scores, coupling, cost)
    for i, name in enumerate(cost.groups):
        group = coupling.group(name)
        each = (group.width - int(widths[i])) // group.step
        assert (
            found[i]
            == min(slow_floor(scores[name][block], each) for block in group.blocks) * group.step
        )


def test_floor_does_not_fill_up_and_keeps_at_least_one(mixed: State) -> None:
    coupling, cost = mixed.need_coupling(), mixed.need_cost()
    plain, floor = sampler(mixed, "50%FLOPs"), sampler(mixed, "50%FLOPs", floor=True)
    for index in range(10):
        one, other = plain.draw(index), floor.draw(index)
        assert (one.ratios == other.ratios).all()
        assert (other.widths <= one.widths).all()
        assert within(floor.budgets, cost, other.widths)
    equal = {name: np.ones(coupling.group(name).width) for name in cost.groups}
    lost = sampler(mixed, "50%FLOPs", scores=equal, floor=True).draw(0)
    assert (lost.widths >= cost.minimum).all()
    coupling.kept_units(lost.plan)


# Compat: leader


def test_the_leader_is_the_first_layer_of_a_group(mixed: State) -> None:
    coupling = mixed.need_coupling()
    stream = next(group for group in coupling.free if group.width == 24)
    weights = mixed.graph.weights
    stem = weights["stem.weight"].abs().sum((1, 2, 3)).double().numpy()
    back = weights["back.weight"].abs().sum((1, 2, 3)).double().numpy()
    led = score_units(coupling, weights, "l1", leader=True)[stream.name]
    summed = score_units(coupling, weights, "l1")[stream.name]
    np.testing.assert_allclose(led, stem, rtol=1e-5)
    np.testing.assert_allclose(summed, stem + back, rtol=1e-5)


# Compat: sampling


def slow_rejection(found: WidthSampler, index: int, target: float) -> tuple[np.ndarray, int]:
    """One vector at a time, as the published script does it, with the window below the budget."""
    rng, cost = np.random.default_rng([found.seed, index]), found.cost
    full = float(cost.measure("flops", cost.full))
    attempts = 0
    while True:
        attempts += 1
        ratios = [rng.random() * found.high + found.low for _ in cost.groups]
        kept = []
        for ratio, width, step in zip(ratios, cost.full, cost.step, strict=True):
            stays = int(width) - int(np.floor(ratio * width))
            kept.append(max(stays // step * step, step))
        used = float(cost.measure("flops", np.array(kept))) / full
        if target - 2 * 0.005 <= used <= target:
            return np.array(kept), attempts


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.7), (0.1, 0.5)])
def test_rejection_is_the_published_loop(mixed: State, low: float, high: float) -> None:
    found = sampler(mixed, "50.5%FLOPs", min_ratio=low, max_ratio=high, rejection=True, seed=5)
    for index in range(5):
        draw = found.draw(index)
        widths, attempts = slow_rejection(found, index, 0.505)
        assert draw.widths.tolist() == widths.tolist()
        assert draw.attempts == attempts


def test_rejection_obeys_further_budgets(mixed: State) -> None:
    found = sampler(mixed, "50%FLOPs", "50%params", rejection=True)
    assert all(within(found.budgets, found.cost, found.draw(index).widths) for index in range(5))


def test_rejection_gives_up_in_one_sentence(mixed: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ATTEMPTS", 3000)
    found = sampler(mixed, "99%FLOPs", max_ratio=0.9, min_ratio=0.1, rejection=True)
    with pytest.raises(
        UserError, match=r"none of 3000 random vectors with .*below 0\.033%.*change max-ratio"
    ):
        found.draw(0)


def test_rejection_needs_one_flops_budget_and_a_range(mixed: State) -> None:
    for budgets in (["50%params"], ["50%FLOPs", "60%FLOPs"], []):
        with pytest.raises(UserError, match="give one FLOPs budget"):
            sampler(mixed, *budgets, rejection=True)
    with pytest.raises(UserError, match="their sum must be at most 1"):
        sampler(mixed, "50%FLOPs", rejection=True, min_ratio=0.5, max_ratio=0.6)


def test_nothing_to_prune(mixed: State) -> None:
    coupling = mixed.need_coupling()
    names = [group.name for group in coupling.free]
    frozen: Coupling = freeze_named(coupling, names)
    with pytest.raises(UserError, match=r"no channel group of Mixed can be pruned"):
        WidthSampler(frozen, CostModel(coupling.graph, frozen), [parse_budget("50%FLOPs")], {})
