"""How recomputed batch-norm statistics are averaged over batches, by name and in closed form.

In training mode every batch is normalised by its own statistics, so batches do not depend on each
other: the running statistics afterwards are a weighted sum of per-batch means and (unbiased)
variances. Which weights, the name says:

- ``ema(momentum, reset)``: what `nn.BatchNorm2d` does. The last batches weigh most; with momentum
  0.1 they count like 19 batches, however many there are. ``reset`` starts from mean 0 and variance
  1 (MetaPruning), otherwise from the old statistics (EagleEye).
- ``mean``: the plain mean over batches, `torch.optim.swa_utils.update_bn`.
- ``mean_biased``: the mean over batches, weighed by their sizes, of means and *biased* variances
  (Once-for-All, `set_running_statistics`).

``population`` is another thing: layer by layer over all calibration images, with the mean and the
(biased) variance of all values together; the layers before already use their new statistics, as in
inference. It depends neither on the batch size nor on the order. The mean of the batches' variances
is not the variance of the pooled samples, which also contains that of the means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pruneopt.errors import UserError

__all__ = [
    "Averaging",
    "BatchWeights",
    "Kind",
    "batch_statistics",
    "combine",
    "ema_weights",
    "mean_weights",
    "pool",
]

Kind = Literal["ema", "mean", "mean_biased", "population"]


@dataclass(frozen=True)
class BatchWeights:
    """The shares that running statistics are made of; all weights together are 1.

    Attributes:
        batches: the weight of every batch, float64 `[n]`, in order.
        old: the weight of the statistics there were before.
        fresh: the weight of mean 0 and variance 1, which a reset leaves.
    """

    batches: Tensor
    old: float
    fresh: float

    @property
    def effective(self) -> float:
        """Return how many equal batches have the same variance: 1 / sum of squared shares."""
        total = float(self.batches.sum())
        return total**2 / float(self.batches.square().sum()) if total > 0 else 0.0


def ema_weights(n: int, momentum: float, reset: bool) -> BatchWeights:
    """Weights of ``r <- (1 - momentum) r + momentum x`` after ``n`` batches.

    Batch i of n weighs ``momentum (1 - momentum)^(n - 1 - i)``, the start ``(1 - momentum)^n``.

    Raises:
        UserError: a momentum outside (0, 1], or a negative number of batches.
    """
    if not 0 < momentum <= 1:
        raise UserError(f"momentum={momentum:g} must be above 0 and at most 1")
    _check_count(n)
    age = torch.arange(n - 1, -1, -1, dtype=torch.float64)
    start = (1 - momentum) ** n
    return BatchWeights(
        momentum * (1 - momentum) ** age, 0.0 if reset else start, start if reset else 0.0
    )


def mean_weights(n: int, reset: bool = True, seen: int = 0) -> BatchWeights:
    """Weights of the cumulative mean over ``n`` batches.

    Without ``reset`` the old statistics count as the ``seen`` batches they were averaged over, as
    in `nn.BatchNorm2d(momentum=None)` with ``num_batches_tracked = seen``.
    """
    _check_count(n)
    before = 0 if reset else seen
    if n == 0:
        return BatchWeights(
            torch.zeros(0, dtype=torch.float64), 0.0 if reset else 1.0, 1.0 if reset else 0.0
        )
    return BatchWeights(
        torch.full((n,), 1 / (n + before), dtype=torch.float64), before / (n + before), 0.0
    )


def _check_count(n: int) -> None:
    if n < 0:
        raise UserError(f"{n} batches are impossible: use 0 or more")


@dataclass(frozen=True, slots=True)
class Averaging:
    """The semantics of recomputed statistics, to be stored with every score that depends on
    them."""

    kind: Kind = "mean"
    momentum: float | None = None
    reset: bool = True

    def __post_init__(self) -> None:
        if (self.kind == "ema") != (self.momentum is not None):
            raise UserError(
                f"averaging by ema needs a momentum, and the others take none: not so {self.kind}"
            )
        if self.kind in ("mean_biased", "population") and not self.reset:
            raise UserError(f"{self.kind} forgets the old statistics: it cannot go on from them")

    def weights(self, n: int, seen: int = 0) -> BatchWeights:
        """Return the weights of ``n`` equal batches.

        ``seen`` is the number of batches that ``mean`` without reset has averaged before.
        """
        if self.momentum is not None:
            return ema_weights(n, self.momentum, self.reset)
        return mean_weights(n, self.reset, seen)

    def __str__(self) -> str:
        if self.kind in ("mean_biased", "population"):
            return self.kind
        momentum = "" if self.momentum is None else f"momentum={self.momentum:g}, "
        return f"{self.kind}({momentum}reset={str(self.reset).lower()})"


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance per channel of one batch ``[N, C, ...]``; both ``[C]``.

    Raises:
        UserError: a single value per channel, which has no variance.
    """
    rows = x.movedim(1, 0).flatten(1)
    if rows.shape[1] < 2:
        raise UserError("batch norm needs more than one value per channel: use larger batches")
    variance, mean = torch.var_mean(rows, dim=1, unbiased=True)
    return mean, variance


def pool(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of samples put together (Chan, Golub and LeVeque, 1979).

    Args:
        means, variances: of every part, the variances biased, `[n, C]`.
        counts: values per channel in every part, `[n]`.
    """
    share = (counts / counts.sum()).to(means)
    mean = share @ means
    return mean, share @ (variances + (means - mean).square())


def combine(
    means: Tensor,
    variances: Tensor,
    weights: BatchWeights,
    initial: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance `[C]` after all batches.

    Args:
        means: per batch and channel, `[n, C]`.
        variances: unbiased, `[n, C]`.
        weights: of `ema_weights` or `mean_weights`.
        initial: mean and variance `[C]` before; needed where the old statistics still weigh
            something.

    Raises:
        UserError: ``initial`` is missing, or the shapes do not fit.
    """
    if means.shape != variances.shape or len(means) != len(weights.batches):
        shapes = f"{list(means.shape)} and {list(variances.shape)}"
        raise UserError(
            f"means and variances of shape {shapes} do not fit {len(weights.batches)} batches"
        )
    if initial is None and not math.isclose(weights.old, 0.0, abs_tol=0.0):
        raise UserError("the old statistics still weigh something: give them as initial")
    share = weights.batches.to(means)
    mean, variance = share @ means, share @ variances + weights.fresh
    if initial is not None and weights.old > 0:
        mean, variance = mean + weights.old * initial[0], variance + weights.old * initial[1]
    return mean, variance
