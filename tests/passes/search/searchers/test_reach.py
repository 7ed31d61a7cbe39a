"""Structures are where they should be: inside the budgets, at the level that was asked for, on
allowed widths."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.cost.budget import within
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.space import Space
from pruneopt.passes.selection.prune import L1, Uniform


def reach_of(
    state: State, unit: str = "flops", least: float | None = None, most: float = 1.0, **options: Any
) -> Reach:
    scores = score_units(state.need_coupling(), state.graph.weights, "l1", normalise=True)
    space = Space(
        state.need_coupling(),
        state.need_cost(),
        state.budgets,
        scores,
        grid=range(1, 101),
        bounds=state.limits.bounds,
        tied=state.limits.tied,
        **options,
    )
    return Reach(space, unit, least, most)


Make = Callable[..., State]


@pytest.mark.parametrize("options", [{}, {"round_to": 4}, {"minimum": 0.3}])
def test_positions_stand_for_allowed_widths_and_back(conv_chain: Make, options: Any) -> None:
    reach = reach_of(conv_chain(), **options)
    random = np.random.default_rng(0)
    for position in random.random((50, len(reach.moves))):
        widths = reach.widths(position)
        for width, rungs in zip(widths, reach.rungs, strict=True):
            assert width in rungs
        assert (reach.widths(reach.position(widths)) == widths).all()
    ends = reach.widths(np.repeat([[0.0], [1.0]], len(reach.moves), axis=1))
    assert ends[0].tolist() == reach.space.allowed.lowest.tolist()
    assert ends[1].tolist() == reach.space.cost.full.tolist()


def test_widths_grow_with_the_position(conv_chain: Make) -> None:
    reach = reach_of(conv_chain())
    random = np.random.default_rng(1)
    low = random.random((100, len(reach.moves)))
    high = low + random.random(low.shape) * (1 - low)
    assert (reach.widths(high) >= reach.widths(low)).all()


def test_tied_groups_move_together(conv_chain: Make) -> None:
    state = conv_chain((16, 24, 24, 32), tie=["1,2"])
    reach = reach_of(state)
    assert len(reach.moves) == 3
    columns = [reach.space.cost.groups.index(name) for name in state.limits.tied[0]]
    for position in np.random.default_rng(2).random((20, 3)):
        widths = reach.widths(position)[columns]
        assert len(set(widths.tolist())) == 1
        assert (
            reach.widths(reach.position(reach.widths(position))) == reach.widths(position)
        ).all()


@pytest.mark.parametrize("unit", ["flops", "params", "bytes", "memory"])
def test_a_structure_gets_just_below_its_level(conv_chain: Make, unit: str) -> None:
    reach = reach_of(conv_chain(), unit)
    cost = reach.space.cost
    for share in np.linspace(reach.low, reach.high, 5):
        position = np.random.default_rng(3).random(len(reach.moves))
        moved = reach.moved(position, float(share))
        used = float(cost.measure(unit, reach.widths(moved))) / cost.original(unit)
        assert used <= share * (1 + 1e-9)
        # Nothing of the way to the level is left but steps of single groups.
        assert used >= share - 0.15


def test_budgets_of_other_units_hold_as_well(conv_chain: Make) -> None:
    state = conv_chain(budgets=["40%params", "60%memory"])
    reach = reach_of(state)
    random = np.random.default_rng(4)
    for position in random.random((30, len(reach.moves))):
        assert within(state.budgets, reach.space.cost, reach.widths(reach.put(position, random)))
    assert reach.high < 1


def test_from_below_the_range_a_structure_is_moved_up_into_it(conv_chain: Make) -> None:
    reach = reach_of(conv_chain(), least=0.5)
    found = reach.put(np.zeros(len(reach.moves)), np.random.default_rng(0))
    share = float(reach.space.cost.measure("flops", reach.widths(found))) / reach.original
    assert 0.35 < share < 0.56


@pytest.mark.parametrize("share", [0.3, 0.62, 1.0])
def test_baselines_are_what_the_passes_choose(conv_chain: Make, share: float) -> None:
    for scope, kind in (("local", Uniform), ("global", L1)):
        state = conv_chain(budgets=[f"{100 * share:g}%FLOPs"])
        kind().run(state)
        assert state.plan is not None
        wanted = state.need_cost().widths(state.plan)
        assert reach_of(conv_chain()).selected(scope, share).tolist() == wanted.tolist()  # type: ignore[arg-type]


def test_levels_go_from_end_to_end_in_equal_ratios(conv_chain: Make) -> None:
    reach = reach_of(conv_chain(), least=0.25)
    levels = reach.levels(5)
    assert levels == pytest.approx([0.25, 0.25**0.75, 0.5, 0.25**0.25, 1.0])
    assert reach.levels(1) == [reach.high]


def test_without_a_lower_end_the_range_begins_at_a_fifth_or_what_is_reached(
    conv_chain: Make,
) -> None:
    assert reach_of(conv_chain()).low == pytest.approx(0.2)
    assert reach_of(conv_chain(budgets=["50%FLOPs"])).low == pytest.approx(0.1, rel=0.05)
    wide = reach_of(conv_chain(), minimum=0.8)
    lowest = wide.space.allowed.lowest
    assert wide.low == pytest.approx(
        float(wide.space.cost.measure("flops", lowest)) / wide.original
    )


@pytest.mark.parametrize(
    ("budgets", "least", "most", "error", "message"),
    [
        ([], 0.5, 0.3, UserError, "0.5:0.3 is no range"),
        ([], None, 1.5, UserError, "no range"),
        ([], 0.0, 1.0, UserError, "no range"),
        ([], 0.00001, 1.0, BudgetError, "out of reach: Chain cannot be made smaller than"),
        (["0.001%params"], None, 1.0, BudgetError, "the budget '0.001%params' is out of reach"),
        (["20%FLOPs"], 0.4, 1.0, BudgetError, "there is no range to explore"),
    ],
)
def test_impossible_ranges(
    conv_chain: Make,
    budgets: list[str],
    least: float | None,
    most: float,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        reach_of(conv_chain(budgets=budgets), least=least, most=most)
