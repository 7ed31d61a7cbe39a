"""What an evaluator is: it gives a proposed structure a score on data; and those that cut the trained weights.

``abn`` recomputes the batch-norm statistics of the cut network (EagleEye), ``stale`` scores it as it is, ``finetune``
trains it for a short while first. Each network is cut from the one copy of the trained weights.
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
from pruneopt.passes.search.adaptive_bn import Recalibrate
from pruneopt.passes.search.cut_networks import CutNetworks, Settings
from pruneopt.passes.search.space import Proposal, Space
from pruneopt.passes.transform.select import keep_best

__all__ = ["AdaptiveStatistics", "Evaluator", "Judge", "Judged", "ShortTraining", "StaleStatistics", "Trial"]


@dataclass(frozen=True)
class Trial:
    """What an evaluator may look at: the state of the run, the space of the search, and the seed."""

    state: State
    space: Space
    seed: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A score, and the score before batch-norm statistics were recomputed where that was asked for."""

    score: float
    stale: float | None = None


class Judge(ABC):
    """Scores structures, one at a time; the same structure always gets the same score."""

    @abstractmethod
    def judge(self, proposal: Proposal) -> Judged:
        """The mean metric of a structure on the sub-validation images."""

    @abstractmethod
    def describe(self) -> str:
        """How structures are judged, in a few words."""


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
        """What makes and scores the cut networks."""
        state = trial.state
        settings = self.settings(trial.seed, state.device)
        return CutNetworks(state.graph, trial.space.coupling, state.need_workload(self.name), settings, state.masks)


@dataclass(frozen=True)
class StaleStatistics(CutWeights):
    """Scores the network as it was cut (the vanilla evaluation of EagleEye's comparison)."""

    name: ClassVar[str] = "stale"
    summary: ClassVar[str] = "the cut network as it is, with the statistics of the original"

    def open(self, trial: Trial) -> Judge:
        return _Stale(trial, self.networks(trial))


@dataclass(frozen=True)
class AdaptiveStatistics(CutWeights):
    """Scores the cut network with fresh batch-norm statistics (EagleEye, FNNP)."""

    name: ClassVar[str] = "abn"
    summary: ClassVar[str] = "the cut network with fresh batch-norm statistics (EagleEye, FNNP)"

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
        return Averaging("mean" if self.momentum is None else "ema", self.momentum, self.reset)

    def settings(self, seed: int, device: str) -> Settings:
        return replace(
            super().settings(seed, device),
            batches=self.calibration_batches,
            averaging=self.averaging,
            whole=self.whole,
            augment=self.augment,
        )

    def open(self, trial: Trial) -> Judge:
        return _Adaptive(trial, self.networks(trial), self.stale)

    def after(self, seed: int | None) -> list[Pass]:
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


@dataclass(frozen=True)
class ShortTraining(AdaptiveStatistics):
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


class _Stale(Judge):
    def __init__(self, trial: Trial, networks: CutNetworks) -> None:
        self.trial, self.networks = trial, networks

    def judge(self, proposal: Proposal) -> Judged:
        space = self.trial.space
        plan = keep_best(proposal.widths, space.scores, space.coupling, space.cost)
        return self.scored(self.networks.network(plan), plan)

    def scored(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> Judged:
        """The score of a network that was just cut."""
        return Judged(self.networks.score(module))

    def describe(self) -> str:
        return "stale statistics"


class _Adaptive(_Stale):
    def __init__(self, trial: Trial, networks: CutNetworks, stale: bool) -> None:
        super().__init__(trial, networks)
        self.stale = stale

    def scored(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> Judged:
        before = self.networks.score(module) if self.stale else None
        self.networks.recalibrate(module)
        return Judged(self.networks.score(module), before)

    def describe(self) -> str:
        settings = self.networks.settings
        return f"{settings.averaging}, n={settings.batches}"


class _Tuned(_Adaptive):
    def __init__(self, trial: Trial, networks: CutNetworks, stale: bool, epochs: int) -> None:
        super().__init__(trial, networks, stale)
        self.epochs = epochs

    def scored(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> Judged:
        before = self.networks.score(module) if self.stale else None
        self.networks.recalibrate(module)
        self.networks.tune(module, plan, self.epochs)
        return Judged(self.networks.score(module), before)

    def describe(self) -> str:
        return f"{super().describe()}, then {self.epochs} epochs of fine-tuning"
