"""NSGA-II (Deb et al., 2002), the searcher that knows several objectives.

Parents and children together are sorted into fronts; the next parents are the best by front and,
within the last front that fits, by crowding distance; children come from binary tournaments by
simulated binary crossover and polynomial mutation. What is added: a child outside of the budgets or
the range is moved into them, and no structure is proposed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pruneopt.passes.search.searchers.explorer import ATTEMPTS, Explorer, Structure
from pruneopt.passes.search.searchers.pareto import crowding_distances, front_ranks
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.searcher import FrontSearcher

__all__ = ["NSGA2", "Genetic", "survivors"]

SPREAD_CROSSOVER = 2.0
SPREAD_MUTATION = 2.0
"""The distribution indices of crossover and mutation: the larger, the closer children are to their
parents. Deb takes 20 for tens of thousands of evaluations; a search of networks has hundreds, and
must take longer steps."""
CROSSOVER = 0.9
"""How likely a child has two parents."""


@dataclass(frozen=True)
class NSGA2(FrontSearcher):
    """Deb et al. 2002; its generations are as large as the search says."""

    name: ClassVar[str] = "nsga2"
    summary: ClassVar[str] = "genetic algorithm for a front of several objectives (NSGA-II)"

    def explore(self, reach: Reach, population: int, seed: int) -> Genetic:
        return Genetic(reach, population, seed)


class Genetic(Explorer):
    """NSGA-II under way.

    Attributes:
        parents: positions `[P, K]` of the structures that children come from.
        points: their objectives `[P, M]`.
    """

    def __init__(self, reach: Reach, population: int, seed: int, *, seeded: bool = True) -> None:
        super().__init__(reach, population, seed, seeded=seeded)
        self.parents = np.zeros((0, len(reach.moves)))
        self.points: np.ndarray | None = None
        self._asked = self.parents

    def ask(self) -> list[Structure]:
        found = super().ask()
        self._asked = np.array([self.reach.position(item.widths) for item in found]).reshape(
            -1, len(self.reach.moves)
        )
        return found

    def tell(self, points: np.ndarray) -> None:
        pool = np.concatenate([self.parents, self._asked])
        points = points if self.points is None else np.concatenate([self.points, points])
        kept = survivors(points, self.population)
        self.parents, self.points = pool[kept], points[kept]

    def describe(self) -> str:
        groups = len(self.reach.moves)
        return (
            f"NSGA-II, generations of {self.population}, widths of {groups} groups, "
            f"{self.reach.low:.1%} to {self.reach.high:.1%} of the {self.reach.unit}"
        )

    def _next(self, rng: np.random.Generator) -> list[Structure]:
        assert self.points is not None
        ranks, crowding = front_ranks(self.points), _crowding(self.points)
        found: list[Structure] = []
        for _ in range(self.population):
            for _ in range(ATTEMPTS):
                child = self._child(ranks, crowding, rng)
                if self._take(self.reach.widths(self.reach.put(child, rng)), "child", found):
                    break
            else:
                # Parents that are all alike have no new children left: fresh blood.
                return self._filled(found, rng)
        return found

    def _child(
        self, ranks: np.ndarray, crowding: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        first, second = (self.parents[_tournament(ranks, crowding, rng)] for _ in range(2))
        child = _crossed(first, second, rng) if rng.random() < CROSSOVER else first
        return _mutated(child, rng)


def survivors(points: np.ndarray, count: int) -> np.ndarray:
    """Return which of points `[N, M]` live on, int64 of at most ``count``: by front, and by
    crowding distance in the last."""
    ranks, crowding = front_ranks(points), _crowding(points)
    order = np.lexsort((-crowding, ranks))
    return order[:count].astype(np.int64)


def _crowding(points: np.ndarray) -> np.ndarray:
    """Return the crowding distance of every point within its front."""
    ranks = front_ranks(points)
    found = np.zeros(len(points))
    for rank in range(int(ranks.max(initial=-1)) + 1):
        found[ranks == rank] = crowding_distances(points[ranks == rank])
    return found


def _tournament(ranks: np.ndarray, crowding: np.ndarray, rng: np.random.Generator) -> int:
    """Return the better of two that are drawn: by front, then by crowding distance."""
    one, other = (int(item) for item in rng.integers(0, len(ranks), 2))
    if (ranks[other], -crowding[other]) < (ranks[one], -crowding[one]):
        return other
    return one


def _crossed(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one of the two children of simulated binary crossover; half of the genes are crossed
    (Deb and Agrawal, 1995)."""
    u = rng.random(len(first))
    power = 1 / (SPREAD_CROSSOVER + 1)
    beta = np.where(u <= 0.5, (2 * u) ** power, (1 / (2 * (1 - u))) ** power)
    side = np.where(rng.random(len(first)) < 0.5, 1.0, -1.0)
    crossed = 0.5 * (first + second) + side * 0.5 * beta * (second - first)
    return np.clip(np.where(rng.random(len(first)) < 0.5, crossed, first), 0, 1)


def _mutated(position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mutate by a polynomial; a gene mutates with probability 1 / M, and one at least (Deb and
    Goyal, 1996)."""
    chosen = rng.random(len(position)) < 1 / len(position)
    chosen[rng.integers(len(position))] |= not chosen.any()
    u = rng.random(len(position))
    power = 1 / (SPREAD_MUTATION + 1)
    step = np.where(u < 0.5, (2 * u) ** power - 1, 1 - (2 * (1 - u)) ** power)
    return np.clip(np.where(chosen, position + step, position), 0, 1)
