"""Scorers: they turn proposed structures into plans and say how these do.

`StaleScorer` and `AdaptiveScorer` ask an `Evaluation`, `ReferenceScorer` and `TunedScorer` make
modules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from pruneopt.passes.evaluation.evaluate import Evaluation, Score
from pruneopt.passes.evaluation.settings import EvaluationSettings
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.search.searchers.space import Proposal, Space
from pruneopt.passes.selection.select import keep_best

__all__ = [
    "AdaptiveScorer",
    "ReferenceScorer",
    "Scorer",
    "ScoringContext",
    "StaleScorer",
    "StructureScore",
    "TunedScorer",
]


@dataclass(frozen=True)
class ScoringContext:
    """The inputs of an evaluator: the state of the run, the space of the search, and the seed.

    ``keep``: how many of the best structures matter to the search.
    """

    state: State
    space: Space
    seed: int
    keep: int = 1


@dataclass(frozen=True, slots=True)
class StructureScore:
    """The score of a structure, with what else a search keeps of it.

    Attributes:
        score: the mean metric.
        stale: the score before batch-norm statistics were recomputed, where that was asked for.
        signal: what structures are compared by, where that is not the score.
        images, batches: how much was looked at, where not everything was.
        trace: what a continued search gives back to `Scorer.recall`.
    """

    score: float
    stale: float | None = None
    signal: float | None = None
    images: int | None = None
    batches: int | None = None
    trace: str | None = None


class Scorer(ABC):
    """Scores structures; the same structures in the same order always get the same scores."""

    @abstractmethod
    def score(self, proposal: Proposal) -> StructureScore:
        """Return the mean metric of a structure on the sub-validation images."""

    def score_all(self, proposals: Sequence[Proposal]) -> list[StructureScore]:
        """Return the same for structures that may be judged side by side; `recall` is told about
        them afterwards."""
        return [self.score(proposal) for proposal in proposals]

    @abstractmethod
    def describe(self) -> str:
        """Return how structures are judged, in a few words."""

    def recall(self, trace: str) -> None:  # noqa: B027  most have nothing to learn
        """Learn of a structure that was judged, now or before the search was continued."""


class _PlanScorer(Scorer):
    """Turns proposals into plans."""

    def __init__(self, context: ScoringContext) -> None:
        self.context = context

    def score(self, proposal: Proposal) -> StructureScore:
        return self.score_plan(self.plan(proposal))

    def plan(self, proposal: Proposal) -> dict[str, np.ndarray]:
        """Return the units that a structure keeps."""
        space = self.context.space
        return keep_best(proposal.widths, space.scores, space.coupling, space.cost)

    @abstractmethod
    def score_plan(self, plan: Mapping[str, np.ndarray]) -> StructureScore:
        """Return how a plan does."""


class StaleScorer(_PlanScorer):
    """Scores the network as it was cut."""

    def __init__(self, context: ScoringContext, evaluation: Evaluation) -> None:
        super().__init__(context)
        self.evaluation = evaluation

    def score_plan(self, plan: Mapping[str, np.ndarray]) -> StructureScore:
        return StructureScore(self.evaluation.stale(plan).metric)

    def describe(self) -> str:
        return "stale statistics"


class AdaptiveScorer(StaleScorer):
    """Scores it with fresh batch-norm statistics; ``stale`` asks for the score before as well."""

    def __init__(self, context: ScoringContext, evaluation: Evaluation, stale: bool) -> None:
        super().__init__(context, evaluation)
        self.stale = stale

    def score_plan(self, plan: Mapping[str, np.ndarray]) -> StructureScore:
        (score,) = self.evaluation.evaluate([plan])
        return self._told(plan, score)

    def score_all(self, proposals: Sequence[Proposal]) -> list[StructureScore]:
        plans = [self.plan(proposal) for proposal in proposals]
        return [
            self._told(*pair) for pair in zip(plans, self.evaluation.together(plans), strict=True)
        ]

    def _told(self, plan: Mapping[str, np.ndarray], score: Score) -> StructureScore:
        before = self.evaluation.stale(plan).metric if self.stale else None
        return _told(score, before, self.evaluation.settings)

    def describe(self) -> str:
        return self.evaluation.describe()

    def recall(self, trace: str) -> None:
        self.evaluation.recall(trace)


def _told(score: Score, stale: float | None, settings: EvaluationSettings) -> StructureScore:
    """Return a score as a search keeps it."""
    other = settings.signal != "metric"
    partly = settings.race is not None
    return StructureScore(
        score.metric if other else score.value,
        stale,
        score.value if other else None,
        score.images if partly else None,
        score.batches if partly else None,
        score.trace,
    )


class ReferenceScorer(_PlanScorer):
    """The same, by the module that would be delivered."""

    def __init__(self, context: ScoringContext, networks: CutNetworks, stale: bool) -> None:
        super().__init__(context)
        self.networks, self.stale = networks, stale

    def score_plan(self, plan: Mapping[str, np.ndarray]) -> StructureScore:
        module = self.networks.network(plan)
        before = self.networks.score(module) if self.stale else None
        self.networks.recalibrate(module, plan)
        self.prepare(module, plan)
        return StructureScore(self.networks.score(module), before)

    def prepare(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> None:
        """Change a network before it is scored."""

    def describe(self) -> str:
        settings = self.networks.settings
        return f"{settings.averaging}, n={settings.batches}, module by module"


class TunedScorer(ReferenceScorer):
    """Scores it after a short fine-tuning, too."""

    def __init__(
        self, context: ScoringContext, networks: CutNetworks, stale: bool, epochs: int
    ) -> None:
        super().__init__(context, networks, stale)
        self.epochs = epochs

    def prepare(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> None:
        self.networks.tune(module, plan, self.epochs)

    def describe(self) -> str:
        settings = self.networks.settings
        return (
            f"{settings.averaging}, n={settings.batches}, then {self.epochs} epochs of fine-tuning"
        )
