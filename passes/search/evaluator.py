"""What an evaluator is: it gives a proposed structure a score on data; and those that cut the trained weights.

``abn`` recomputes the batch-norm statistics of the cut network (EagleEye), ``stale`` scores it as it is, ``finetune``
trains it for a short while first. ``reference`` is ``abn`` without any short cut: the network as it would be delivered.
Each network is cut from the one copy of the trained weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import nn

from pruneopt.errors import UserError
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.base import Part, Pass, State, option
from pruneopt.passes.evaluation.evaluate import Evaluation, Score
from pruneopt.passes.evaluation.settings import PLAIN, Plain, Settings, Signal, averaging_of
from pruneopt.passes.search.adaptive_bn import Recalibrate
from pruneopt.passes.search.cut_networks import CutNetworks
from pruneopt.passes.search.ranking import Accuracy, Ranking
from pruneopt.passes.search.space import Proposal, Space
from pruneopt.passes.transform.select import keep_best

__all__ = [
    "AdaptiveStatistics",
    "Evaluator",
    "Judge",
    "Judged",
    "ReferenceStatistics",
    "ShortTraining",
    "StaleStatistics",
    "Trial",
]


@dataclass(frozen=True)
class Trial:
    """What an evaluator may look at: the state of the run, the space of the search, and the seed.

    ``keep``: how many of the best structures matter to the search.
    """

    state: State
    space: Space
    seed: int
    keep: int = 1


@dataclass(frozen=True, slots=True)
class Judged:
    """How a structure did.

    Attributes:
        score: the mean metric.
        stale: the score before batch-norm statistics were recomputed, where that was asked for.
        signal: what structures are compared by, where that is not the score.
        images, batches: how much was looked at, where not everything was.
        trace: what a continued search gives back to `Judge.recall`.
    """

    score: float
    stale: float | None = None
    signal: float | None = None
    images: int | None = None
    batches: int | None = None
    trace: str | None = None


class Judge(ABC):
    """Scores structures, one at a time; the same structures in the same order always get the same scores."""

    @abstractmethod
    def judge(self, proposal: Proposal) -> Judged:
        """The mean metric of a structure on the sub-validation images."""

    @abstractmethod
    def describe(self) -> str:
        """How structures are judged, in a few words."""

    def recall(self, trace: str) -> None:  # noqa: B027  most have nothing to learn
        """Learn of a structure that was judged before the search was continued."""


@dataclass(frozen=True)
class Evaluator(Part):
    """A way to judge structures."""

    kind: ClassVar[str] = "evaluator"

    @abstractmethod
    def open(self, trial: Trial) -> Judge:
        """Get ready to judge; this may train something first.

        Raises:
            UserError: options that do not fit the network or the data.
        """

    def check(self, ranking: Ranking) -> None:
        """Refuse a ranking that cannot compare what this evaluator gives, with `UserError`."""

    def settings(self, seed: int, device: str) -> Settings:
        """How cut networks are scored, for those that look at them again."""
        return Settings(seed=seed, device=device)

    def after(self, seed: int | None) -> list[Pass]:
        """The passes that give the delivered network what the judged ones had (fresh statistics).

        ``seed``: the search's own, where it has one.
        """
        return []


@dataclass(frozen=True)
class CutWeights(Evaluator):
    """Judges networks cut from the trained weights."""

    subval_limit: int | None = option(None, "score on this many sub-validation images (all)")
    batch_size: int = option(128, "images in a batch, of calibration and fine-tuning")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise UserError(f"batch-size={self.batch_size} must be at least 2")
        if self.subval_limit is not None and self.subval_limit < 1:
            raise UserError(f"subval-limit={self.subval_limit} must be at least 1")

    def settings(self, seed: int, device: str) -> Settings:
        return Settings(batch_size=self.batch_size, subval_limit=self.subval_limit, seed=seed, device=device)

    def networks(self, trial: Trial) -> CutNetworks:
        """What makes and scores the cut networks as modules."""
        state = trial.state
        settings = self.settings(trial.seed, state.device)
        return CutNetworks(state.graph, trial.space.coupling, state.need_workload(self.name), settings, state.masks)

    def evaluation(self, trial: Trial) -> Evaluation:
        """What scores them without making modules."""
        state = trial.state
        settings = replace(self.settings(trial.seed, state.device), keep=trial.keep)
        return Evaluation(state.graph, trial.space.coupling, state.need_workload(self.name), settings)


@dataclass(frozen=True)
class StaleStatistics(CutWeights):
    """Scores the network as it was cut (the vanilla evaluation of EagleEye's comparison)."""

    name: ClassVar[str] = "stale"
    summary: ClassVar[str] = "the cut network as it is, with the statistics of the original"

    def open(self, trial: Trial) -> Judge:
        return _Stale(trial, self.evaluation(trial))


@dataclass(frozen=True)
class FreshStatistics(CutWeights):
    """Those that recompute batch-norm statistics."""

    calibration_batches: int = option(30, "batches for the batch-norm statistics")
    momentum: float | None = option(None, "of the moving average; none takes the mean over batches")
    reset: bool = option(True, "forget the old statistics first")
    whole: bool = option(False, "the complete network in training mode for the statistics: dropout drops")
    augment: bool = option(False, "read calibration and sub-validation images as in training, as EagleEye's code does")
    stale: bool = option(False, "also score every candidate before its statistics are recomputed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_batches < 1:
            raise UserError(f"calibration-batches={self.calibration_batches} must be at least 1")

    @property
    def averaging(self) -> Averaging:
        """How batches are averaged."""
        return averaging_of("mean", self.momentum, self.reset)

    def settings(self, seed: int, device: str) -> Settings:
        return replace(
            super().settings(seed, device),
            batches=self.calibration_batches,
            averaging=self.averaging,
            whole=self.whole,
            augment=self.augment,
        )

    def fresh(self, seed: int | None) -> list[Recalibrate]:
        """The pass that recomputes the statistics of the delivered network."""
        return [
            Recalibrate(
                batches=self.calibration_batches,
                batch_size=self.batch_size,
                momentum=self.momentum,
                reset=self.reset,
                whole=self.whole,
                augment=self.augment,
                seed=seed,
            )
        ]

    def after(self, seed: int | None) -> list[Pass]:
        return [*self.fresh(seed)]


@dataclass(frozen=True)
class AdaptiveStatistics(FreshStatistics):
    """Scores the cut network with fresh batch-norm statistics (EagleEye, FNNP)."""

    name: ClassVar[str] = "abn"
    summary: ClassVar[str] = "the cut network with fresh batch-norm statistics (EagleEye, FNNP)"

    statistics: Plain = option("mean", PLAIN)  # noqa: RUF009  as dataclasses.field
    signal: Signal = option(  # noqa: RUF009
        "metric", "what is compared: the metric, the likelihood of the targets, or agreement with the original network"
    )
    race: int | None = option(None, "give up what is clearly worse after this many images, 512 say (look at all)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.race is not None and self.race < 2:
            raise UserError(f"race={self.race} must be at least 2 images")
        averaging_of(self.statistics, self.momentum, self.reset)

    @property
    def averaging(self) -> Averaging:
        return averaging_of(self.statistics, self.momentum, self.reset)

    def settings(self, seed: int, device: str) -> Settings:
        return replace(super().settings(seed, device), signal=self.signal, race=self.race)

    def check(self, ranking: Ranking) -> None:
        if self.signal != "metric" and not isinstance(ranking, Accuracy):
            raise UserError(f"signal={self.signal} is no accuracy, which ranking={ranking.name} asks for: use metric")

    def open(self, trial: Trial) -> Judge:
        return _Adaptive(trial, self.evaluation(trial), self.stale)

    def after(self, seed: int | None) -> list[Pass]:
        return [replace(item, statistics=self.statistics) for item in self.fresh(seed)]


@dataclass(frozen=True)
class ReferenceStatistics(FreshStatistics):
    """What `AdaptiveStatistics` computes, by the module that would be delivered and PyTorch's own batch norm."""

    name: ClassVar[str] = "reference"
    summary: ClassVar[str] = "as abn, without short cuts: the module itself, batch norms not folded"

    def open(self, trial: Trial) -> Judge:
        return _Reference(trial, self.networks(trial), self.stale)


@dataclass(frozen=True)
class ShortTraining(ReferenceStatistics):
    """Scores the cut network after fresh statistics and a short fine-tuning: slow, and closest to the truth."""

    name: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "the cut network after fresh statistics and a short fine-tuning"

    epochs: int = option(1, "of fine-tuning, for every candidate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise UserError(f"epochs={self.epochs} must be at least 1: without any, use the evaluator abn")

    def open(self, trial: Trial) -> Judge:
        return _Tuned(trial, self.networks(trial), self.stale, self.epochs)


class _Proposed(Judge):
    """Turns proposals into plans."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def judge(self, proposal: Proposal) -> Judged:
        space = self.trial.space
        return self.judged(keep_best(proposal.widths, space.scores, space.coupling, space.cost))

    @abstractmethod
    def judged(self, plan: Mapping[str, np.ndarray]) -> Judged:
        """How a plan does."""


class _Stale(_Proposed):
    def __init__(self, trial: Trial, evaluation: Evaluation) -> None:
        super().__init__(trial)
        self.evaluation = evaluation

    def judged(self, plan: Mapping[str, np.ndarray]) -> Judged:
        return Judged(self.evaluation.stale(plan).metric)

    def describe(self) -> str:
        return "stale statistics"


class _Adaptive(_Stale):
    def __init__(self, trial: Trial, evaluation: Evaluation, stale: bool) -> None:
        super().__init__(trial, evaluation)
        self.stale = stale

    def judged(self, plan: Mapping[str, np.ndarray]) -> Judged:
        before = self.evaluation.stale(plan).metric if self.stale else None
        (score,) = self.evaluation.evaluate([plan])
        return _told(score, before, self.evaluation.settings)

    def describe(self) -> str:
        return self.evaluation.describe()

    def recall(self, trace: str) -> None:
        self.evaluation.recall(trace)


def _told(score: Score, stale: float | None, settings: Settings) -> Judged:
    """A score as a search keeps it."""
    other = settings.signal != "metric"
    partly = settings.race is not None
    return Judged(
        score.metric if other else score.value,
        stale,
        score.value if other else None,
        score.images if partly else None,
        score.batches if partly else None,
        score.trace,
    )


class _Reference(_Proposed):
    def __init__(self, trial: Trial, networks: CutNetworks, stale: bool) -> None:
        super().__init__(trial)
        self.networks, self.stale = networks, stale

    def judged(self, plan: Mapping[str, np.ndarray]) -> Judged:
        module = self.networks.network(plan)
        before = self.networks.score(module) if self.stale else None
        self.networks.recalibrate(module, plan)
        self.prepare(module, plan)
        return Judged(self.networks.score(module), before)

    def prepare(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> None:
        """What happens to a network before it is scored."""

    def describe(self) -> str:
        settings = self.networks.settings
        return f"{settings.averaging}, n={settings.batches}, module by module"


class _Tuned(_Reference):
    def __init__(self, trial: Trial, networks: CutNetworks, stale: bool, epochs: int) -> None:
        super().__init__(trial, networks, stale)
        self.epochs = epochs

    def prepare(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> None:
        self.networks.tune(module, plan, self.epochs)

    def describe(self) -> str:
        settings = self.networks.settings
        return f"{settings.averaging}, n={settings.batches}, then {self.epochs} epochs of fine-tuning"
