"""How candidates are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pruneopt.errors import UserError
from pruneopt.kernels.bn_statistics import Averaging

__all__ = [
    "MEAN",
    "PLAIN",
    "EvaluationSettings",
    "Kernels",
    "Plain",
    "Precision",
    "Signal",
    "averaging_of",
]

MEAN = Averaging("mean")
Signal = Literal["metric", "likelihood", "agreement"]
Plain = Literal["mean", "mean_biased", "population"]
Kernels = Literal["auto", "off", "reference"]
Precision = Literal["fp32", "bf16"]
TOGETHER = 16
"""Candidates judged side by side, at most."""
RACING = 8
"""The same in a race, where those side by side do not learn from each other."""
HELD = 2**30
"""Bytes for the weights of candidates side by side."""
PLAIN = (
    "what batch-norm statistics are: the mean over batches, that of biased variances, or of "
    "all images together"
)


def averaging_of(statistics: Plain, momentum: float | None, reset: bool) -> Averaging:
    """Return the semantics that options name: the moving average where a momentum is given.

    Raises:
        UserError: options that exclude each other.
    """
    if momentum is None:
        return Averaging(statistics, reset=reset)
    if statistics != "mean":
        raise UserError(f"statistics={statistics} has no momentum: leave one of the two out")
    return Averaging("ema", momentum, reset)


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How candidates are scored.

    Attributes:
        batches, batch_size: calibration batches for the batch-norm statistics; they are the same
            for all candidates.
        averaging: how the statistics are averaged over batches.
        whole: the complete network in training mode while they are taken (dropout drops).
        augment: calibration and sub-validation images are read as in training, as EagleEye's code
            does.
        subval_limit: score on this many sub-validation images; None takes all.
        seed: which calibration batches.
        device: where networks run.
        signal: what candidates are compared by: the task's metric, the mean log-likelihood of the
            targets, or the share of images on which a candidate's class is the original network's.
        race: images on the first rung of a race (`evaluation.race`); None scores every candidate on
            all images.
        kernels: fused kernels for statistics and scores: ``auto`` takes them where the device has
            them, ``reference`` computes the same in plain PyTorch anywhere.
        precision: ``bf16`` computes convolutions and products in bfloat16, for statistics and
            scores.
        keep: how many of the best a race has to tell apart from the rest by all images.
    """

    batches: int = 30
    batch_size: int = 128
    averaging: Averaging = MEAN
    whole: bool = False
    augment: bool = False
    subval_limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    signal: Signal = "metric"
    race: int | None = None
    kernels: Kernels = "auto"
    precision: Precision = "fp32"
    keep: int = 1

    def batch_size_at(self, index: int, size: int) -> int:
        """Return how many candidates to judge side by side, from number ``index`` on, of a network
        of ``size`` bytes.

        A race has nobody to race against before `keep` candidates came to its end; in training mode
        each candidate draws random numbers of its own.
        """
        if self.whole:
            return 1
        most = TOGETHER
        if self.race is not None:
            most = min(RACING, self.keep - index) if index < self.keep else RACING
        return max(1, min(most, HELD // max(1, size)))
