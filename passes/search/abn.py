"""The search of EagleEye and FNNP: many random plans, scored after adaptive batch norm; the best
few are fine-tuned.

EagleEye (Li et al., ECCV 2020) and its preprint FNNP. A candidate is a random ratio per channel
group, moved onto the budget (`WidthSampler`); the units with the smallest L1 norm go. The cut
network gets fresh batch-norm statistics and is scored on images held out of the training set. The
best are fine-tuned for a short while, and the best of those is the plan. See docs/abn.md for what
differs from the published code, and for the switches that bring it back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pruneopt.errors import UserError
from pruneopt.passes.options.configured import option
from pruneopt.passes.search.evaluators.evaluator import Evaluator, FreshStatistics
from pruneopt.passes.search.search_loop import Searched
from pruneopt.passes.search.searchers.random_search import RandomSearch
from pruneopt.passes.search.searchers.searcher import Searcher
from pruneopt.passes.selection.prune import check_leader
from pruneopt.passes.transform.recalibrate import PAPER

__all__ = ["AdaptiveBN"]

Switch = Literal["leader", "floor", "momentum", "sampling", "augment"]


@dataclass(frozen=True)
class AdaptiveBN(Searched):
    """Search by random plans and adaptive batch norm (EagleEye, FNNP)."""

    name: ClassVar[str] = "abn"
    summary: ClassVar[str] = (
        "random plans on the budget, scored after adaptive batch norm (EagleEye, FNNP)"
    )

    finetune_epochs: int = option(1, "epochs to decide between the best; 0 takes the best score")
    compat: tuple[Switch, ...] = option(
        (), "as the published code does it: leader, floor, momentum, sampling, augment"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_leader(self.leader(), self.criterion, "compat=leader")
        if {"floor", "sampling"} & set(self.compat) and not isinstance(self.searcher, RandomSearch):
            raise UserError(
                "compat=floor and compat=sampling are about random plans: they need searcher=random"
            )
        if {"momentum", "augment"} & set(self.compat) and not isinstance(
            self.evaluator, FreshStatistics
        ):
            raise UserError(
                "compat=momentum and augment are about calibration: they need evaluator=abn or "
                "finetune"
            )

    def leader(self) -> bool:
        return "leader" in self.compat

    def parts(self) -> tuple[Searcher, Evaluator]:
        searcher, evaluator = self.searcher, self.evaluator
        if isinstance(searcher, RandomSearch):
            searcher = replace(
                searcher,
                floor=searcher.floor or "floor" in self.compat,
                reject=searcher.reject or "sampling" in self.compat,
            )
        if "momentum" in self.compat and isinstance(evaluator, FreshStatistics):
            evaluator = replace(evaluator, momentum=PAPER.momentum, reset=PAPER.reset)
        if "augment" in self.compat and isinstance(evaluator, FreshStatistics):
            evaluator = replace(evaluator, augment=True)
        return searcher, evaluator
