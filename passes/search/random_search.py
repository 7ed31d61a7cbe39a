"""EagleEye's searcher: independent random ratios, one per channel group, moved onto the budget (see `sampling`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruneopt.errors import UserError
from pruneopt.passes.base import option
from pruneopt.passes.search.sampling import WidthSampler
from pruneopt.passes.search.searcher import Asker, Searcher
from pruneopt.passes.search.space import Proposal, Space

__all__ = ["RandomSearch"]


@dataclass(frozen=True)
class RandomSearch(Searcher):
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

    def open(self, space: Space, seed: int) -> Asker:
        sampler = WidthSampler(
            space.coupling,
            space.cost,
            space.budgets,
            space.scores,
            max_ratio=self.max_ratio,
            min_ratio=self.min_ratio,
            round_to=space.round_to,
            minimum=space.minimum,
            floor=self.floor,
            rejection=self.reject,
            seed=seed,
        )
        return _Drawing(sampler, self.candidates)


class _Drawing(Asker):
    """Candidates 0, 1, 2, ... of a sampler."""

    def __init__(self, sampler: WidthSampler, candidates: int) -> None:
        self.sampler, self.candidates, self.asked = sampler, candidates, 0

    def ask(self) -> Proposal | None:
        if self.asked == self.candidates:
            return None
        draw = self.sampler.draw(self.asked)
        self.asked += 1
        return Proposal(draw.widths, None, draw.attempts)

    def tell(self, proposal: Proposal, fitness: float) -> None:
        """Nothing is learnt."""

    def describe(self) -> str:
        return self.sampler.describe()

    @property
    def total(self) -> int:
        return self.candidates
