"""Coefficients against the formulas of the paper, and the report on digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.evaluation.settings import EvaluationSettings
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.search.searchers.sampling import WidthSampler

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
distinct = st.lists(st.integers(0, 1000), min_size=3, max_size=12, unique=True)


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("score_correlation")


@given(x=distinct, seed=st.integers(0, 1000))
def test_coefficients_are_the_papers_formulas(benchmark: Any, x: list[int], seed: int) -> None:
    y = np.random.default_rng(seed).permutation(len(x)).tolist()
    n = len(x)
    found = benchmark.correlate(x, y)
    gaps = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    assert found.spearman == pytest.approx(1 - 6 * float((gaps**2).sum()) / (n * (n * n - 1)))
    signs = [np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i in range(n) for j in range(i + 1, n)]
    assert found.kendall == pytest.approx(2 / (n * (n - 1)) * sum(signs))
    assert found.pearson == pytest.approx(float(np.corrcoef(x, y)[0, 1]))


def test_what_does_not_vary_has_no_correlation(benchmark: Any) -> None:
    found = benchmark.correlate([0.1, 0.1, 0.1], [1, 2, 3])
    assert all(math.isnan(value) for value in (found.pearson, found.spearman, found.kendall))


@pytest.mark.parametrize(("x", "y"), [([1], [2]), ([1, 2], [1, 2, 3]), ([], [])])
def test_too_few_pairs(benchmark: Any, x: list[float], y: list[float]) -> None:
    with pytest.raises(UserError, match="two equally long lists"):
        benchmark.correlate(x, y)


@pytest.fixture
def parts(trained: Graph, workload: Workload) -> Any:
    coupling = couple(trained)
    scores = score_units(coupling, trained.weights, "l1")
    sampler = WidthSampler(
        coupling, CostModel(trained, coupling), [parse_budget("50%FLOPs")], scores
    )
    return sampler, CutNetworks(
        trained, coupling, workload, EvaluationSettings(batches=4, batch_size=32)
    )


def test_report_on_digits(benchmark: Any, parts: Any) -> None:
    told: list[str] = []
    report = benchmark.correlation_report(
        *parts, candidates=4, epochs=1, progress=lambda text, *_: told.append(text)
    )
    assert len(report.samples) == len(told) == 4
    assert all(0.45 < item.flops <= 0.5 for item in report.samples)
    assert np.mean([item.tuned - item.adaptive for item in report.samples]) > 0
    assert np.mean([item.adaptive - item.stale for item in report.samples]) > 0.1
    for found in (report.adaptive, report.stale):
        assert -1 <= found.kendall <= 1 or math.isnan(found.kendall)
    text = report.text()
    assert "4 plans, 1 epochs, fine-tuned accuracy on test" in text
    assert f"{report.adaptive.spearman:.3f}" in text
    again = benchmark.correlation_report(*parts, candidates=4, epochs=1)
    assert again.adaptive == report.adaptive


@pytest.mark.parametrize("wrong", [{"candidates": 1, "epochs": 1}, {"candidates": 3, "epochs": 0}])
def test_impossible_sizes(benchmark: Any, parts: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least 2 candidates and 1 epoch"):
        benchmark.correlation_report(*parts, **wrong)
