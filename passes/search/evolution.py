"""The evolutionary search of MetaPruning (Liu et al., ICCV 2019), operator for operator.

Every generation the candidates are judged; the best 50 of all so far are kept, and the best 10 of these are parents.
The next candidates are 25 mutations (a gene changes with probability 0.1, always to another value), 25 crossovers (each
gene from one of two parents) and random structures for the rest. What was judged before, is in the generation already
or breaks a constraint is drawn again. Genes are those of the space, so that tied widths change together.

Where the published search rejects random vectors until one fits the FLOPs, a random vector is moved into the budget
here (`Space.moved`); ``reject`` brings rejection back, and ``low`` and ``high`` the range that ResNet-50 is drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.base import option
from pruneopt.passes.search.searcher import Asker, Searcher
from pruneopt.passes.search.space import Proposal, Space

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
    mutations: int = option(25, "children by mutation in a generation, at most")
    crossovers: int = option(25, "children by crossover in a generation, at most")
    probability: float = option(0.1, "that a gene mutates")
    reject: bool = option(False, "draw random structures until one fits, as published, instead of moving them")
    low: int = option(0, "the smallest grid index of a random structure (ResNet-50 was searched with 12)")
    high: int | None = option(None, "the largest grid index of a random structure (ResNet-50: 23); none takes the last")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("population", "iterations", "parents"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")
        if min(self.mutations, self.crossovers) < 0:
            raise UserError("mutations and crossovers must not be negative")
        if not 0 < self.probability <= 1:
            raise UserError(f"probability={self.probability:g} must be above 0 and at most 1")
        if self.low < 0 or (self.high is not None and self.high < self.low):
            raise UserError(f"random structures from grid index {self.low} to {self.high} are no range")

    def open(self, space: Space, seed: int) -> Evolving:
        if max(self.low, self.high or 0) >= len(space.grid):
            raise UserError(f"low and high are indices into a grid of {len(space.grid)} scales, from 0")
        return Evolving(self, space, seed)


class Evolving(Asker):
    """An evolution under way. ``judged`` holds every index vector with its fitness, in the order of judging."""

    def __init__(self, options: Evolution, space: Space, seed: int) -> None:
        self.options, self.space = options, space
        self.rng = np.random.default_rng([seed, 1])
        self.judged: dict[tuple[int, ...], float] = {}
        self.archive: list[tuple[int, ...]] = []
        """The best structures so far, the best first, as many as a population."""
        self.generation = 0
        self._queue: list[tuple[tuple[int, ...], int]] = []
        self._asked: tuple[int, ...] | None = None
        self._current: list[tuple[int, ...]] = []

    def ask(self) -> Proposal | None:
        if not self._queue and self.generation < self.options.iterations:
            self._breed()
        if not self._queue:
            return None
        self._asked, attempts = self._queue.pop(0)
        return self.space.proposal(np.array(self._asked), attempts)

    def tell(self, proposal: Proposal, fitness: float) -> None:
        assert self._asked is not None
        self.judged[self._asked] = fitness

    def describe(self) -> str:
        options = self.options
        return (
            f"evolution, {options.iterations} generations of {options.population}, {len(self.space.genes)} genes of "
            f"{len(self.space.grid)} scales"
        )

    @property
    def total(self) -> int:
        return self.options.population * self.options.iterations

    # Generations

    def _breed(self) -> None:
        """Make the next generation of the answers to the last; none, where the space is exhausted."""
        self._keep_best()
        children: dict[tuple[int, ...], int] = {}
        if self.archive:
            self._mutate(children)
            self._cross(children)
        self._fill(children)
        self._current = list(children)
        self._queue = list(children.items())
        self.generation = self.generation + 1 if children else self.options.iterations

    def _keep_best(self) -> None:
        pool = list(dict.fromkeys([*self.archive, *self._current]))
        # Equal ones keep their order: the older first.
        self.archive = sorted(pool, key=lambda genes: -self.judged[genes])[: self.options.population]

    @property
    def parents(self) -> list[tuple[int, ...]]:
        """The best structures so far, from which children are made."""
        return self.archive[: self.options.parents]

    def _accepts(self, genes: np.ndarray, children: dict[tuple[int, ...], int]) -> bool:
        """Whether a child is new and inside the constraints."""
        key = tuple(genes.tolist())
        if key in self.judged or key in children:
            return False
        return bool(self.space.feasible(self.space.widths_of(genes)[None])[0])

    def _mutate(self, children: dict[tuple[int, ...], int]) -> None:
        """Up to ten rounds of as many draws as there are to be children."""
        wanted, made = self.options.mutations, 0
        parents, scales = self.parents, len(self.space.grid)
        for _ in range(10 * wanted):
            if made == wanted or len(children) == self.options.population:
                return
            child = np.array(parents[self.rng.integers(len(parents))])
            changes = self.rng.random(len(child)) < self.options.probability
            if scales > 1:
                child[changes] = (child[changes] + self.rng.integers(1, scales, int(changes.sum()))) % scales
            if self._accepts(child, children):
                children[tuple(child.tolist())] = 1
                made += 1

    def _cross(self, children: dict[tuple[int, ...], int]) -> None:
        """Up to ten attempts for every child: two different parents, each gene from either."""
        wanted, made = self.options.crossovers, 0
        parents = self.parents
        if len(parents) < 2:
            return
        for _ in range(10 * wanted):
            if made == wanted or len(children) == self.options.population:
                return
            first, second = self.rng.choice(len(parents), 2, replace=False)
            from_first = self.rng.random(len(self.space.genes)) < 0.5
            child = np.where(from_first, parents[first], parents[second])
            if self._accepts(child, children):
                children[tuple(child.tolist())] = 1
                made += 1

    def _fill(self, children: dict[tuple[int, ...], int]) -> None:
        """Random structures until the generation is full.

        Raises:
            UserError: not a single structure fits.
        """
        attempts = since = 0
        # Moving finds a structure every time unless nearly all are known already.
        limit = ATTEMPTS if self.options.reject else 20 * self.options.population + 1000
        while len(children) < self.options.population and attempts < limit:
            attempts, since = attempts + 1, since + 1
            genes: np.ndarray | None = self.space.uniform(self.rng, self.options.low, self.options.high)
            if not self.options.reject and genes is not None:
                genes = self.space.moved(genes, self.rng)
            if genes is not None and self._accepts(genes, children):
                children[tuple(genes.tolist())], since = since, 0
        if not children and not self.judged:
            raise UserError(
                f"none of {attempts} random structures is inside the budgets and above the window's lower end: "
                "use a wider window, or leave reject out"
            )
