"""Budgets on the time on a target: read, kept in rounds, measured in the end, and refused in one
clear sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.latency_fakes import FakeProbe, Stack, cost_of
from torch import manual_seed, randn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.cost.budget import Budget, format_value, parse_budget
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.latency.choose import random_widths
from pruneopt.passes.latency.deliver import (
    MOST_ROUNDS,
    ROUNDS_FILE,
    Delivery,
    Observation,
    in_rounds,
)
from pruneopt.passes.latency.learn import Learner
from pruneopt.passes.latency.predictor import Measured, Predictor
from pruneopt.passes.manager import PassManager
from pruneopt.passes.result import Result
from pruneopt.passes.timing.timing import Measurement

UNIT = "latency@ort-cpu"


class FakeLearner(Learner):
    """Learns from the staircase."""

    def _learned(self, text: str, cost: CostModel) -> Predictor:
        probe = FakeProbe(cost, noise=0.0)
        rows = np.array([random_widths(cost, np.random.default_rng(seed)) for seed in range(40)])
        return Predictor(text, probe.regions, Measured(rows, tuple(map(probe, rows))))


def measuring(factor: float) -> Any:
    """A target on which networks take so many times as long as predicted, by the FLOPs that are
    left."""

    def measure(text: str, networks: Sequence[Any]) -> list[Measurement]:
        found = []
        for graph, _ in networks:
            module_cost = cost_of_graph(graph)
            seconds = factor * float(FakeProbe(module_cost).true(module_cost.full[None])[0])
            found.append(Measurement(seconds, 0.99 * seconds, 1.01 * seconds, 20, None))
        return found

    return measure


def cost_of_graph(graph: Any) -> CostModel:
    from pruneopt.passes.analysis.couple import couple

    plain = graph.copy()
    plain.channels = ()
    return CostModel(plain, couple(plain))


def run(delivery: Delivery, budgets: list[Budget]) -> Result:
    """Rounds, as compile makes them."""
    manual_seed(0)
    graph = capture(Stack().eval(), (randn(1, 3, 16, 16),))
    manager = PassManager.parse("couple,cost,l1{round-to=8},slice,verify", instruments=[delivery])
    return in_rounds(lambda: manager.run(graph, budgets=budgets), delivery)


def full_time() -> float:
    cost = cost_of()
    return float(FakeProbe(cost).true(cost.full[None])[0])


def budgets_of(share: float) -> list[Budget]:
    return [parse_budget(f"{1e3 * share * full_time():.6f}ms@ort-cpu")]


def test_budgets_name_targets() -> None:
    assert parse_budget("4ms@ort-cpu") == Budget("4ms@ort-cpu", UNIT, 4e6, relative=False)
    assert (
        parse_budget(" 250us@ ort-cpu{threads=2 batch=1}").unit == "latency@ort-cpu{threads=2}"
    ), "one text per target"
    assert parse_budget("50%latency@torch-cpu") == Budget(
        "50%latency@torch-cpu", "latency@torch-cpu", 0.5, True
    )
    assert parse_budget("4ms").unit == "latency", "the table's, as before"
    text = format_value(UNIT, 4.2e6)
    assert text == "4.2 ms@ort-cpu"
    assert parse_budget(text).value == 4.2e6
    with pytest.raises(UserError, match="names a target, which only a time has"):
        parse_budget("50%FLOPs@ort-cpu")
    with pytest.raises(UserError, match="tpu"):
        parse_budget("4ms@tpu")


def test_without_predictions_a_target_is_refused() -> None:
    cost = cost_of()
    with pytest.raises(UserError, match="a limit on the time on ort-cpu needs measurements"):
        cost.measure(UNIT, cost.full)


def test_a_good_prediction_needs_one_round() -> None:
    budgets = budgets_of(0.5)
    delivery = Delivery(FakeLearner(), budgets, measure=measuring(0.99))
    result = run(delivery, budgets)
    ((found,),) = delivery.rounds
    assert found.met
    assert (
        0.4 * full_time()
        < found.measured
        <= found.limit
        == pytest.approx(0.5 * full_time(), rel=1e-3)
    )
    assert found.predicted == pytest.approx(found.measured, rel=0.05)
    assert result.budgets[0].unit == UNIT


def test_a_miss_is_corrected(tmp_path: Path) -> None:
    budgets = budgets_of(0.5)
    learner = FakeLearner()
    delivery = Delivery(learner, budgets, tmp_path, measuring(1.5))
    run(delivery, budgets)
    first, *_, (last,) = delivery.rounds
    assert len(delivery.rounds) > 1
    assert not first[0].met
    assert last.met
    assert learner.corrections["ort-cpu"] == pytest.approx(1.5, rel=0.1)
    # A run that goes on takes the rounds that were written down, and measures nothing.
    assert (tmp_path / ROUNDS_FILE).exists()

    def never(text: str, networks: Sequence[Any]) -> list[Measurement]:
        raise AssertionError("measured again")

    again = Delivery(FakeLearner(), budgets, tmp_path, never)
    run(again, budgets)
    assert again.rounds == delivery.rounds


def test_a_share_is_one_of_the_measured_original() -> None:
    budgets = [parse_budget("60%latency@ort-cpu")]
    delivery = Delivery(FakeLearner(), budgets, measure=measuring(1.3))
    run(delivery, budgets)
    (last,) = delivery.rounds[-1]
    assert last.limit == pytest.approx(0.6 * 1.3 * full_time(), rel=1e-6)
    assert last.measured <= last.limit
    assert last.measured_before == pytest.approx(1.3 * full_time(), rel=1e-6)


def test_what_never_meets_its_budget_names_the_best() -> None:
    budgets, calls = budgets_of(0.5), []

    def measure(text: str, networks: Sequence[Any]) -> list[Measurement]:
        calls.append(text)
        seconds = full_time() * (0.51 if len(calls) == 2 else 0.52)
        return [Measurement(seconds, seconds, seconds, 20, None)] * len(networks)

    with pytest.raises(BudgetError) as caught:
        run(Delivery(FakeLearner(), [*budgets], measure=measure), budgets)
    best = format_value(UNIT, 0.51e9 * full_time())
    assert f"{budgets[0].text} was missed" in str(caught.value)
    assert f"the best took {best}" in str(caught.value)
    assert len(calls) == MOST_ROUNDS


def test_int8_is_refused() -> None:
    with pytest.raises(UserError, match=r"times on ort-cpu\{dtype=int8\} are not predicted"):
        Delivery(FakeLearner(), [parse_budget("4ms@ort-cpu{dtype=int8}")])


def test_times_without_a_budget_are_measured_once() -> None:
    """As for a point of a front: nothing is refused, however slow."""
    manual_seed(0)
    graph = capture(Stack().eval(), (randn(1, 3, 16, 16),))
    watched = Observation({"ort-cpu": (0.5, 0.25)}, measuring(100.0))
    manager = PassManager.parse(
        "couple,cost,l1{budget=50%FLOPs round-to=8},slice,verify", instruments=[watched]
    )
    result = manager.run(graph)
    ((item,),) = watched.rounds
    assert (item.limit, item.predicted_before, item.predicted, item.met) == (None, 0.5, 0.25, True)
    small = cost_of_graph(result.graph)
    assert item.measured == pytest.approx(100 * float(FakeProbe(small).true(small.full[None])[0]))
    assert item.measured_before == pytest.approx(100 * full_time())
