"""A search for a front: structures are proposed in generations, and answered with every objective.

An explorer is deterministic: the same reach, options, seed and answers give the same generations. A
search that was stopped is continued by asking again and answering from its journal. The first
generation of every explorer holds the original and what the passes uniform and l1 choose at levels
all over the range, so that the front is never worse than these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pruneopt.passes.search.searchers.reach import Reach

__all__ = ["ATTEMPTS", "WORST", "Explorer", "RandomDraws", "Structure"]

ATTEMPTS = 100
"""Draws without a new structure, after which the space counts as exhausted."""
WORST = 1e30
"""The objective of a score that is no number, from a network that gives none: worse than every
other."""


@dataclass(frozen=True)
class Structure:
    """A proposed structure.

    Attributes:
        widths: int64 `[G]`.
        origin: original (or widest, where widths are bounded), uniform, l1, random, child, or the
            name of the searcher that proposed it.
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
        """Return the next generation, every structure of it new; empty where the space is
        exhausted."""
        # A generator of its own for every generation: none depends on how many numbers another one
        # took.
        rng = np.random.default_rng([self.seed, 5, self.generation])
        found = self._first(rng) if self.generation == 0 else self._next(rng)
        self.generation += 1
        return found

    @abstractmethod
    def tell(self, points: np.ndarray) -> None:
        """Take the objectives `[P, M]` of the last generation, all to be minimised: negative
        scores in the first column, costs in the others."""

    @abstractmethod
    def describe(self) -> str:
        """Say how structures are found, in a few words."""

    @abstractmethod
    def _next(self, rng: np.random.Generator) -> list[Structure]:
        """Return a generation after the first."""

    def _first(self, rng: np.random.Generator) -> list[Structure]:
        """Return the original, the baselines at levels all over the range, and random structures at
        levels between."""
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
        """Return a generation with random structures for what is missing, their levels drawn one
        from every stratum."""
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
        """Add a structure if it is new and allowed; return whether it was."""
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
        """Ignore the answers: nothing is learnt."""

    def describe(self) -> str:
        return (
            f"random structures on levels from {self.reach.low:.1%} to {self.reach.high:.1%} "
            f"of the {self.reach.unit}"
        )

    def _next(self, rng: np.random.Generator) -> list[Structure]:
        return self._filled([], rng)
