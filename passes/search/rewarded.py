"""Rewarded Meta-Pruning (arXiv 2301.11063): MetaPruning whose structures are ranked by a reward.

The reward, a product of an accuracy and a FLOPs coefficient, acts in the search and nowhere else:
no loss and no gradient depends on it (`pruneopt.passes.search.rankings.ranking.Reward`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruneopt.passes.options.configured import option
from pruneopt.passes.search.metapruning import MetaPruning
from pruneopt.passes.search.rankings.ranking import Ranking, Reward

__all__ = ["Rewarded"]


@dataclass(frozen=True)
class Rewarded(MetaPruning):
    """MetaPruning ranked by accuracy and FLOPs in one number."""

    name: ClassVar[str] = "rewarded"
    summary: ClassVar[str] = (
        "MetaPruning ranked by a reward for accuracy and FLOPs (Rewarded Meta-Pruning)"
    )

    ranking: Ranking = option(Reward(), "how judged structures are compared")
