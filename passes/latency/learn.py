"""From a network and a target to its predictor: what a database holds, and more measurements for
some minutes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.latency.choose import measure_actively
from pruneopt.passes.latency.database import Database
from pruneopt.passes.latency.machine import machine_of
from pruneopt.passes.latency.predictor import FEWEST, Measured, Predictor
from pruneopt.passes.latency.probe import Probe
from pruneopt.passes.latency.regions import find_regions
from pruneopt.passes.latency.sample import Sample
from pruneopt.passes.targets.target import Target, parse_target
from pruneopt.progress import Progress, silent

__all__ = ["MINUTES", "Learner", "learn"]

MINUTES = 3.0
"""The time to measure for, in minutes, where nobody says and the database holds nothing of the
network."""


def learn(
    cost: CostModel,
    target: Target,
    database: Database,
    *,
    minutes: float,
    limit: float | None = None,
    probe: Callable[[np.ndarray], Sample] | None = None,
    machine: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Predictor:
    """Return the predictor of a network on a target.

    Args:
        cost: of the network, whose graph has its weights.
        database: what is known already; new measurements are written into it one by one.
        minutes: how long to measure; 0 takes what is known.
        limit: seconds of a budget, near which more is measured.
        probe, machine: what measures, and on what; by default the target here.

    Raises:
        UserError: a stale database, a target that is not here, or too few measurements.
    """
    text, here = str(target), machine_of(target) if machine is None else machine
    database.check(text, here)
    regions = find_regions(cost, target.batch)
    others = database.others(text, regions)
    known = database.measured(text, regions)

    def fit(measured: Measured) -> Predictor:
        return Predictor(text, regions, measured, others, seed)

    if minutes > 0:
        progress(f"preparing {target}")

        def keep(widths: np.ndarray, sample: Sample) -> None:
            database.add(text, here, cost.graph.name, regions, widths, sample)

        known = measure_actively(
            cost,
            probe or Probe(cost, target, seed=seed),
            fit,
            seconds=60 * minutes,
            keep=keep,
            known=known if len(known.samples) else None,
            limit=limit,
            seed=seed,
            progress=progress,
        )
    return fit(known)


@dataclass
class Learner:
    """Makes predictors when a budget asks for one, and remembers them over the rounds of a compile.

    Attributes:
        database: the file; None keeps what is measured in memory.
        minutes: how long to measure for each target; None: `MINUTES` where the database knows too
            little, else not.
        limits: seconds of the budgets, by the targets' texts.
    """

    database: Path | None = None
    minutes: float | None = None
    limits: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    progress: Progress = silent
    _known: dict[tuple[str, str], Predictor] = field(default_factory=dict)
    _corrections: dict[str, float] = field(default_factory=dict)

    def __call__(self, text: str, cost: CostModel) -> Predictor:
        """Return the predictor of a network on the target that a text names, with what was
        corrected."""
        regions = find_regions(cost, parse_target(text).batch)
        key = (text, "".join(region.key for region in regions))
        if key not in self._known:
            self._known[key] = self._learned(text, cost)
        found = self._known[key]
        found.correction = self._corrections.get(text, 1.0)
        return found

    def correct(self, text: str, factor: float) -> None:
        """Multiply all predictions of a target from now on."""
        self._corrections[text] = self._corrections.get(text, 1.0) * factor

    @property
    def corrections(self) -> dict[str, float]:
        """The factors that predictions are multiplied with, by the targets' texts."""
        return dict(self._corrections)

    def _learned(self, text: str, cost: CostModel) -> Predictor:
        target = parse_target(text)
        where: os.PathLike[str] | str = ":memory:" if self.database is None else self.database
        with Database(where) as database:
            minutes = self.minutes
            if minutes is None:
                known = database.measured(text, find_regions(cost, target.batch))
                minutes = 0.0 if len(known.samples) >= 4 * FEWEST else MINUTES
            return learn(
                cost,
                target,
                database,
                minutes=minutes,
                limit=self.limits.get(text),
                seed=self.seed,
                progress=self.progress,
            )
