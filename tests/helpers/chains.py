"""Networks of convolutions in a row, with a channel group after each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.constraints import Constraints
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.transform.stages import Cost, Couple


class Chain(nn.Sequential):
    """3x3 convolutions in a row, a channel group after each, every second at half the
    resolution."""

    def __init__(self, widths: Sequence[int]) -> None:
        sizes = [1, *widths]
        layers = [
            nn.Conv2d(a, b, 3, 1 + i % 2, 1) for i, (a, b) in enumerate(itertools.pairwise(sizes))
        ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


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
