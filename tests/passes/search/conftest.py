"""A network with every kind of constraint, and searches over a tiny one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.states import coupled
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.abn import AdaptiveBN
from pruneopt.passes.search.evaluators.evaluator import AdaptiveStatistics
from pruneopt.passes.search.outcome import Outcome
from pruneopt.passes.search.searchers.random_search import RandomSearch


class Mixed(nn.Module):
    """A residual stream, a grouped convolution (blocks), a depthwise one, and a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 32, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.back = nn.Conv2d(32, 24, 1, bias=False)
        self.wide = nn.Conv2d(24, 50, 1)
        self.head = nn.Linear(50, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.depthwise(self.grouped(x))))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


@pytest.fixture(scope="session")
def mixed() -> State:
    """The state of `Mixed` after couple and cost."""
    torch.manual_seed(1)
    graph = capture(Mixed(), torch.zeros(2, 1, 8, 8))
    return coupled(graph, None)


def made_of(**options: Any) -> AdaptiveBN:
    """Return the pass abn, with the options of its parts beside its own as in a pipeline."""
    mine = {field.name for field in dataclasses.fields(AdaptiveBN)}
    parts: dict[str, Any] = {}
    kinds: dict[str, type[RandomSearch | AdaptiveStatistics]] = {
        "searcher": RandomSearch,
        "evaluator": AdaptiveStatistics,
    }
    for key, kind in kinds.items():
        names = {field.name for field in dataclasses.fields(kind)} - mine
        parts[key] = kind(**{name: options.pop(name) for name in names & options.keys()})
    return AdaptiveBN(**{**parts, **options})


FAST: Mapping[str, Any] = {
    "candidates": 5,
    "calibration_batches": 4,
    "batch_size": 32,
    "subval_limit": 150,
}


@pytest.fixture
def abn() -> Callable[..., AdaptiveBN]:
    """``abn(**options)`` makes the pass."""
    return made_of


@pytest.fixture
def search(trained: Graph, workload: Workload) -> Callable[..., tuple[State, Outcome]]:
    """``search(run_dir, progress=..., **options)`` runs abn at half the FLOPs on the digits."""

    def run(
        run_dir: Path | None = None, budgets: tuple[str, ...] = ("50%FLOPs",), **options: Any
    ) -> Any:
        fields = {
            key: options.pop(key)
            for key in ("progress", "seed", "workload", "graph")
            if key in options
        }
        graph, data = fields.pop("graph", trained), fields.pop("workload", workload)
        state = coupled(
            graph, data, run_dir=run_dir, budgets=[parse_budget(text) for text in budgets], **fields
        )
        if "own_seed" in options:
            options["seed"] = options.pop("own_seed")
        made_of(**{**FAST, **options}).run(state)
        return state, state.records["abn"]

    return run


@pytest.fixture(scope="session")
def chain() -> Callable[..., State]:
    """``chain(widths)``: the state of 1x1 convolutions in a row, a channel group after each, on one
    pixel."""

    def make(widths: Sequence[int]) -> State:
        torch.manual_seed(2)
        sizes = [3, *widths]
        layers = [nn.Conv2d(a, b, 1, bias=False) for a, b in itertools.pairwise(sizes)]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(sizes[-1], 5, bias=False))
        return coupled(capture(network.eval(), torch.zeros(1, 3, 1, 1)), None)

    return make
