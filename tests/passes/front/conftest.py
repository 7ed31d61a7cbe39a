"""Small networks, and an evaluator that judges widths by a formula instead of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers.chains import chain_state

from pruneopt.models.data import load_data
from pruneopt.models.workload import Workload
from pruneopt.passes.front.explore import Explore
from pruneopt.passes.front.front_outcome import FrontOutcome
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.evaluators.evaluator import Evaluator
from pruneopt.passes.search.evaluators.scorer import Scorer, ScoringContext, StructureScore
from pruneopt.passes.search.searchers.space import Proposal

Explored = Callable[..., tuple[State, FrontOutcome]]


@dataclass(frozen=True)
class Formula(Evaluator):
    """A score of known form: groups differ in how much their loss matters, and how steeply."""

    name: ClassVar[str] = "formula"
    summary: ClassVar[str] = "for tests"
    kind_of: int = option(0, "which formula")

    def open(self, context: ScoringContext) -> Scorer:
        return ByFormula(context, self.kind_of)


class ByFormula(Scorer):
    """Counts what it judged."""

    judged: ClassVar[int] = 0

    def __init__(self, context: ScoringContext, seed: int) -> None:
        random = np.random.default_rng([seed, 17])
        self.full = context.space.cost.full
        self.weight = random.lognormal(-2, 1.2, len(self.full))
        self.power = random.uniform(1, 4, len(self.full))

    def score(self, proposal: Proposal) -> StructureScore:
        type(self).judged += 1
        loss = float((self.weight * (1 - proposal.widths / self.full) ** self.power).sum())
        return StructureScore(0.9 * float(np.exp(-1.5 * loss)))

    def describe(self) -> str:
        return "a formula"


@pytest.fixture(scope="session")
def workload() -> Workload:
    return load_data("digits?limit=300", input_shape=(1, 1, 8, 8))


@pytest.fixture(scope="session")
def chain(workload: Workload) -> Callable[..., State]:
    """``chain(widths, ...)``: the state of a `Chain`, with data."""

    def make(widths: Sequence[int] = (16, 24, 24, 32, 32), **options: Any) -> State:
        return chain_state(widths, workload, **options)

    return make


@pytest.fixture
def explored(chain: Callable[..., State]) -> Explored:
    """``explored(run_dir, state=..., **options)`` runs explore on a chain, judged by `Formula`."""

    def run(
        run_dir: Path | None = None, state: State | None = None, **options: Any
    ) -> tuple[State, FrontOutcome]:
        fields = {key: options.pop(key) for key in ("budgets", "progress", "tie") if key in options}
        found = chain(**fields) if state is None else state
        found.run_dir = run_dir
        Explore(**{"evaluator": Formula(), "candidates": 30, "population": 10, **options}).run(
            found
        )
        outcome = found.records["explore"]
        assert isinstance(outcome, FrontOutcome)
        return found, outcome

    return run


@pytest.fixture(scope="session")
def formula() -> type[Formula]:
    return Formula


@pytest.fixture
def judged() -> Callable[[], int]:
    """Return how many structures the formula has judged so far."""
    return lambda: ByFormula.judged
