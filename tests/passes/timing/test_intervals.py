"""Intervals of medians: ranks against the binomial distribution written out, coverage by
simulation."""

import math

import numpy as np
import pytest

from pruneopt.errors import InternalError
from pruneopt.passes.timing.intervals import FEWEST, median_interval, ranks


def outside(count: int, rank: int) -> float:
    """The chance that the median lies outside sorted times number ``rank`` and ``count - 1 -
    rank``."""
    return 2 * sum(math.comb(count, k) for k in range(rank + 1)) / 2**count


@pytest.mark.parametrize("count", [FEWEST, 7, 10, 11, 25, 100, 301])
def test_ranks_are_the_narrowest_that_hold_the_confidence(count: int) -> None:
    low, high = ranks(count)
    assert high == count - 1 - low
    assert outside(count, low) <= 0.05 < outside(count, low + 1)


def test_too_few_times_give_all_of_them() -> None:
    assert [ranks(count) for count in (1, 2, 5)] == [(0, 0), (0, 1), (0, 4)]
    assert outside(FEWEST - 1, 0) > 0.05 >= outside(FEWEST, 0)


def test_a_median_and_its_interval() -> None:
    assert median_interval(np.array([5.0, 1.0, 4.0, 2.0, 3.0, 9.0])) == (3.5, 1.0, 9.0)
    assert median_interval(np.arange(9.0)) == (4.0, 1.0, 7.0)
    with pytest.raises(InternalError, match="list of times"):
        median_interval(np.empty(0))


@pytest.mark.parametrize("count", [10, 25, 100])
@pytest.mark.parametrize("draw", ["lognormal", "two speeds", "heavy tail"])
def test_intervals_hold_the_median_as_often_as_they_say(count: int, draw: str) -> None:
    """1500 samples each: 95 % less three standard errors, and not needlessly wide."""
    generator = np.random.default_rng(count)
    shape = (1500, count)
    if draw == "lognormal":
        times, median = generator.lognormal(0.0, 0.5, shape), 1.0
    elif draw == "heavy tail":
        times, median = 1 + generator.pareto(1.0, shape), 2.0
    else:  # a fast state three times in four: the median is that of the fast state's 2/3 quantile
        fast = 1 + generator.uniform(0, 0.3, shape)
        times, median = np.where(generator.uniform(size=shape) < 0.75, fast, fast + 1), 1.2
    found = np.array([median_interval(row) for row in times])
    covered = float(((found[:, 1] <= median) & (median <= found[:, 2])).mean())
    exact = 1 - outside(count, ranks(count)[0])
    assert exact >= 0.95
    assert abs(covered - exact) <= 3 * math.sqrt(0.95 * 0.05 / 1500)
