"""The proposals that a search may make: exact widths, constraints of groups, budgets and windows,
and vectors moved into them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.analysis.residual.gene_order import Gene
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers.space import GRID, Space, _walk, untied_genes

Chain = Callable[[Sequence[int]], State]
relaxed = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

MOBILENET_V1 = [32, 64, 128, 256, 512, 1024]
MOBILENET_V2 = [44, 22, 33, 88, 132, 224, 448, 1280]
"""The 1.4x network, whose blocks expand six times."""
RESNET_50 = [64, 128, 256, 512, 1024, 2048]
BASES = sorted(
    {*MOBILENET_V1, *MOBILENET_V2, *[6 * width for width in MOBILENET_V2[:-1]], *RESNET_50}
)


def space_of(state: State, *budgets: str, **options: Any) -> Space:
    return Space(
        state.need_coupling(),
        state.need_cost(),
        [parse_budget(text) for text in budgets],
        {},
        **options,
    )


def shares(space: Space, widths: np.ndarray) -> list[float]:
    """Return the share of every budget that a structure `[G]` uses, the largest allowed use being
    1."""
    return [float(space.cost.measure(b.unit, widths)) / b.limit(space.cost) for b in space.budgets]


# Widths


def test_the_grid_is_metaprunings() -> None:
    assert [percent / 100 for percent in GRID] == [(10 + 3 * i) / 100 for i in range(31)]


@pytest.fixture(scope="module")
def bases(chain: Chain) -> State:
    """A network with a group of every base width."""
    return chain(BASES)


def test_widths_are_the_published_truncation(bases: State) -> None:
    """``int(C * scale)``, in floating point as the released code has it, for every base width and
    scale."""
    space = space_of(bases)
    assert space.cost.full.tolist() == BASES
    for index in range(31):
        scale = (10 + index * 3) / 100
        indices = np.full(len(BASES), index)
        assert space.widths_of(indices).tolist() == [int(width * scale) for width in BASES]
        assert space.scales_of(indices).tolist() == [scale] * len(BASES)


def test_from_34_channels_on_every_scale_has_a_width_of_its_own() -> None:
    distinct = {
        width: len({width * percent // 100 for percent in GRID}) for width in range(1, 3000)
    }
    assert all(distinct[width] == 31 for width in range(34, 3000))
    assert distinct[32] < 31


def ladder(full: int, step: int, percent: int, round_to: int) -> int:
    """Return the largest multiple of step and rounding up to a share of a width; the smallest
    multiple where none is."""
    grain = int(np.lcm(step, round_to))
    fitting = [
        width for width in (*range(grain, full, grain), full) if width <= full * percent // 100
    ]
    return max(fitting, default=min(grain, full))


@given(data=st.data(), round_to=st.sampled_from([1, 2, 4, 8]))
@relaxed
def test_groups_with_blocks_go_down_to_equal_counts(
    mixed: State, data: st.DataObject, round_to: int
) -> None:
    space = space_of(mixed, round_to=round_to)
    assert max(space.cost.step) > 1
    genes = data.draw(
        st.lists(st.integers(0, 30), min_size=len(space.genes), max_size=len(space.genes))
    )
    widths = space.widths_of(np.array(genes))
    for gene, width, full, step in zip(
        genes, widths, space.cost.full, space.cost.step, strict=True
    ):
        assert width == ladder(int(full), int(step), GRID[gene], round_to)


def test_a_table_of_vectors_is_its_rows(mixed: State) -> None:
    space = space_of(mixed, "60%FLOPs")
    rng = np.random.default_rng(0)
    table = np.stack([space.uniform(rng) for _ in range(7)])
    assert space.widths_of(table).tolist() == [space.widths_of(row).tolist() for row in table]
    assert space.scales_of(table).tolist() == [space.scales_of(row).tolist() for row in table]
    feasible = space.feasible(space.widths_of(table))
    assert feasible.tolist() == [max(shares(space, space.widths_of(row))) <= 1 for row in table]


def test_the_minimum_holds_below_the_grid(chain: Chain) -> None:
    space = space_of(chain([40, 50]), minimum=0.5)
    assert space.widths_of(np.array([0, 30])).tolist() == [20, 50]


def test_tied_genes_share_a_scale_and_frozen_ones_stay_whole(chain: Chain) -> None:
    state = chain([40, 60, 80, 100])
    names = [group.name for group in state.need_coupling().free]
    genes = [
        Gene((names[0], names[2]), 40),
        Gene((names[1],), 60),
        Gene((names[3],), 100, "because"),
    ]
    space = space_of(state, genes=genes)
    assert [gene.groups for gene in space.genes] == [(names[0], names[2]), (names[1],)]
    assert not space.untied
    proposal = space.proposal(np.array([0, 10]), attempts=3)
    assert proposal.widths.tolist() == [4, 24, 8, 100]
    assert proposal.scales is not None
    assert proposal.scales.tolist() == [0.1, 0.4, 0.1, 1.0]
    assert proposal.attempts == 3
    assert space_of(state).untied
    assert not space_of(state, genes=untied_genes(state.need_coupling())[1:]).untied


# Budgets and windows


@given(data=st.data(), window=st.sampled_from([None, 0.02, 0.3, 1.0]), params=st.integers(30, 100))
@relaxed
def test_feasible_is_inside_all_and_not_below(
    mixed: State, data: st.DataObject, window: float | None, params: int
) -> None:
    space = space_of(mixed, "50%FLOPs", f"{params}%params", window=window)
    widths = space.widths_of(
        np.array(data.draw(st.lists(st.integers(0, 30), min_size=3, max_size=3)))
    )
    uses = shares(space, widths)
    assert space.feasible(widths[None]).tolist() == [
        max(uses) <= 1 and (window is None or max(uses) >= 1 - window)
    ]
    assert space.used(widths[None]).tolist() == pytest.approx([max(uses)])


def test_without_budgets_everything_is_feasible(mixed: State) -> None:
    space = space_of(mixed, window=0.01)
    widths = np.stack([space.widths_of(np.full(3, 0)), space.cost.full])
    assert space.feasible(widths).all()
    assert space.used(widths).tolist() == [0, 0]


def test_a_budget_below_the_network_is_refused_with_what_is_reachable(chain: Chain) -> None:
    with pytest.raises(
        BudgetError, match=r"the budget '1FLOPs' is out of reach: .* smaller than 10 FLOPs"
    ):
        space_of(chain([40, 40, 40]), "1FLOPs")


def test_a_budget_below_the_grid_is_refused_with_what_is_reachable(chain: Chain) -> None:
    """At 10 % the widths are 4, and 3*4 + 4*4 + 4*5 = 48; below, only single channels would do."""
    state = chain([40, 40])
    with pytest.raises(BudgetError) as error:
        space_of(state, "47FLOPs")
    assert "the budget '47FLOPs' is out of reach" in str(error.value)
    assert "cannot be made smaller than 48 FLOPs" in str(error.value)
    assert str(error.value).endswith("the search keeps at least 10 % of every width")
    space = space_of(state, "48FLOPs")
    assert space.widths_of(np.zeros(2, dtype=np.int64)).tolist() == [4, 4]


def test_frozen_genes_count_for_what_is_reachable(chain: Chain) -> None:
    state = chain([40, 40])
    names = [group.name for group in state.need_coupling().free]
    genes = [Gene((names[0],), 40), Gene((names[1],), 40, "stays")]
    with pytest.raises(BudgetError, match=r"smaller than 372 FLOPs"):  # 3*4 + 4*40 + 40*5
        space_of(state, "300FLOPs", genes=genes)


def test_a_budget_above_the_network_leaves_nothing_in_the_window(chain: Chain) -> None:
    state = chain([40, 40])
    with pytest.raises(
        UserError,
        match=r"the original uses 48\.0% of the tightest budget, and window=0\.01 asks for 99",
    ):
        space_of(state, "4kFLOPs", window=0.01)
    assert space_of(state, "4kFLOPs").feasible(np.array([[40, 40]])).all()
    assert space_of(state, "4kFLOPs", window=0.6).feasible(np.array([[40, 40]])).all()


def test_a_range_must_hold_something(chain: Chain) -> None:
    space = space_of(chain([40, 40]), "25%FLOPs", window=0.1)
    space.check_range(0, 30, "low=0", "high=30")
    with pytest.raises(BudgetError, match=r"random structures with low=20 do not reach 25%FLOPs"):
        space.check_range(20, 30, "low=20", "high=30")
    with pytest.raises(
        UserError, match=r"with high=3 use at most \d+\.\d% of .* window=0\.1 asks for 90\.0%"
    ):
        space.check_range(0, 3, "low=0", "high=3")


@pytest.mark.parametrize("window", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_windows(mixed: State, window: float) -> None:
    with pytest.raises(UserError, match="must be a share of the budget"):
        space_of(mixed, "50%FLOPs", window=window)


@pytest.mark.parametrize("grid", [(), (0, 100), (50, 40, 100), (50, 50, 100), (10, 90)])
def test_impossible_grids(mixed: State, grid: tuple[int, ...]) -> None:
    with pytest.raises(
        UserError, match="the scales of a grid are whole percentages in ascending order"
    ):
        space_of(mixed, grid=grid)


def test_nothing_to_search(mixed: State) -> None:
    with pytest.raises(UserError, match="no gene of Mixed is free to be searched"):
        space_of(
            mixed,
            genes=[
                Gene(gene.groups, gene.width, "all of them")
                for gene in untied_genes(mixed.need_coupling())
            ],
        )


# Moving


@given(
    seed=st.integers(0, 2**32 - 1),
    flops=st.integers(8, 120),
    params=st.one_of(st.none(), st.integers(12, 100)),
    window=st.sampled_from([None, 0.01, 0.1, 0.5]),
    ends=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    round_to=st.sampled_from([1, 4]),
)
@relaxed
def test_a_moved_vector_is_feasible_or_there_is_none(
    mixed: State,
    seed: int,
    flops: int,
    params: int | None,
    window: float | None,
    ends: tuple[int, int],
    round_to: int,
) -> None:
    low, high = min(ends), max(ends)
    full = float(mixed.need_cost().measure("flops", mixed.need_cost().full))
    texts = [f"{flops / 100 * full:.0f}FLOPs", *([] if params is None else [f"{params}%params"])]
    try:
        space = space_of(mixed, *texts, window=window, round_to=round_to)
    except UserError:
        return
    rng = np.random.default_rng(seed)
    start = space.uniform(rng, low, high)
    found = space.moved(start, rng, low, high)
    lowest = space.widths_of(np.full(3, low))
    if found is None:
        # Too large in the whole range, or stuck: no gene can rise, and the window is not met.
        assert window is not None or max(shares(space, lowest)) > 1
        return
    uses = shares(space, space.widths_of(found))
    assert max(uses) <= 1 + 1e-12
    assert window is None or max(uses) >= 1 - window
    assert low <= found.min() <= found.max() <= high
    if max(shares(space, space.widths_of(start))) <= 1 and window is None:
        assert found.tolist() == start.tolist(), "what fits is not moved"
    elif window is None:
        assert (found <= start).all()


def test_all_but_stuck_walks_end_in_the_window(chain: Chain) -> None:
    """With fine widths every random vector finds its way, from above and from below."""
    state = chain([64] * 8)
    for budget in ("15%FLOPs", "50%FLOPs", "90%FLOPs"):
        space = space_of(state, budget, window=0.02)
        rng = np.random.default_rng(0)
        found = [space.moved(space.uniform(rng), rng) for _ in range(100)]
        assert all(item is not None for item in found)
        assert len({tuple(item.tolist()) for item in found if item is not None}) > 90


def entropy(column: np.ndarray) -> float:
    """Bits of a gene's distribution."""
    p = np.bincount(column, minlength=31) / len(column)
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


@pytest.mark.parametrize(
    ("budget", "least"), [("70%FLOPs", 3.3), ("35%FLOPs", 4.2), ("15%FLOPs", 3.3)]
)
def test_moved_vectors_are_diverse(chain: Chain, budget: str, least: float) -> None:
    """Uniform genes have 4.95 bits; far from the uniform mean the ends of the grid fill up, and
    nothing else."""
    space = space_of(chain([64] * 12), budget, window=0.05)
    rng = np.random.default_rng(1)
    found = np.array([space.moved(space.uniform(rng), rng) for _ in range(600)])
    bits = [entropy(column) for column in found.T]
    assert min(bits) > least
    inner = np.concatenate([column[(column > 0) & (column < 30)] for column in found.T])
    assert len(set(inner.tolist())) >= 25
    # No gene is treated in another way than its neighbours (the first and the last cost less).
    assert np.ptp(found[:, 1:-1].mean(axis=0)) < 2.5
    correlation = np.corrcoef(found.T)[np.triu_indices(12, 1)]
    assert np.abs(correlation).max() < 0.35


def slow_walk(room: list[int], rng: np.random.Generator) -> tuple[int, ...]:
    """One step after the other, in any of the places that have room."""
    order = []
    left = list(room)
    while any(left):
        places = [place for place, count in enumerate(left) if count]
        chosen = places[int(rng.integers(len(places)))]
        left[chosen] -= 1
        order.append(chosen)
    return tuple(order)


def test_walks_take_any_open_place_with_equal_probability() -> None:
    rng, runs = np.random.default_rng(0), 12_000
    room = np.array([2, 1, 0, 2])
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(runs):
        walk = _walk(np.array([5, 5, 5, 5]), room, -1, rng)
        assert walk.shape == (6, 4)
        assert walk[0].tolist() == [5, 5, 5, 5]
        assert walk[-1].tolist() == [3, 4, 5, 3]
        moves = np.diff(walk, axis=0)
        assert (moves.sum(axis=1) == -1).all()
        counts[tuple(np.nonzero(moves)[1].tolist())] += 1
    slow = Counter(slow_walk(room.tolist(), rng) for _ in range(runs))
    assert set(counts) == set(slow) == set(itertools.permutations([0, 0, 1, 3, 3]))
    chi = sum((counts[key] - slow[key]) ** 2 / (counts[key] + slow[key]) for key in counts)
    assert chi < 60, "two samples of one distribution with 29 degrees of freedom"


def test_a_walk_without_room_stays() -> None:
    walk = _walk(np.array([3, 4]), np.array([0, 0]), 1, np.random.default_rng(0))
    assert walk.tolist() == [[3, 4]]
