"""From the sum of a network's regions to the whole network.

What takes the time of single ops takes time itself, some microseconds for every op, whatever its
width; a whole run has costs of its own. So the line between the two has an offset of either sign,
which matters most for narrow networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Calibration", "calibrated"]

ODD = 0.1
"""A whole network that differs by such a share from the line was disturbed, and is left out."""
STEPS = 20
EXACT = 1e-4
"""A relative error below which a network weighs no more."""
SPREAD = 1.2
"""The slowest over the fastest network, below which a line has no slope to go by."""
LEAST = 0.25
"""Of what a sum stands for without the offset; far below everything measured a line would cross
zero."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """``scale * sum + offset``, in seconds, and never less than `LEAST` of ``scale * sum``."""

    scale: float
    offset: float

    def __call__(self, seconds: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.scale * np.maximum(
            seconds + self.offset / self.scale, LEAST * seconds
        )
        return found


def calibrated(sums: np.ndarray, whole: np.ndarray) -> Calibration:
    """Return the line with the least relative error through networks that were not disturbed.

    Args:
        sums: of the regions of each network, in seconds, `[N]`.
        whole: what the networks took, `[N]`.
    """
    line = _line(sums, whole, np.ones(len(sums)))
    for _ in range(
        STEPS
    ):  # least absolute errors, by weights: those who were disturbed do not turn the line
        line = _line(sums, whole, 1 / np.maximum(_error(line, sums, whole), EXACT))
    quiet = _error(line, sums, whole) < ODD
    return _line(sums[quiet], whole[quiet], np.ones(int(quiet.sum()))) if quiet.any() else line


def _error(line: Calibration, sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.abs(line(sums) / whole - 1)
    return found


def _line(sums: np.ndarray, whole: np.ndarray, weight: np.ndarray) -> Calibration:
    """Return the line with the least squares of relative errors; the median ratio where there is no
    slope to be seen."""
    if sums.max() > SPREAD * sums.min():
        root = np.sqrt(weight)
        design = np.stack([sums, np.ones(len(sums))], axis=1) * (root / whole)[:, None]
        scale, offset = np.linalg.lstsq(design, root, rcond=None)[0]
        if scale > 0:
            return Calibration(float(scale), float(offset))
    return Calibration(float(np.median(whole / np.maximum(sums, 1e-12))), 0.0)
