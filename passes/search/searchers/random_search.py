"""EagleEye's searcher: independent random ratios, one per channel group, moved onto the budget (see
`sampling`).

Where widths are tied, or some stay whole, ratios are those of the space's genes instead: random
entries of its grid in the same range, moved into the budgets (`Space.moved`). That is MetaPruning's
random search, the baseline of evolution.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.options.configured import option
from pruneopt.passes.search.searchers.explorer import RandomDraws
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.sampling import ATTEMPTS, WidthSampler
from pruneopt.passes.search.searchers.searcher import AskTell, FrontSearcher, Searcher
from pruneopt.passes.search.searchers.space import Proposal, Space

__all__ = ["RandomSearch"]

REDRAWS = 1000
"""Vectors moved for one candidate, before the window's lower end counts as out of reach."""


@dataclass(frozen=True)
class RandomSearch(Searcher, FrontSearcher):
    """Independent random ratios; what was judged before has no influence."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "independent random ratios on the budget (EagleEye)"

    candidates: int = option(100, "plans to score")
    max_ratio: float = option(0.7, "the largest share of channels a group loses")
    min_ratio: float = option(0.0, "the smallest share of channels a group loses")
    floor: bool = option(False, "EagleEye's count of what stays, without filling up the budget")
    reject: bool = option(False, "EagleEye's sampling: draw until the share of FLOPs fits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise UserError(f"candidates={self.candidates} must be at least 1")

    def open(self, space: Space, seed: int) -> AskTell:
        if not space.untied:
            return _OnGrid(self, space, seed)
        sampler = WidthSampler(
            space.coupling,
            space.cost,
            space.budgets,
            space.scores,
            max_ratio=self.max_ratio,
            min_ratio=self.min_ratio,
            round_to=space.round_to,
            minimum=space.minimum,
            bounds=space.bounds,
            tied=space.tied,
            floor=self.floor,
            rejection=self.reject,
            seed=seed,
        )
        return _Drawing(sampler, space, self.candidates)

    def explore(self, reach: Reach, population: int, seed: int) -> RandomDraws:
        if self != type(self)():
            raise UserError(
                "random takes no options on a front: the range spreads its structures, and the "
                "search itself says how many"
            )
        return RandomDraws(reach, population, seed)


class _Random(AskTell):
    """Counts candidates; nothing is learnt."""

    def __init__(self, candidates: int) -> None:
        self.candidates, self.asked = candidates, 0

    def ask(self) -> Proposal | None:
        if self.asked == self.candidates:
            return None
        self.asked += 1
        return self.next()

    @abstractmethod
    def next(self) -> Proposal:
        """Return the next random structure."""

    def tell(self, proposal: Proposal, fitness: float) -> None:
        """Ignore the answer: nothing is learnt."""

    @property
    def ready(self) -> int:
        return self.candidates - self.asked

    @property
    def total(self) -> int:
        return self.candidates


class _Drawing(_Random):
    """Draws 0, 1, 2, ... of a sampler, but for those below the space's window."""

    def __init__(self, sampler: WidthSampler, space: Space, candidates: int) -> None:
        super().__init__(candidates)
        self.sampler, self.space, self.drawn = sampler, space, 0

    def next(self) -> Proposal:
        attempts = 0
        for _ in range(REDRAWS):
            draw = self.sampler.draw(self.drawn)
            self.drawn += 1
            attempts += draw.attempts
            if self.space.feasible(draw.widths[None])[0]:
                return Proposal(draw.widths, None, attempts)
        raise _none_fits(REDRAWS)

    def describe(self) -> str:
        return self.sampler.describe()


class _OnGrid(_Random):
    """Random entries of the grid, one per gene. Candidate i depends on the seed and i alone."""

    def __init__(self, options: RandomSearch, space: Space, seed: int) -> None:
        super().__init__(options.candidates)
        if options.floor:
            raise UserError(
                "floor counts the units of groups one by one, but widths are tied here: leave it "
                "out"
            )
        self.options, self.space, self.seed = options, space, seed
        kept = space.grid / 100
        # A difference such as 1 - 0.7 must not miss the entry that it stands for.
        places = np.flatnonzero(
            (kept >= 1 - options.max_ratio - 1e-9) & (kept <= 1 - options.min_ratio + 1e-9)
        )
        if not len(places):
            raise UserError(
                f"no scale of the grid ({space.grid[0]} to 100 %) removes {options.min_ratio:g} to "
                f"{options.max_ratio:g} of a width: give another min-ratio and max-ratio"
            )
        self.low, self.high = int(places[0]), int(places[-1])
        space.check_range(
            self.low,
            self.high,
            f"max-ratio={options.max_ratio:g}",
            f"min-ratio={options.min_ratio:g}",
        )

    def next(self) -> Proposal:
        rng = np.random.default_rng([self.seed, self.asked, 3])
        limit = ATTEMPTS if self.options.reject else REDRAWS
        for attempt in range(1, limit + 1):
            genes: np.ndarray | None = self.space.uniform(rng, self.low, self.high)
            if genes is not None and not self.options.reject:
                genes = self.space.moved(genes, rng, self.low, self.high)
            if genes is not None and self.space.feasible(self.space.widths_of(genes)[None])[0]:
                return self.space.proposal(genes, attempt)
        raise _none_fits(limit)

    def describe(self) -> str:
        how = "kept if they fit" if self.options.reject else "moved into the budget"
        scales = f"{self.space.grid[self.low]} to {self.space.grid[self.high]} %"
        return f"{len(self.space.genes)} random scales from {scales}, {how}"


def _none_fits(attempts: int) -> UserError:
    return UserError(
        f"none of {attempts} random structures is inside the budgets and above the window's lower "
        "end: use a wider "
        "window, another range of ratios, or leave reject out"
    )
