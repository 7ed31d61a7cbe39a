"""Networks analysed, and the state of a run up to where tests begin."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from nets import published
from torch import Tensor

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers.space import Space
from pruneopt.passes.transform.stages import Cost, Couple


@cache
def coupling_of(name: str, classes: int = 1000) -> Coupling:
    """Return the coupling of a network of the model zoo or of torchvision."""
    module, shape = published(name, classes)
    return couple(capture(module, torch.randn(shape)))


def coupled(graph: Graph, workload: Workload | None = None, **fields: Any) -> State:
    """Return the state after couple and cost; ``fields`` are others of `State`."""
    state = State(original=graph, graph=graph.copy(), workload=workload, **fields)
    for step in (Couple(), Cost()):
        step.run(state)
    return state


def space_of(state: State, *budgets: str, **options: Any) -> Space:
    """Return the search space of a coupled state, with L1 scores."""
    coupling = state.need_coupling()
    scores = score_units(coupling, state.graph.weights, "l1")
    return Space(
        coupling, state.need_cost(), [parse_budget(text) for text in budgets], scores, **options
    )


def outputs(graph: Graph, x: Tensor) -> Tensor:
    """Return what the module of a graph gives."""
    with torch.no_grad():
        found: Tensor = build_module(graph, graph.weights)(x)
    return found
