"""Predicted times of any sub-network on a target: the sum of its regions, calibrated against whole
networks.

Predictions are *not* made to grow with the widths, as those of the additive table are: on real
runtimes a width of 63 takes longer than one of 64, and both ways of hiding that are wrong. Running
maxima would charge 64 what 63 costs, and hide the widths worth choosing; running minima would
charge 63 what 64 costs, and promise a speed that the delivered network does not have. A searcher
that steps from width to width checks each one against its budget, so a staircase can cost it a step
that it does not try, never the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.latency.calibration import calibrated
from pruneopt.passes.latency.region_model import RegionModel
from pruneopt.passes.latency.regions import Region
from pruneopt.passes.latency.sample import Sample

__all__ = ["FEWEST", "Measured", "Predictor"]

FEWEST = 4
"""Networks below which there is nothing to learn from."""
ROUNDS = 4
"""The number of times that a whole network's time is dealt out to its regions again, where the
target tells no more."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Networks that were measured: widths `[N, G]`, and what each gave."""

    widths: np.ndarray
    samples: tuple[Sample, ...]

    def seconds(self) -> np.ndarray:
        """Return the seconds of the whole networks, `[N]`."""
        return np.array([sample.seconds for sample in self.samples])


class Predictor:
    """Predicts the seconds of width vectors of one network on one target.

    Args:
        target: its text.
        regions: of the network.
        measured: sub-networks of it.
        others: times of regions with the same keys from other networks: key -> lengths `[N, V]`,
            seconds `[N]`.

    Raises:
        UserError: too few measurements.
    """

    def __init__(
        self,
        target: str,
        regions: Sequence[Region],
        measured: Measured,
        others: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
        seed: int = 0,
    ) -> None:
        if len(measured.samples) < FEWEST:
            raise UserError(
                f"{len(measured.samples)} measured networks are too few to predict times on "
                f"{target}: "
                "give `pruneopt latency measure` more minutes"
            )
        self.target, self.regions, self.measured = target, list(regions), measured
        self.correction = 1.0
        """The factor of all predictions: set where a delivered network was measured and took
        longer."""
        self._others, self._seed = others or {}, seed
        self._members: dict[str, list[int]] = {}
        for number, region in enumerate(regions):
            self._members.setdefault(region.key, []).append(number)
        if any(sample.nodes for sample in measured.samples):
            times = np.array([sample.by_region(len(regions)) for sample in measured.samples])
            self._fit(times)
        else:
            times = self._dealt_out()
        self.calibration = calibrated(times.sum(axis=1), measured.seconds())

    def seconds(self, widths: np.ndarray) -> np.ndarray:
        """Return the seconds of sub-networks, `[P, G]` -> `[P]`."""
        total: np.ndarray = self.correction * self.calibration(self._sums(widths)[0])
        return total

    def uncertainty(self, widths: np.ndarray) -> np.ndarray:
        """Return the standard deviation of `seconds` from what the models of the regions do not
        know, `[P, G]` -> `[P]`."""
        spread: np.ndarray = (
            self.correction * self.calibration.scale * np.sqrt(self._sums(widths)[1])
        )
        return spread

    def by_region(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return seconds of every region, and their variances, each `[P, R]`."""
        rows = np.atleast_2d(np.asarray(widths, dtype=np.float64))
        seconds, variances = (
            np.zeros((len(rows), len(self.regions))),
            np.zeros((len(rows), len(self.regions))),
        )
        for key, members in self._members.items():
            lengths = np.concatenate([self.regions[number].lengths(rows) for number in members])
            found, spread = self._memory[key](lengths)
            seconds[:, members] = found.reshape(len(members), -1).T
            variances[:, members] = spread.reshape(len(members), -1).T ** 2
        return seconds, variances

    def _sums(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seconds, variances = self.by_region(widths)
        return seconds.sum(axis=1), variances.sum(axis=1)

    # Learning

    def _fit(self, times: np.ndarray) -> None:
        """Learn from the seconds of regions `[N, R]`."""
        self._memory = {}
        for key, members in self._members.items():
            lengths = np.concatenate(
                [self.regions[number].lengths(self.measured.widths) for number in members]
            )
            seconds = np.concatenate([times[:, number] for number in members])
            if key in self._others:
                lengths = np.concatenate([lengths, self._others[key][0]])
                seconds = np.concatenate([seconds, self._others[key][1]])
            self._memory[key] = _Memory(
                RegionModel(self.regions[members[0]], lengths, seconds, self._seed)
            )

    def _dealt_out(self) -> np.ndarray:
        """Learn from whole networks alone: their times are dealt out to the regions, by work and
        bytes at first, and then by what was learned.
        """
        widths, whole = self.measured.widths, self.measured.seconds()
        lengths = [region.lengths(widths) for region in self.regions]
        work = np.stack(
            [
                r.flops(x) + 4 * (r.moved(x) + r.weights(x))
                for r, x in zip(self.regions, lengths, strict=True)
            ],
            axis=1,
        )
        for _ in range(ROUNDS):
            times = work / work.sum(axis=1, keepdims=True) * whole[:, None]
            self._fit(times)
            work = self.by_region(widths)[0]
        found: np.ndarray = times
        return found


class _Memory:
    """A region's model that remembers what it was asked: searches ask for the same lengths again
    and again."""

    def __init__(self, model: RegionModel) -> None:
        self._model = model
        self._known: dict[bytes, tuple[float, float]] = {}

    def __call__(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return seconds and uncertainty, `[P, V]` -> two of `[P]`."""
        rows = np.ascontiguousarray(lengths)
        keys = [row.tobytes() for row in rows]
        new = {key: number for number, key in enumerate(keys) if key not in self._known}
        if new:
            seconds, spread = self._model.predict(rows[list(new.values())])
            self._known.update(
                zip(new, zip(seconds.tolist(), spread.tolist(), strict=True), strict=True)
            )
        found = np.array([self._known[key] for key in keys]).reshape(-1, 2)
        return found[:, 0], found[:, 1]
