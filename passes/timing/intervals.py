"""Medians with intervals that assume nothing about how times are distributed.

The interval is a pair of order statistics: how many of n independent times lie below their true
median follows a binomial distribution with p = 1/2, so the ranks follow from n alone (H. A. David
and H. N. Nagaraja, *Order Statistics*, 3rd edition, 2003, section 7.1; advised for running times by
T. Hoefler and R. Belli, *Scientific Benchmarking of Parallel Computing Systems*, SC 2015).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.stats import binom

from pruneopt.errors import InternalError

__all__ = ["CONFIDENCE", "FEWEST", "median_interval", "ranks"]

CONFIDENCE = 0.95
"""How often an interval holds the true median, at least."""
FEWEST = 6
"""Times from which on an interval of 95 % exists: the smallest and the largest of five reach 93.75
%."""


@cache
def ranks(count: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return the ranks, from 0, of the sorted times that bound the median of ``count`` times.

    Too few times for the confidence give the smallest and the largest.
    """
    tails = binom.cdf(np.arange(count // 2 + 1), count, 0.5)
    below = max(0, int(np.searchsorted(tails, (1 - confidence) / 2, side="right")) - 1)
    return below, count - 1 - below


def median_interval(
    times: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return the median of ``times`` [n], and the lower and the upper end of its interval."""
    if times.ndim != 1 or not times.size:
        raise InternalError(f"a median needs a list of times, not an array of shape {times.shape}")
    low, high = ranks(times.size, confidence)
    ordered = np.sort(times)
    return float(np.median(times)), float(ordered[low]), float(ordered[high])
