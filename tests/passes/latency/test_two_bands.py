"""Whole networks that lie in two bands: a machine that became slower for half of the measurements."""

import numpy as np
import pytest

from pruneopt.passes.latency.predictor import _calibrated


def test_two_bands_of_times_are_calibrated_between_them() -> None:
    sums = np.array([1.0, 2.0, 1.0, 2.0])
    found = _calibrated(sums, np.array([1.0, 2.0, 1.5, 3.0]))
    assert found.offset == pytest.approx(0.0, abs=1e-9)
    assert 1.0 <= found.scale <= 1.5
