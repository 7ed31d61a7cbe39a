"""The evolutionary search of MetaPruning (Liu et al., ICCV 2019), operator for operator.

Every generation the candidates are judged; the best 50 of all so far are kept, and the best 10 of
these are parents. The next candidates are 25 mutations (a gene changes with probability 0.1, always
to another value), 25 crossovers (each gene from one of two parents) and random structures for the
rest. What was judged before, is in the generation already or breaks a constraint is drawn again.
Genes are those of the space, so that tied widths change together.

Two things differ. Where the published search rejects random vectors until one fits the FLOPs, a
random vector is moved into the budget here (`Space.moved`); ``reject`` brings rejection back, and
``low`` and ``high`` are the range that the published search of ResNet-50 draws from. And vectors
that give the same widths are one structure, which is judged once: in groups of 34 channels and more
every scale has a width of its own, but narrow ones have several scales for a width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.options.configured import option
from pruneopt.passes.search.rankings.ranking import comparable
from pruneopt.passes.search.searchers.searcher import AskTell, Searcher
from pruneopt.passes.search.searchers.space import Proposal, Space

__all__ = ["Evolution", "Evolving"]

ATTEMPTS = 100_000
"""Random vectors drawn, or moved, for one generation before the space counts as exhausted."""


@dataclass(frozen=True)
class Evolution(Searcher):
    """MetaPruning's evolution; the defaults are the published ones."""

    name: ClassVar[str] = "evolution"
    summary: ClassVar[str] = "mutation and crossover of the best structures (MetaPruning)"

    population: int = option(50, "structures in a generation")
    iterations: int = option(20, "generations")
    parents: int = option(10, "the best structures, from which children are made")
    mutations: int | None = option(
        None, "children by mutation in a generation, at most (half of it)"
    )
    crossovers: int | None = option(
        None, "children by crossover in a generation, at most (half of it)"
    )
    probability: float = option(0.1, "that a gene mutates")
    reject: bool = option(
        False, "draw random structures until one fits, as published, instead of moving them"
    )
    low: int = option(
        0, "the smallest grid index of a random structure (ResNet-50 was searched with 12)"
    )
    high: int | None = option(
        None, "the largest grid index of a random structure (ResNet-50: 23); none takes the last"
    )

    @property
    def breeds_from(self) -> int:
        return self.parents

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("population", "iterations", "parents"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")
        if min(self.children) < 0:
            raise UserError("mutations and crossovers must not be negative")
        if sum(self.children) > self.population:
            raise UserError(
                f"{self.children[0]} mutations and {self.children[1]} crossovers are more than "
                "population="
                f"{self.population}"
            )
        if not 0 < self.probability <= 1:
            raise UserError(f"probability={self.probability:g} must be above 0 and at most 1")
        if self.low < 0 or (self.high is not None and self.high < self.low):
            raise UserError(
                f"random structures from grid index {self.low} to {self.high} are no range"
            )

    @property
    def children(self) -> tuple[int, int]:
        """The most mutations and crossovers in a generation; what is not given shares what is
        left."""
        half, mutations, crossovers = self.population // 2, self.mutations, self.crossovers
        if mutations is None:
            mutations = min(
                half, max(0, self.population - (half if crossovers is None else crossovers))
            )
        if crossovers is None:
            crossovers = min(half, max(0, self.population - mutations))
        return mutations, crossovers

    def open(self, space: Space, seed: int) -> Evolving:
        high = len(space.grid) - 1 if self.high is None else self.high
        if max(self.low, high) >= len(space.grid):
            raise UserError(
                f"low and high are indices into a grid of {len(space.grid)} scales, from 0"
            )
        space.check_range(self.low, high, f"low={self.low}", f"high={high}")
        return Evolving(self, space, seed)


class Evolving(AskTell):
    """An evolution under way.

    Attributes:
        judged: the fitness of every index vector that was judged, in the order of judging.
        archive: the best of them, the best first: as many as a generation has, or parents.
        generation: how many generations were made.
    """

    def __init__(self, options: Evolution, space: Space, seed: int) -> None:
        self.options, self.space = options, space
        self.rng = np.random.default_rng([seed, 1])
        self.judged: dict[tuple[int, ...], float] = {}
        self.archive: list[tuple[int, ...]] = []
        self.generation = 0
        self._known: set[tuple[int, ...]] = set()
        """The widths of everything proposed."""
        self._queue: list[tuple[tuple[int, ...], int]] = []
        self._asked: list[tuple[int, ...]] = []
        self._current: list[tuple[int, ...]] = []

    def ask(self) -> Proposal | None:
        if not self._queue and self.generation < self.options.iterations:
            self._breed()
        if not self._queue:
            return None
        genes, attempts = self._queue.pop(0)
        self._asked.append(genes)
        return self.space.proposal(np.array(genes), attempts)

    def tell(self, proposal: Proposal, fitness: float) -> None:
        self.judged[self._asked.pop(0)] = fitness
        if not self._queue and not self._asked:
            self._keep_best()

    @property
    def ready(self) -> int:
        return len(self._queue)

    def describe(self) -> str:
        options = self.options
        return (
            f"evolution, {options.iterations} generations of {options.population}, "
            f"{len(self.space.genes)} genes of "
            f"{len(self.space.grid)} scales"
        )

    @property
    def total(self) -> int:
        return self.options.population * self.options.iterations

    @property
    def parents(self) -> list[tuple[int, ...]]:
        """The best structures so far, from which children are made."""
        return self.archive[: self.options.parents]

    # Generations

    def _breed(self) -> None:
        """Make the next generation; none, where the space is exhausted."""
        children: dict[tuple[int, ...], int] = {}
        if self.archive:
            self._mutate(children)
            self._cross(children)
        self._fill(children)
        self._current = list(children)
        self._queue = list(children.items())
        self.generation = self.generation + 1 if children else self.options.iterations

    def _keep_best(self) -> None:
        """Add a generation that was judged to the archive."""
        pool = [*self.archive, *self._current]
        # Equal ones keep their order: the older first.
        pool.sort(key=lambda genes: -comparable(self.judged[genes]))
        self.archive = pool[: max(self.options.population, self.options.parents)]

    def _take(
        self, genes: np.ndarray, children: dict[tuple[int, ...], int], attempts: int = 1
    ) -> bool:
        """Add a child if it is new and inside the constraints; whether it was."""
        widths = self.space.widths_of(genes)
        if tuple(widths.tolist()) in self._known or not self.space.feasible(widths[None])[0]:
            return False
        self._known.add(tuple(widths.tolist()))
        children[tuple(genes.tolist())] = attempts
        return True

    def _mutate(self, children: dict[tuple[int, ...], int]) -> None:
        """Mutate parents: up to ten rounds of as many draws as there are to be children."""
        wanted, made = self.options.children[0], 0
        parents, scales = self.parents, len(self.space.grid)
        for _ in range(10 * wanted):
            if made == wanted:
                return
            child = np.array(parents[self.rng.integers(len(parents))])
            changes = self.rng.random(len(child)) < self.options.probability
            if scales > 1:
                child[changes] = (
                    child[changes] + self.rng.integers(1, scales, int(changes.sum()))
                ) % scales
            made += self._take(child, children)

    def _cross(self, children: dict[tuple[int, ...], int]) -> None:
        """Cross parents: up to ten attempts for every child, two different parents, each gene from
        either."""
        wanted, made = self.options.children[1], 0
        parents = self.parents
        if len(parents) < 2:
            return
        for _ in range(10 * wanted):
            if made == wanted:
                return
            first, second = self.rng.choice(len(parents), 2, replace=False)
            from_first = self.rng.random(len(self.space.genes)) < 0.5
            made += self._take(np.where(from_first, parents[first], parents[second]), children)

    def _fill(self, children: dict[tuple[int, ...], int]) -> None:
        """Add random structures until the generation is full, or the space seems to be exhausted.

        Raises:
            UserError: not a single structure fits.
        """
        options, attempts, since = self.options, 0, 0
        # Moving finds a structure every time unless nearly all are known already.
        limit = ATTEMPTS if options.reject else 20 * options.population + 1000
        while len(children) < options.population and attempts < limit:
            attempts, since = attempts + 1, since + 1
            genes: np.ndarray | None = self.space.uniform(self.rng, options.low, options.high)
            if not options.reject and genes is not None:
                genes = self.space.moved(genes, self.rng, options.low, options.high)
            if genes is not None and self._take(genes, children, since):
                since = 0
        if not children and not self.judged:
            instead = "or leave reject out" if options.reject else "or a larger budget"
            raise UserError(
                f"none of {attempts} random structures is inside the budgets and above the "
                "window's lower end: "
                f"use a wider window, {instead}"
            )
