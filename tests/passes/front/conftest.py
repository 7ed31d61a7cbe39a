"""Small networks, and an evaluator that judges widths by a formula instead of images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.models.data import load_data
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.constraints import Constraints
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.front.explore import Explore
from pruneopt.passes.front.outcome import FrontOutcome
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.evaluators.evaluator import Evaluator
from pruneopt.passes.search.evaluators.judge import Judge, Judged, Trial
from pruneopt.passes.search.searchers.space import Proposal
from pruneopt.passes.transform.stages import Cost, Couple

Explored = Callable[..., tuple[State, FrontOutcome]]


@dataclass(frozen=True)
class Formula(Evaluator):
    """A score of known form: groups differ in how much their loss matters, and how steeply."""

    name: ClassVar[str] = "formula"
    summary: ClassVar[str] = "for tests"
    kind_of: int = option(0, "which formula")

    def open(self, trial: Trial) -> Judge:
        return ByFormula(trial, self.kind_of)


class ByFormula(Judge):
    """Counts what it judged."""

    judged: ClassVar[int] = 0

    def __init__(self, trial: Trial, seed: int) -> None:
        random = np.random.default_rng([seed, 17])
        self.full = trial.space.cost.full
        self.weight = random.lognormal(-2, 1.2, len(self.full))
        self.power = random.uniform(1, 4, len(self.full))

    def judge(self, proposal: Proposal) -> Judged:
        type(self).judged += 1
        loss = float((self.weight * (1 - proposal.widths / self.full) ** self.power).sum())
        return Judged(0.9 * float(np.exp(-1.5 * loss)))

    def describe(self) -> str:
        return "a formula"


class Chain(nn.Sequential):
    """3x3 convolutions in a row, a channel group after each, every second at half the
    resolution."""

    def __init__(self, widths: Sequence[int]) -> None:
        sizes = [1, *widths]
        layers = [
            nn.Conv2d(a, b, 3, 1 + i % 2, 1) for i, (a, b) in enumerate(itertools.pairwise(sizes))
        ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


@pytest.fixture(scope="session")
def workload() -> Workload:
    return load_data("digits?limit=300", input_shape=(1, 1, 8, 8))


def chain_state(
    widths: Sequence[int],
    workload: Workload | None = None,
    *,
    budgets: Sequence[str] = (),
    tie: Sequence[str] = (),
    seed: int = 2,
    **fields: Any,
) -> State:
    """The state of a `Chain` after couple and cost; ``seed`` makes its weights."""
    torch.manual_seed(seed)
    graph = capture(Chain(widths).eval(), torch.zeros(2, 1, 8, 8))
    fields["constraints"] = Constraints.parse(tie=tie)
    state = State(original=graph, graph=graph.copy(), workload=workload, **fields)
    state.budgets = [parse_budget(text) for text in budgets]
    for step in (Couple(), Cost()):
        step.run(state)
    return state


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
    """How many structures the formula has judged so far."""
    return lambda: ByFormula.judged
