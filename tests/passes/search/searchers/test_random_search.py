"""Random search: every group by itself as EagleEye draws them, or the genes of a space whose widths
are tied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from helpers.states import space_of

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.residual.gene_order import Gene
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers import random_search
from pruneopt.passes.search.searchers.random_search import RandomSearch
from pruneopt.passes.search.searchers.sampling import WidthSampler
from pruneopt.passes.search.searchers.searcher import AskTell
from pruneopt.passes.search.searchers.space import Proposal

Chain = Callable[[Sequence[int]], State]


@pytest.fixture(scope="module")
def network(chain: Chain) -> State:
    return chain([40] * 8)


def tied(state: State) -> list[Gene]:
    """Two groups that share a width, one that stays whole, and the others."""
    names = [group.name for group in state.need_coupling().free]
    single = [Gene((name,), 40) for name in names[3:]]
    return [
        Gene((names[0], names[1]), 40),
        Gene((names[2],), 40, "read by the last layer"),
        *single,
    ]


def run(asker: AskTell) -> list[Proposal]:
    found = []
    while (proposal := asker.ask()) is not None:
        found.append(proposal)
        asker.tell(proposal, 0.0)
    return found


# One ratio per group


def test_it_proposes_what_the_sampler_draws(network: State) -> None:
    space = space_of(network, "50%FLOPs")
    searcher = RandomSearch(candidates=6, max_ratio=0.8, min_ratio=0.1)
    asker = searcher.open(space, 3)
    assert asker.total == 6
    sampler = WidthSampler(
        space.coupling,
        space.cost,
        space.budgets,
        space.scores,
        max_ratio=0.8,
        min_ratio=0.1,
        seed=3,
    )
    found = run(asker)
    assert [item.widths.tolist() for item in found] == [
        sampler.draw(index).widths.tolist() for index in range(6)
    ]
    assert [item.scales for item in found] == [None] * 6
    assert asker.describe() == sampler.describe()


def test_the_window_holds_where_nothing_is_filled_up(network: State) -> None:
    """EagleEye's count leaves a budget unused; draws below the window are passed over, and
    counted."""
    free = run(RandomSearch(candidates=60, floor=True).open(space_of(network, "50%FLOPs"), 0))
    space = space_of(network, "50%FLOPs", window=0.003)
    used = space.used(np.stack([item.widths for item in free]))
    wanted = [
        item.widths.tolist() for item, share in zip(free, used, strict=True) if share >= 0.997
    ]
    assert 5 < len(wanted) < 55
    kept = run(RandomSearch(candidates=len(wanted), floor=True).open(space, 0))
    assert [item.widths.tolist() for item in kept] == wanted
    assert len(wanted) < sum(item.attempts for item in kept) <= 60


def test_a_window_out_of_reach_is_an_error(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three channels: a third or two thirds of the FLOPs, and none of them 84 to 85 %."""
    monkeypatch.setattr(random_search, "REDRAWS", 40)
    with pytest.raises(UserError, match=r"none of 40 random structures .* use a wider window"):
        RandomSearch().open(space_of(chain([3]), "85%FLOPs", window=0.01), 0).ask()


# Tied widths


def test_ties_and_frozen_widths_are_kept(network: State) -> None:
    space = space_of(network, "50%FLOPs", genes=tied(network), window=0.05)
    asker = RandomSearch(candidates=40, max_ratio=0.8, min_ratio=0.1).open(space, 0)
    assert asker.describe() == "6 random scales from 22 to 88 %, moved into the budget"
    found = run(asker)
    assert len(found) == 40
    assert len({tuple(item.widths.tolist()) for item in found}) > 35
    for item in found:
        assert item.scales is not None
        assert item.scales[0] == item.scales[1]
        assert item.scales[2] == 1.0
        assert item.widths[2] == 40
        others = np.delete(item.scales, 2)
        assert others.min() >= 0.2 - 1e-9
        assert others.max() <= 0.9 + 1e-9
        assert item.widths.tolist() == [
            int(40 * round(100 * scale)) // 100 for scale in item.scales
        ]
    assert space.feasible(np.stack([item.widths for item in found])).all()


def test_a_tied_candidate_depends_on_seed_and_number_alone(network: State) -> None:
    space = space_of(network, "50%FLOPs", genes=tied(network))
    few, more = (run(RandomSearch(candidates=count).open(space, 5)) for count in (3, 8))
    other = run(RandomSearch(candidates=3).open(space, 6))
    assert [item.widths.tolist() for item in more[:3]] == [item.widths.tolist() for item in few]
    assert [item.widths.tolist() for item in other] != [item.widths.tolist() for item in few]


def test_tied_by_rejection(network: State) -> None:
    space = space_of(network, "50%FLOPs", genes=tied(network), window=0.2)
    asker = RandomSearch(candidates=20, max_ratio=0.9, reject=True).open(space, 0)
    assert asker.describe().endswith("kept if they fit")
    found = run(asker)
    assert sum(item.attempts for item in found) > 40
    assert space.feasible(np.stack([item.widths for item in found])).all()


def test_ranges_of_tied_widths(network: State) -> None:
    space = space_of(network, "30%FLOPs", genes=tied(network))
    with pytest.raises(
        BudgetError, match=r"random structures with max-ratio=0\.2 do not reach 30%FLOPs"
    ):
        RandomSearch(max_ratio=0.2).open(space, 0)
    with pytest.raises(
        UserError, match=r"no scale of the grid \(10 to 100 %\) removes 0\.105 to 0\.115 of a width"
    ):
        RandomSearch(min_ratio=0.105, max_ratio=0.115).open(space, 0)
    narrow = space_of(network, "90%FLOPs", genes=tied(network), window=0.05)
    with pytest.raises(UserError, match=r"random structures with min-ratio=0\.3 use at most"):
        RandomSearch(min_ratio=0.3).open(narrow, 0)
    with pytest.raises(UserError, match="floor counts the units of groups one by one"):
        RandomSearch(floor=True).open(space, 0)


def test_without_candidates_there_is_no_search() -> None:
    with pytest.raises(UserError, match="candidates=0 must be at least 1"):
        RandomSearch(candidates=0)
