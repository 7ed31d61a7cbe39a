"""Explorers propose the baselines first, then children, nothing twice, nothing outside, and better
than chance."""

from collections.abc import Callable

import numpy as np
import pytest

from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.front.front_outcome import objectives
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers.explorer import Explorer, RandomDraws, Structure
from pruneopt.passes.search.searchers.nsga2 import Genetic
from pruneopt.passes.search.searchers.pareto import hypervolume
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.space import Space

Make = Callable[..., State]
Score = Callable[[np.ndarray], float]


@pytest.fixture(scope="module")
def reach(conv_chain: Make) -> Reach:
    state = conv_chain((16, 24, 24, 32, 32, 48, 48))
    scores = score_units(state.need_coupling(), state.graph.weights, "l1", normalise=True)
    return Reach(
        Space(state.need_coupling(), state.need_cost(), [], scores, grid=range(1, 101)),
        "flops",
        None,
        1.0,
    )


def formula(reach: Reach, seed: int) -> Score:
    random = np.random.default_rng([seed, 17])
    full = reach.space.cost.full
    weight, power = random.lognormal(-2, 1.2, len(full)), random.uniform(1, 4, len(full))
    return lambda row: float(0.9 * np.exp(-1.5 * (weight * (1 - row / full) ** power).sum()))


def run(explorer: Explorer, score: Score, count: int) -> tuple[list[Structure], np.ndarray]:
    """So many structures, and their objectives (negative score, FLOPs)."""
    cost = explorer.reach.space.cost
    found: list[Structure] = []
    points: list[np.ndarray] = []
    while len(found) < count and (generation := explorer.ask()):
        rows = np.stack([item.widths for item in generation])
        told = objectives([score(row) for row in rows], rows, ("flops",), cost)
        explorer.tell(told)
        found += generation
        points.append(told)
    return found[:count], np.concatenate(points)[:count]


def volume(reach: Reach, points: np.ndarray) -> float:
    return hypervolume(points / [1.0, reach.original], np.array([0.0, 1.0]))


@pytest.mark.parametrize("kind", [Genetic, RandomDraws])
def test_the_first_generation_holds_the_baselines_all_over_the_range(
    reach: Reach, kind: type[Explorer]
) -> None:
    first = kind(reach, 20, 0).ask()
    assert len(first) == 20
    assert first[0].origin == "original"
    assert (first[0].widths == reach.space.cost.full).all()
    widths = [item.widths.tolist() for item in first]
    for level in reach.levels(5):
        assert reach.selected("local", level).tolist() in widths
        assert reach.selected("global", level).tolist() in widths
    randoms = [
        float(reach.space.cost.measure("flops", i.widths)) / reach.original
        for i in first
        if i.origin == "random"
    ]
    assert min(randoms) < 0.35
    assert max(randoms) > 0.6


@pytest.mark.parametrize("kind", [Genetic, RandomDraws])
def test_nothing_is_proposed_twice_or_outside(reach: Reach, kind: type[Explorer]) -> None:
    found, _ = run(kind(reach, 16, 3), formula(reach, 3), 160)
    keys = {item.widths.tobytes() for item in found}
    assert len(keys) == len(found) == 160
    for item in found:
        assert reach.allows(item.widths)
        assert all(width in rungs for width, rungs in zip(item.widths, reach.rungs, strict=True))
        if item.origin in ("random", "child"):
            assert reach.inside(item.widths)


@pytest.mark.parametrize("kind", [Genetic, RandomDraws])
def test_the_same_seed_and_answers_give_the_same_structures(
    reach: Reach, kind: type[Explorer]
) -> None:
    runs = [run(kind(reach, 12, seed), formula(reach, 0), 60)[0] for seed in (5, 5, 6)]
    texts = [[(item.origin, item.widths.tolist()) for item in found] for found in runs]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_random_draws_do_not_look_at_answers_and_evolution_does(reach: Reach) -> None:
    for kind, same in ((RandomDraws, True), (Genetic, False)):
        one, other = (run(kind(reach, 12, 0), formula(reach, seed), 48)[0] for seed in (0, 1))
        assert ([i.widths.tolist() for i in one] == [i.widths.tolist() for i in other]) == same


def test_at_equal_numbers_evolution_finds_a_larger_front_than_chance(reach: Reach) -> None:
    ways: dict[str, list[float]] = {"nsga2": [], "after seeds": [], "random": []}
    for seed in range(5):
        score = formula(reach, seed)
        for name, explorer in (
            ("nsga2", Genetic(reach, 20, seed)),
            ("after seeds", RandomDraws(reach, 20, seed)),
            ("random", RandomDraws(reach, 20, seed, seeded=False)),
        ):
            ways[name].append(volume(reach, run(explorer, score, 120)[1]))
    means = {name: np.mean(values) for name, values in ways.items()}
    assert means["nsga2"] > means["after seeds"] + 0.005
    assert means["nsga2"] > means["random"] + 0.005
    assert np.sum(np.array(ways["nsga2"]) > np.array(ways["after seeds"])) >= 4


def test_the_front_stays_spread_over_the_range(reach: Reach) -> None:
    explorer = Genetic(reach, 20, 0)
    run(explorer, formula(reach, 0), 200)
    assert explorer.points is not None
    shares = np.sort(explorer.points[:, 1]) / reach.original
    assert shares[0] < 0.25
    assert shares[-1] == 1.0
    assert np.diff(shares).max() < 0.2


def test_a_small_space_is_exhausted_and_said_so(conv_chain: Make) -> None:
    state = conv_chain((2, 3))
    scores = score_units(state.need_coupling(), state.graph.weights, "l1", normalise=True)
    space = Space(state.need_coupling(), state.need_cost(), [], scores, grid=range(1, 101))
    for kind in (Genetic, RandomDraws):
        explorer = kind(Reach(space, "flops", None, 1.0), 8, 0)
        found, _ = run(explorer, lambda row: 0.5, 100)
        assert len(found) <= 6
        assert explorer.ask() == []
