"""A front by searchers of one objective: every level has its search, nothing is judged twice, and
each answer reaches who asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from pruneopt.errors import UserError
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers.by_levels import ByLevels
from pruneopt.passes.search.searchers.evolution import Evolution
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.searcher import AskTell, Searcher
from pruneopt.passes.search.searchers.space import Proposal, Space

Make = Callable[..., State]


@pytest.fixture(scope="module")
def reach(conv_chain: Make) -> Reach:
    state = conv_chain()
    scores = score_units(state.need_coupling(), state.graph.weights, "l1", normalise=True)
    space = Space(state.need_coupling(), state.need_cost(), [], scores, grid=range(1, 101))
    return Reach(space, "flops", None, 1.0)


@dataclass(frozen=True)
class Noting(Searcher):
    """Proposes at random, every third time what it proposed first, and notes what it is told."""

    name: ClassVar[str] = "noting"
    summary: ClassVar[str] = "for tests"
    rounds: int = option(6, "structures of each level")
    outside: bool = option(False, "ignore the budgets")

    def open(self, space: Space, seed: int) -> AskTell:
        return Notes(self, space, seed)


class Notes(AskTell):
    opened: ClassVar[list[Notes]] = []

    def __init__(self, options: Noting, space: Space, seed: int) -> None:
        self.options, self.space = options, space
        self.rng = np.random.default_rng(seed)
        self.asked: list[Proposal] = []
        self.told: list[tuple[Proposal, float]] = []
        self.opened.append(self)

    def ask(self) -> Proposal | None:
        assert len(self.told) == len(self.asked), "asked before the last one was answered"
        if len(self.asked) == self.options.rounds:
            return None
        again = len(self.asked) % 3 == 2
        self.asked.append(self.asked[0] if again else self._drawn())
        return self.asked[-1]

    def _drawn(self) -> Proposal:
        indices = self.space.uniform(self.rng)
        moved = indices if self.options.outside else self.space.moved(indices, self.rng)
        assert moved is not None
        return self.space.proposal(moved)

    def tell(self, proposal: Proposal, fitness: float) -> None:
        self.told.append((proposal, fitness))

    def describe(self) -> str:
        return "notes"

    @property
    def total(self) -> int:
        return self.options.rounds


def score(widths: np.ndarray) -> float:
    return float(np.log(widths).sum())


def run(explorer: ByLevels) -> list[list[np.ndarray]]:
    """Return all generations of an explorer, each answered by `score`."""
    found = []
    while generation := explorer.ask():
        rows = [item.widths for item in generation]
        explorer.tell(np.array([[-score(row), 1.0] for row in rows]))
        found.append(rows)
    return found


def test_each_level_is_searched_within_its_cost_and_told_the_score(reach: Reach) -> None:
    Notes.opened.clear()
    generations = run(ByLevels(Noting(), reach, 20, 3))
    limits = [note.space.budgets[-1].limit(note.space.cost) for note in Notes.opened]
    assert len(limits) == 5
    assert limits == sorted(limits)
    assert reach.low * reach.original < limits[0]
    assert limits[-1] < reach.high * reach.original
    known = {row.tobytes() for rows in generations for row in rows}
    assert len(known) == sum(map(len, generations))
    for note, limit in zip(Notes.opened, limits, strict=True):
        assert [proposal for proposal, _ in note.told] == note.asked
        assert len(note.told) == 6
        for proposal, fitness in note.told:
            assert fitness == score(proposal.widths)
            assert proposal.widths.tobytes() in known
            assert reach.space.cost.measure("flops", proposal.widths) <= limit


def test_levels_draw_apart_and_the_seed_decides(reach: Reach) -> None:
    runs = []
    for seed in (3, 3, 4):
        generations = run(ByLevels(Noting(), reach, 8, seed))
        runs.append([row.tolist() for rows in generations for row in rows])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    one, other = (note.rng.bit_generator.state["state"] for note in Notes.opened[-2:])
    assert one != other


def test_a_score_that_is_no_number_is_told_as_such(reach: Reach) -> None:
    Notes.opened.clear()
    explorer = ByLevels(Noting(rounds=1), reach, 8, 0)
    for _ in range(2):
        generation = explorer.ask()
        explorer.tell(np.full((len(generation), 2), 1e30))
    assert explorer.ask() == []
    assert [np.isnan(fitness) for note in Notes.opened for _, fitness in note.told] == [True, True]


def test_what_is_outside_of_a_budget_is_refused(reach: Reach) -> None:
    bounded = Reach(reach.space, "flops", None, 0.3)
    with pytest.raises(UserError, match="noting proposed a structure outside of its budgets"):
        run(ByLevels(Noting(outside=True), bounded, 8, 0))


def test_generations_of_a_searcher_are_asked_in_parts(reach: Reach) -> None:
    """A generation of a level's evolution is larger than that level's share of one of the front."""
    searcher = Evolution(population=9, iterations=2, parents=3)
    generations = run(ByLevels(searcher, reach, 8, 1))
    assert all(len(rows) <= 8 for rows in generations)
    assert 18 < sum(len(rows) for rows in generations[1:]) <= 2 * 2 * 9
