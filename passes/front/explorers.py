"""Who proposes structures for a front: NSGA-II, and random search to compare it with. Both ask in
generations.

An explorer is deterministic: the same reach, options, seed and answers give the same generations. A
search that was stopped is continued by asking again and answering from its journal.

`Evolving` is the NSGA-II of Deb et al. (2002): parents and children together are sorted into
fronts, the next parents are the best by front and, within the last front that fits, by crowding
distance; children come from binary tournaments by simulated binary crossover and polynomial
mutation. What is added: the first generation holds the original and what the passes uniform and l1
choose at levels all over the range, so that the front is never worse than these; a child outside of
the budgets or the range is moved into them; and no structure is proposed twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pruneopt.passes.front.pareto import crowding_distances, front_ranks
from pruneopt.passes.front.reach import Reach

__all__ = ["Evolving", "Explorer", "RandomDraws", "Structure", "survivors"]

SPREAD_CROSSOVER = 2.0
SPREAD_MUTATION = 2.0
"""The distribution indices of crossover and mutation: the larger, the closer children are to their
parents. Deb takes 20 for tens of thousands of evaluations; a search of networks has hundreds, and
must take longer steps."""
CROSSOVER = 0.9
"""How likely a child has two parents."""
ATTEMPTS = 100
"""Draws without a new structure, after which the space counts as exhausted."""


@dataclass(frozen=True)
class Structure:
    """A proposed structure.

    Attributes:
        widths: int64 `[G]`.
        origin: original (or widest, where widths are bounded), uniform, l1, random or child.
    """

    widths: np.ndarray
    origin: str


class Explorer(ABC):
    """A search under way. Every generation is answered before the next is asked for.

    Args:
        reach: what may be proposed.
        population: structures in a generation, at least 8.
        seed: drives every random choice.
        seeded: begin with the original, uniform and l1 structures; without, the first generation is
            random.
    """

    def __init__(self, reach: Reach, population: int, seed: int, *, seeded: bool = True) -> None:
        self.reach, self.population, self.seed, self.seeded = reach, population, seed, seeded
        self.generation = 0
        self.known: set[bytes] = set()

    def ask(self) -> list[Structure]:
        """The next generation, every structure of it new; empty where the space is exhausted."""
        # A generator of its own for every generation: none depends on how many numbers another one
        # took.
        rng = np.random.default_rng([self.seed, 5, self.generation])
        found = self._first(rng) if self.generation == 0 else self._next(rng)
        self.generation += 1
        return found

    @abstractmethod
    def tell(self, points: np.ndarray) -> None:
        """The objectives `[P, M]` of the last generation, all to be minimised."""

    @abstractmethod
    def describe(self) -> str:
        """How structures are found, in a few words."""

    @abstractmethod
    def _next(self, rng: np.random.Generator) -> list[Structure]:
        """A generation after the first."""

    def _first(self, rng: np.random.Generator) -> list[Structure]:
        """The original, the baselines at levels all over the range, and random structures at levels
        between."""
        found: list[Structure] = []
        if self.seeded:
            space = self.reach.space
            widest = space.allowed.highest
            self._take(widest, "original" if (widest == space.cost.full).all() else "widest", found)
            for level in reversed(self.reach.levels(max(2, self.population // 4))):
                self._take(self.reach.selected("local", level), "uniform", found)
                self._take(self.reach.selected("global", level), "l1", found)
        return self._filled(found, rng)

    def _filled(self, found: list[Structure], rng: np.random.Generator) -> list[Structure]:
        """A generation with random structures for what is missing, their levels drawn one from
        every stratum."""
        missing = self.population - len(found)
        levels = (rng.permutation(missing) + rng.random(missing)) / max(1, missing)
        for place in levels:
            for _ in range(ATTEMPTS):
                level = self.reach.low * (self.reach.high / self.reach.low) ** place
                position = self.reach.moved(rng.random(len(self.reach.moves)), float(level))
                if self._take(self.reach.widths(position), "random", found):
                    break
                place = rng.random()
            else:
                return found
        return found

    def _take(self, widths: np.ndarray, origin: str, found: list[Structure]) -> bool:
        """Add a structure if it is new and allowed; whether it was."""
        key = widths.astype(np.int64).tobytes()
        # What a baseline chooses for the lowest level lies just below it.
        fits = self.reach.inside if origin in ("random", "child") else self.reach.allows
        if key in self.known or not fits(widths):
            return False
        self.known.add(key)
        found.append(Structure(widths, origin))
        return True


class RandomDraws(Explorer):
    """Random structures at random levels: what was judged before has no influence."""

    def tell(self, points: np.ndarray) -> None:
        """Nothing is learnt."""

    def describe(self) -> str:
        return (
            f"random structures on levels from {self.reach.low:.1%} to {self.reach.high:.1%} "
            "of "
            f"the {self.reach.unit}"
        )

    def _next(self, rng: np.random.Generator) -> list[Structure]:
        return self._filled([], rng)


class Evolving(Explorer):
    """NSGA-II.

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
    """Which of points `[N, M]` live on, int64 of at most ``count``: by front, and by crowding
    distance in the last."""
    ranks, crowding = front_ranks(points), _crowding(points)
    order = np.lexsort((-crowding, ranks))
    return order[:count].astype(np.int64)


def _crowding(points: np.ndarray) -> np.ndarray:
    """The crowding distance of every point within its front."""
    ranks = front_ranks(points)
    found = np.zeros(len(points))
    for rank in range(int(ranks.max(initial=-1)) + 1):
        found[ranks == rank] = crowding_distances(points[ranks == rank])
    return found


def _tournament(ranks: np.ndarray, crowding: np.ndarray, rng: np.random.Generator) -> int:
    """The better of two that are drawn: by front, then by crowding distance."""
    one, other = (int(item) for item in rng.integers(0, len(ranks), 2))
    if (ranks[other], -crowding[other]) < (ranks[one], -crowding[one]):
        return other
    return one


def _crossed(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the two children of simulated binary crossover; half of the genes are crossed (Deb and
    Agrawal, 1995)."""
    u = rng.random(len(first))
    power = 1 / (SPREAD_CROSSOVER + 1)
    beta = np.where(u <= 0.5, (2 * u) ** power, (1 / (2 * (1 - u))) ** power)
    side = np.where(rng.random(len(first)) < 0.5, 1.0, -1.0)
    crossed = 0.5 * (first + second) + side * 0.5 * beta * (second - first)
    return np.clip(np.where(rng.random(len(first)) < 0.5, crossed, first), 0, 1)


def _mutated(position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Polynomial mutation; a gene mutates with probability 1 / M, and one at least (Deb and Goyal,
    1996)."""
    chosen = rng.random(len(position)) < 1 / len(position)
    chosen[rng.integers(len(position))] |= not chosen.any()
    u = rng.random(len(position))
    power = 1 / (SPREAD_MUTATION + 1)
    step = np.where(u < 0.5, (2 * u) ** power - 1, 1 - (2 * (1 - u)) ** power)
    return np.clip(np.where(chosen, position + step, position), 0, 1)
