"""Does a cheap score rank plans as fine-tuning would? EagleEye's question (section 3.3, Table 1,
Figure 7), measured.

For each of several random plans: the score with stale batch-norm statistics (vanilla), the score
after adaptive batch norm, and the accuracy after fine-tuning. Then the correlation of either score
with that accuracy, three ways:

- Pearson: of the numbers;
- Spearman: of the ranks, ``1 - 6 sum d^2 / (n (n^2 - 1))`` without ties;
- Kendall: ``2 / (n (n - 1)) sum_{i<j} sgn(x_i - x_j) sgn(y_i - y_j)`` without ties. Scores on few
  images do tie; scipy then gives tau-b and Spearman over mean ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pruneopt import UserError
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.search.searchers.sampling import WidthSampler

__all__ = ["Correlation", "CorrelationReport", "Sample", "correlate", "correlation_report"]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Three coefficients in -1..1; NaN where one side does not vary."""

    pearson: float
    spearman: float
    kendall: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One plan: its share of the FLOPs, the two scores, the accuracy after fine-tuning, and the
    seconds of each."""

    index: int
    flops: float
    stale: float
    adaptive: float
    tuned: float
    adaptive_seconds: float
    tuned_seconds: float


@dataclass(frozen=True)
class CorrelationReport:
    """The samples, and how well adaptive and stale scores predict fine-tuned accuracy."""

    samples: tuple[Sample, ...]
    epochs: int
    split: str
    """Where fine-tuned accuracy was measured."""
    averaging: str

    @property
    def adaptive(self) -> Correlation:
        """Adaptive batch norm against fine-tuned accuracy."""
        return correlate(
            [item.adaptive for item in self.samples], [item.tuned for item in self.samples]
        )

    @property
    def stale(self) -> Correlation:
        """Stale statistics against fine-tuned accuracy."""
        return correlate(
            [item.stale for item in self.samples], [item.tuned for item in self.samples]
        )

    def text(self) -> str:
        """Return the report as a table."""
        lines = [
            f"{len(self.samples)} plans, {self.epochs} epochs, fine-tuned accuracy on {self.split}"
        ]
        lines.append(
            f"{'score':<12}{'lowest':>10}{'highest':>10}{'Pearson':>10}{'Spearman':>10}{'Kendall':>10}"
        )
        rows = {"adaptive": self.adaptive, "stale": self.stale, "fine-tuned": None}
        values = {
            "adaptive": [item.adaptive for item in self.samples],
            "stale": [item.stale for item in self.samples],
            "fine-tuned": [item.tuned for item in self.samples],
        }
        for name, found in rows.items():
            line = f"{name:<12}{min(values[name]):>10.4f}{max(values[name]):>10.4f}"
            if found is not None:
                line += f"{found.pearson:>10.3f}{found.spearman:>10.3f}{found.kendall:>10.3f}"
            lines.append(line)
        return "\n".join(lines)


def correlate(scores: Sequence[float], outcomes: Sequence[float]) -> Correlation:
    """Return the three coefficients of two equally long lists.

    Raises:
        UserError: fewer than two pairs.
    """
    if len(scores) != len(outcomes) or len(scores) < 2:
        raise UserError(
            f"a correlation needs two equally long lists of two or more, not {len(scores)}, "
            f"{len(outcomes)}"
        )
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan, math.nan, math.nan)
    return Correlation(
        float(stats.pearsonr(x, y).statistic),
        float(stats.spearmanr(x, y).statistic),
        float(stats.kendalltau(x, y).statistic),
    )


def correlation_report(
    sampler: WidthSampler,
    networks: CutNetworks,
    *,
    candidates: int,
    epochs: int,
    split: str = "test",
    progress: Callable[[str, int, int], object] = lambda *_: None,
) -> CorrelationReport:
    """Score, fine-tune and correlate the first ``candidates`` plans of a sampler.

    Args:
        sampler: with budgets, plans of one cost; without, of any ("not fixed" in EagleEye's Table
            1).
        networks: scores on sub-validation images; its settings are those of the search.
        epochs: of fine-tuning, from the recalibrated network.
        split: where fine-tuned accuracy is measured. This is a measurement, not a search: the test
            split may be used.

    Raises:
        UserError: fewer than two candidates, or nothing to train.
    """
    if candidates < 2 or epochs < 1:
        raise UserError("a correlation needs at least 2 candidates and 1 epoch of fine-tuning")
    samples = []
    for index in range(candidates):
        samples.append(_sample(sampler, networks, index, epochs, split))
        done = samples[-1]
        progress(
            f"stale {done.stale:.3f}, adaptive {done.adaptive:.3f}, tuned {done.tuned:.3f}",
            index + 1,
            candidates,
        )
    return CorrelationReport(tuple(samples), epochs, split, str(networks.settings.averaging))


def _sample(
    sampler: WidthSampler, networks: CutNetworks, index: int, epochs: int, split: str
) -> Sample:
    draw, cost = sampler.draw(index), sampler.cost
    module = networks.network(draw.plan)
    stale = networks.score(module)
    started = time.perf_counter()
    networks.recalibrate(module, draw.plan)
    adaptive = networks.score(module)
    scored = time.perf_counter()
    networks.tune(module, draw.plan, epochs)
    seconds = scored - started, time.perf_counter() - scored
    share = float(cost.measure("flops", draw.widths)) / float(cost.measure("flops", cost.full))
    return Sample(index, share, stale, adaptive, networks.score(module, split), *seconds)
