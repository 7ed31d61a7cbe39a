"""The choice of sub-networks to measure: random ones first, then rather those whose time is
uncertain."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.latency.predictor import Measured, Predictor
from pruneopt.passes.latency.sample import Sample
from pruneopt.progress import Progress, silent

__all__ = ["measure_actively", "random_widths", "uncertain"]

ALIGNMENTS = (1, 4, 8, 16)
RANDOM = 12
"""Random networks before there is anything to be uncertain about, the original first."""
EACH = 8
"""Networks chosen with one and the same predictor: fitting it costs about as long as measuring
one."""
POOL = 120
"""Candidates that they are drawn from."""


def random_widths(cost: CostModel, rng: np.random.Generator) -> np.ndarray:
    """Return widths `[G]` such as searches ask for: an overall scale, groups around it, in
    multiples of 1, 4, 8 or 16.

    Groups of fewer than four such multiples take any width.
    """
    steps = cost.full // cost.step
    multiple = int(rng.choice(ALIGNMENTS))
    each = np.where(steps >= 4 * multiple, multiple, 1)
    shares = np.clip(rng.normal(rng.uniform(0.25, 1.0), 0.2, len(steps)), 0.1, 1.0)
    widths: np.ndarray = np.maximum(
        np.floor(shares * steps / each).astype(np.int64) * each * cost.step, cost.minimum
    )
    return widths


def uncertain(
    predictor: Predictor, pool: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the candidates `[P, G]` to measure next, `[count, G]`: drawn, each as probably as its
    time is uncertain.

    Taking the least certain ones outright takes them all from the same corner, such as the
    narrowest networks.
    """
    share = predictor.uncertainty(pool) / predictor.seconds(pool)
    weight = share + 1e-9
    return pool[
        rng.choice(len(pool), min(count, len(pool)), replace=False, p=weight / weight.sum())
    ]


def measure_actively(
    cost: CostModel,
    probe: Callable[[np.ndarray], Sample],
    fit: Callable[[Measured], Predictor],
    *,
    seconds: float,
    keep: Callable[[np.ndarray, Sample], None],
    known: Measured | None = None,
    limit: float | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = silent,
) -> Measured:
    """Measure sub-networks until the time is over, and return everything that is known then.

    Args:
        cost: of the network.
        probe: measures one.
        fit: the predictor of what is known.
        seconds: the time for it; what is begun is finished, and one network is measured in any
            case.
        keep: is given every measurement, so that none is lost.
        known: what was measured before.
        limit: seconds of a budget; candidates near it are preferred.
        clock: seconds since some moment.
    """
    widths = [] if known is None else list(known.widths)
    samples = [] if known is None else list(known.samples)
    rng = np.random.default_rng([seed, len(samples)])
    started = clock()

    def over() -> bool:
        return clock() - started >= seconds

    while True:
        if len(samples) < RANDOM:
            rows = [cost.full] if not samples else [random_widths(cost, rng)]
        else:
            predictor = fit(Measured(np.array(widths), tuple(samples)))
            pool = np.array([random_widths(cost, rng) for _ in range(POOL)])
            rows = list(uncertain(predictor, _near(pool, predictor, limit), EACH, rng))
        for row in rows:
            progress(
                f"measuring, {len(samples)} networks so far",
                int(min(clock() - started, seconds)),
                int(seconds),
            )
            sample = probe(row)
            keep(row, sample)
            widths.append(row)
            samples.append(sample)
            if over():
                return Measured(np.array(widths), tuple(samples))


def _near(pool: np.ndarray, predictor: Predictor, limit: float | None) -> np.ndarray:
    """Return the half of the pool that is nearest to a limit; all without one."""
    if limit is None:
        return pool
    distance = np.abs(np.log(predictor.seconds(pool) / limit))
    near: np.ndarray = pool[np.argsort(distance)[: len(pool) // 2]]
    return near
