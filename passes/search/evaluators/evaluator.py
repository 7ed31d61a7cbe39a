"""Evaluators give a proposed structure a score on data; the ones here cut the trained weights.

``abn`` recomputes the batch-norm statistics of the cut network (EagleEye), ``stale`` scores it as
it is, ``finetune`` trains it for a short while first. ``reference`` is ``abn`` without any short
cut: the network as it would be delivered. Each network is cut from the one copy of the trained
weights.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from pruneopt.errors import UserError
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation.evaluate import Evaluation
from pruneopt.passes.evaluation.settings import (
    PLAIN,
    EvaluationSettings,
    Kernels,
    Plain,
    Precision,
    Signal,
    averaging_of,
)
from pruneopt.passes.options.configured import Part, option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.search.evaluators.scorer import (
    AdaptiveScorer,
    ReferenceScorer,
    Scorer,
    ScoringContext,
    StaleScorer,
    TunedScorer,
)
from pruneopt.passes.search.rankings.ranking import Accuracy, Ranking
from pruneopt.passes.transform.recalibrate import Recalibrate

__all__ = [
    "AdaptiveStatistics",
    "Evaluator",
    "ReferenceStatistics",
    "ShortTraining",
    "StaleStatistics",
]


@dataclass(frozen=True)
class Evaluator(Part):
    """A way to judge structures."""

    kind: ClassVar[str] = "evaluator"

    @abstractmethod
    def open(self, context: ScoringContext) -> Scorer:
        """Get ready to judge; this may train something first.

        Raises:
            UserError: options that do not fit the network or the data.
        """

    def check(self, ranking: Ranking) -> None:
        """Refuse a ranking that cannot compare what this evaluator gives, with `UserError`."""

    def settings(self, seed: int, device: str) -> EvaluationSettings:
        """Return how cut networks are scored, for those that look at them again."""
        return EvaluationSettings(seed=seed, device=device)

    def batch_size_at(self, index: int, keep: int, size: int) -> int:
        """Return how many structures to judge side by side, from number ``index`` on.

        ``keep``: how many of the best matter to the search; ``size``: the bytes of the network.
        """
        return 1

    @property
    def batch_independent(self) -> bool:
        """Return whether scores do not depend on who is judged side by side."""
        return True

    def finishing_passes(self, seed: int | None) -> list[Pass]:
        """Return the passes that give the delivered network what the judged ones had (fresh
        statistics).

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

    def settings(self, seed: int, device: str) -> EvaluationSettings:
        return EvaluationSettings(
            batch_size=self.batch_size, subval_limit=self.subval_limit, seed=seed, device=device
        )

    def networks(self, context: ScoringContext) -> CutNetworks:
        """Return what makes and scores the cut networks as modules."""
        state = context.state
        settings = self.settings(context.seed, state.device)
        return CutNetworks(
            state.graph,
            context.space.coupling,
            state.need_workload(self.name),
            settings,
            state.masks,
        )

    def evaluation(self, context: ScoringContext) -> Evaluation:
        """Return what scores them without making modules."""
        state = context.state
        settings = replace(self.settings(context.seed, state.device), keep=context.keep)
        return Evaluation(
            state.graph, context.space.coupling, state.need_workload(self.name), settings
        )


@dataclass(frozen=True)
class StaleStatistics(CutWeights):
    """Scores the network as it was cut (the vanilla evaluation of EagleEye's comparison)."""

    name: ClassVar[str] = "stale"
    summary: ClassVar[str] = "the cut network as it is, with the statistics of the original"

    def open(self, context: ScoringContext) -> Scorer:
        return StaleScorer(context, self.evaluation(context))


@dataclass(frozen=True)
class FreshStatistics(CutWeights):
    """The base of evaluators that recompute batch-norm statistics."""

    calibration_batches: int = option(30, "batches for the batch-norm statistics")
    momentum: float | None = option(None, "of the moving average; none takes the mean over batches")
    reset: bool = option(True, "forget the old statistics first")
    whole: bool = option(
        False, "the complete network in training mode for the statistics: dropout drops"
    )
    augment: bool = option(
        False, "read calibration and sub-validation images as in training, as EagleEye's code does"
    )
    stale: bool = option(False, "also score every candidate before its statistics are recomputed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_batches < 1:
            raise UserError(f"calibration-batches={self.calibration_batches} must be at least 1")

    @property
    def averaging(self) -> Averaging:
        """Return how batches are averaged."""
        return averaging_of("mean", self.momentum, self.reset)

    def settings(self, seed: int, device: str) -> EvaluationSettings:
        return replace(
            super().settings(seed, device),
            batches=self.calibration_batches,
            averaging=self.averaging,
            whole=self.whole,
            augment=self.augment,
        )

    def fresh(self, seed: int | None) -> Recalibrate:
        """Return the pass that recomputes the statistics of the delivered network."""
        return Recalibrate(
            batches=self.calibration_batches,
            batch_size=self.batch_size,
            momentum=self.momentum,
            reset=self.reset,
            whole=self.whole,
            augment=self.augment,
            seed=seed,
        )

    def finishing_passes(self, seed: int | None) -> list[Pass]:
        return [self.fresh(seed)]


@dataclass(frozen=True)
class AdaptiveStatistics(FreshStatistics):
    """Scores the cut network with fresh batch-norm statistics (EagleEye, FNNP)."""

    name: ClassVar[str] = "abn"
    summary: ClassVar[str] = "the cut network with fresh batch-norm statistics (EagleEye, FNNP)"

    statistics: Plain = option("mean", PLAIN)
    signal: Signal = option(
        "metric",
        "what is compared: the metric, the likelihood of the targets, or agreement with the "
        "original network",
    )
    race: int | None = option(
        None, "give up what is clearly worse after this many images, 512 say (look at all)"
    )
    kernels: Kernels = option(
        "auto",
        "fused kernels where the device has them; off; or reference, what they compute in plain "
        "PyTorch",
    )
    precision: Precision = option(
        "fp32",
        "bf16 computes in bfloat16: faster on GPUs and on processors with AMX, scores differ by a "
        "few images",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.race is not None and self.race < 2:
            raise UserError(f"race={self.race} must be at least 2 images")
        averaging_of(self.statistics, self.momentum, self.reset)

    @property
    def averaging(self) -> Averaging:
        return averaging_of(self.statistics, self.momentum, self.reset)

    def settings(self, seed: int, device: str) -> EvaluationSettings:
        return replace(
            super().settings(seed, device),
            signal=self.signal,
            race=self.race,
            kernels=self.kernels,
            precision=self.precision,
        )

    def batch_size_at(self, index: int, keep: int, size: int) -> int:
        return replace(self.settings(0, "cpu"), keep=keep).batch_size_at(index, size)

    @property
    def batch_independent(self) -> bool:
        return self.race is None

    def check(self, ranking: Ranking) -> None:
        if self.signal != "metric" and not isinstance(ranking, Accuracy):
            raise UserError(
                f"signal={self.signal} is no accuracy, which ranking={ranking.name} asks for: use "
                "metric"
            )

    def open(self, context: ScoringContext) -> Scorer:
        return AdaptiveScorer(context, self.evaluation(context), self.stale)

    def fresh(self, seed: int | None) -> Recalibrate:
        return replace(super().fresh(seed), statistics=self.statistics)


@dataclass(frozen=True)
class ReferenceStatistics(FreshStatistics):
    """The scores of `AdaptiveStatistics`, by the module that would be delivered and PyTorch's own
    batch norm."""

    name: ClassVar[str] = "reference"
    summary: ClassVar[str] = "as abn, without short cuts: the module itself, batch norms not folded"

    def open(self, context: ScoringContext) -> Scorer:
        return ReferenceScorer(context, self.networks(context), self.stale)


@dataclass(frozen=True)
class ShortTraining(ReferenceStatistics):
    """Scores the cut network after fresh statistics and a short fine-tuning: slow, and closest to
    the truth."""

    name: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "the cut network after fresh statistics and a short fine-tuning"

    epochs: int = option(1, "of fine-tuning, for every candidate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise UserError(
                f"epochs={self.epochs} must be at least 1: without any, use the evaluator abn"
            )

    def open(self, context: ScoringContext) -> Scorer:
        return TunedScorer(context, self.networks(context), self.stale, self.epochs)
