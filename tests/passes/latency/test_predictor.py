"""Predicting: staircases with noise are learned, actively faster than at random, and whole networks
calibrate sums."""

import numpy as np
import pytest
from helpers.latency_fakes import FakeProbe, cost_of
from scipy.stats import kendalltau

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.latency.choose import measure_actively, random_widths
from pruneopt.passes.latency.predictor import Measured, Predictor
from pruneopt.passes.latency.regions import find_regions


@pytest.fixture(scope="module")
def cost() -> CostModel:
    return cost_of()


def rows(cost: CostModel, count: int, *seed: int) -> np.ndarray:
    return np.array(
        [random_widths(cost, np.random.default_rng([*seed, number])) for number in range(count)]
    )


def fitted(cost: CostModel, probe: FakeProbe, widths: np.ndarray) -> Predictor:
    return Predictor("fake", probe.regions, Measured(widths, tuple(map(probe, widths))))


def error(predictor: Predictor, probe: FakeProbe, held_out: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.abs(predictor.seconds(held_out) / probe.true(held_out) - 1)
    return found


def test_a_staircase_with_noise_is_learned(cost: CostModel) -> None:
    probe, held_out = FakeProbe(cost, noise=0.02), rows(cost, 100, 9)
    predictor = fitted(cost, probe, rows(cost, 60, 1))
    wrong = error(predictor, probe, held_out)
    assert wrong.mean() < 0.01
    assert wrong.max() < 0.05
    assert kendalltau(predictor.seconds(held_out), probe.true(held_out)).statistic > 0.97
    # FLOPs with a fitted line know nothing of stairs.
    flops = cost.measure("flops", held_out).astype(float)
    line = np.polyval(np.polyfit(flops, probe.true(held_out), 1), flops)
    assert np.abs(line / probe.true(held_out) - 1).mean() > 5 * wrong.mean()


def test_the_stairs_are_kept(cost: CostModel) -> None:
    probe = FakeProbe(cost)
    predictor = fitted(cost, probe, rows(cost, 60, 1))
    steps = np.tile(cost.full // 2, (2, 1))
    steps[0, cost.groups.index("blocks.0.0")] -= 1
    true, predicted = probe.true(steps), predictor.seconds(steps)
    assert true[0] > 1.02 * true[1], "31 channels take longer than 32"
    assert predicted[0] > 1.02 * predicted[1]


def test_whole_networks_alone_are_learned_too(cost: CostModel) -> None:
    probe = FakeProbe(cost, whole_only=True)
    widths = rows(cost, 80, 1)
    wrong = error(fitted(cost, probe, widths), probe, rows(cost, 60, 9))
    assert np.median(wrong) < 0.1


def test_choosing_what_is_uncertain_learns_faster_than_chance(cost: CostModel) -> None:
    held_out, count = rows(cost, 200, 9), 24
    regions = find_regions(cost)
    active, random = [], []
    for seed in range(8):
        probe = FakeProbe(cost, seed=seed)
        measured = measure_actively(
            cost,
            probe,
            lambda measured: Predictor("fake", regions, measured),
            seconds=count,
            keep=lambda widths, sample: None,
            seed=seed,
            clock=lambda probe=probe: float(probe.calls),  # type: ignore[misc]  # a network takes a second
        )
        assert len(measured.samples) == count
        active.append(error(Predictor("fake", regions, measured), probe, held_out))
        random.append(error(fitted(cost, probe, rows(cost, count, seed, 77)), probe, held_out))
    assert np.mean(active) < 0.85 * np.mean(random)
    assert np.percentile(active, 95) < 0.75 * np.percentile(random, 95)


def test_the_uncertainty_falls_where_more_is_known(cost: CostModel) -> None:
    probe, held_out = FakeProbe(cost), rows(cost, 40, 9)
    few, many = (fitted(cost, probe, rows(cost, count, 1)) for count in (12, 80))
    assert (few.uncertainty(held_out) > 0).all()
    assert many.uncertainty(held_out).mean() < 0.6 * few.uncertainty(held_out).mean()


def test_other_networks_help(cost: CostModel) -> None:
    probe, held_out, widths = FakeProbe(cost), rows(cost, 60, 9), rows(cost, 80, 2)
    others: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, region in enumerate(probe.regions):
        times = np.array([probe(row).by_region(len(probe.regions))[number] for row in widths])
        others[region.key] = region.lengths(widths), times
    few = rows(cost, 8, 1)
    measured = Measured(few, tuple(map(probe, few)))
    alone = error(Predictor("fake", probe.regions, measured), probe, held_out).mean()
    assert (
        error(Predictor("fake", probe.regions, measured, others), probe, held_out).mean()
        < 0.5 * alone
    )


def test_a_disturbed_network_does_not_spoil_the_calibration(cost: CostModel) -> None:
    probe = FakeProbe(cost)
    widths = rows(cost, 40, 1)
    samples = [probe(row) for row in widths]
    samples[7] = type(samples[7])(20 * samples[7].seconds, samples[7].nodes)
    predictor = Predictor("fake", probe.regions, Measured(widths, tuple(samples)))
    assert predictor.calibration.scale == pytest.approx(1.03, rel=0.02)


def test_too_little_is_refused(cost: CostModel) -> None:
    with pytest.raises(
        UserError,
        match=r"2 measured networks are too few to predict times on fake: .* more minutes",
    ):
        fitted(cost, FakeProbe(cost), rows(cost, 2, 1))
