"""How candidates of a search are compared: by score alone, or by score and cost.

The reward of Rewarded Meta-Pruning (arXiv 2301.11063; as its code has it) acts here and nowhere
else: no loss and no gradient depends on it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.options.configured import Part, option

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = [
    "Accuracy",
    "AccuracyUnderLatency",
    "Measured",
    "Ranking",
    "Reward",
    "comparable",
    "reward",
]


BEHIND = -1e6
"""Below every score: metrics are mostly shares, but some are losses with a minus."""


def comparable(fitness: float) -> float:
    """Return a fitness for sorting: NaN, from a loss that diverged, is worse than every number."""
    return -math.inf if math.isnan(fitness) else fitness


@dataclass(frozen=True)
class Measured:
    """One judged structure: the mean metric on the sub-validation images (accuracy: 0 to 1), and
    what it costs."""

    score: float
    widths: np.ndarray
    model: CostModel

    def cost(self, unit: str) -> float:
        """Return the cost in ``flops``, ``params``, ``bytes``, ``memory`` or ``latency``
        (nanoseconds), as `CostModel.measure` has it."""
        return float(self.model.measure(unit, self.widths))

    def full(self, unit: str) -> float:
        """Return the same of the original network."""
        return float(self.model.measure(unit, self.model.full))


@dataclass(frozen=True)
class Ranking(Part):
    """Gives every judged structure a fitness; larger is better."""

    kind: ClassVar[str] = "ranking"

    @abstractmethod
    def fitness(self, measured: Measured) -> float:
        """Return how good a structure is.

        Raises:
            UserError: numbers for which the ranking has no meaning.
        """

    def check(self, cost: CostModel, budgets: list[Budget]) -> None:
        """Raise `UserError` before the search where the ranking cannot tell structures inside the
        budgets apart."""

    def source(self) -> str:
        """Return what fitness depends on besides the options, such as a hash of the user's code:
        part of what a search is."""
        return ""


@dataclass(frozen=True)
class Accuracy(Ranking):
    """The score itself."""

    name: ClassVar[str] = "accuracy"
    summary: ClassVar[str] = "the score on held-out images alone"

    def fitness(self, measured: Measured) -> float:
        return measured.score


def reward(
    accuracy: float, flops: float, accuracy_base: float, flops_base: float, exponent: float = 2.0
) -> float:
    """Return ``(A_base / (A_base - A))^exponent * -ln(F / F_base)``; accuracies in percent, FLOPs
    in any one unit.

    Raises:
        UserError: an accuracy at the pole or beyond it, where a better network would be ranked as a
            worse one.
    """
    if accuracy >= accuracy_base:
        raise UserError(
            f"a candidate reaches {accuracy:.2f} %, not below accuracy-base={accuracy_base:g}, "
            "where the reward has a "
            "pole: give a larger accuracy-base, well above what candidates reach in the search"
        )
    return float(
        (accuracy_base / (accuracy_base - accuracy)) ** exponent * -math.log(flops / flops_base)
    )


@dataclass(frozen=True)
class Reward(Ranking):
    """Rewarded Meta-Pruning's reward, the variant that its published networks were found with."""

    name: ClassVar[str] = "reward"
    summary: ClassVar[str] = "accuracy and FLOPs in one number (Rewarded Meta-Pruning)"

    accuracy_base: float = option(
        101.0, "A_base, in percent: above every candidate's accuracy (published: 70.6)"
    )
    flops_base: float | None = option(
        None, "F_base, in MFLOPs: above every candidate's (the original's)"
    )
    exponent: float = option(2.0, "of the accuracy coefficient")

    def __post_init__(self) -> None:
        super().__post_init__()
        bases = (
            self.accuracy_base,
            self.exponent,
            1.0 if self.flops_base is None else self.flops_base,
        )
        if not all(base > 0 for base in bases):
            raise UserError("accuracy-base, flops-base and exponent must be above 0")

    def fitness(self, measured: Measured) -> float:
        base = self._base(measured.full("flops"))
        return reward(
            100 * measured.score, measured.cost("flops"), self.accuracy_base, base, self.exponent
        )

    def check(self, cost: CostModel, budgets: list[Budget]) -> None:
        full = float(cost.measure("flops", cost.full))
        limit = min(
            (budget.limit(cost) for budget in budgets if budget.unit == "flops"), default=full
        )
        base = self._base(full)
        # Whatever is pruned costs less than the original, but may cost all that the budget allows.
        if base < full and base <= limit:
            raise UserError(
                f"flops-base={base / 1e6:.4g} (MFLOPs) is not above what candidates may cost "
                f"({min(limit, full) / 1e6:.4g} MFLOPs): there the reward is 0 or less whatever "
                "the accuracy; give a "
                "larger one"
            )

    def _base(self, full: float) -> float:
        """Return F_base in FLOPs, for an original of so many."""
        return full if self.flops_base is None else self.flops_base * 1e6


@dataclass(frozen=True)
class AccuracyUnderLatency(Ranking):
    """The score of structures within a latency; slower ones come behind all of them, the slowest
    last."""

    name: ClassVar[str] = "accuracy-under-latency"
    summary: ClassVar[str] = "the score of structures within a latency; slower ones come last"

    limit: float = option(0.0, "milliseconds, by the latency table of the cost pass")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.limit > 0:
            raise UserError("give the limit in milliseconds, such as limit=4")

    def fitness(self, measured: Measured) -> float:
        milliseconds = measured.cost("latency") / 1e6
        return measured.score if milliseconds <= self.limit else BEHIND * milliseconds / self.limit

    def check(self, cost: CostModel, budgets: list[Budget]) -> None:
        cost.measure("latency", cost.full)
