"""The benchmark of predicted times: how far off a perfect prediction would look."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_noise_floor_is_what_a_perfect_prediction_is_off_by() -> None:
    from latency import noise_floor, quality

    rng = np.random.default_rng(0)
    true = rng.uniform(1.0, 9.0, 20_000)
    one, two = (true * (1 + 0.02 * rng.standard_normal(len(true))) for _ in range(2))
    perfect = quality(true, (one + two) / 2)["mape"]
    assert noise_floor({"passes": quality(one, two)}) == pytest.approx(perfect, rel=0.03)
