"""The line from the sum of ops to whole networks, against lines that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneopt.passes.latency.calibration import calibrated


def sums(count: int = 60) -> np.ndarray:
    return np.random.default_rng(0).uniform(2e-3, 20e-3, count)


@given(st.floats(0.5, 2), st.floats(-0.6e-3, 5e-3), st.integers(0, 2**32 - 1))
def test_a_line_is_found_behind_noise_and_disturbances(
    scale: float, offset: float, seed: int
) -> None:
    """Also one below the sum of the ops, as where every op is timed some microseconds too long."""
    rng, x = np.random.default_rng(seed), sums()
    true = scale * x + offset
    whole = true * rng.normal(1, 0.01, len(x))
    whole[rng.choice(len(x), 20, replace=False)] *= rng.uniform(1.2, 20, 20)
    assert np.abs(calibrated(x, whole)(x) / true - 1).max() < 0.05


def test_what_is_far_below_all_that_was_measured_takes_time_too() -> None:
    x = sums()
    line = calibrated(x, x - 1.5e-3)
    assert line.offset == pytest.approx(-1.5e-3, rel=1e-6)
    low = line(np.linspace(1e-5, 2e-3, 50))
    assert (low > 0).all()
    assert (np.diff(low) >= 0).all()


def test_networks_that_are_alike_give_a_ratio() -> None:
    x = np.linspace(1.0, 1.1, 8)
    line = calibrated(x, 1.2 * x)
    assert (line.scale, line.offset) == pytest.approx((1.2, 0))


def test_a_line_that_falls_is_no_line() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert calibrated(x, np.array([4.0, 3.0, 2.0, 1.0])).offset == 0


def test_two_bands_give_the_faster_one() -> None:
    """A machine that became slower for half of the measurements: by relative errors the faster half
    costs less."""
    line = calibrated(np.array([1.0, 2.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.5, 3.0]))
    assert line(np.array([1.0, 2.0])) == pytest.approx([1, 2])
