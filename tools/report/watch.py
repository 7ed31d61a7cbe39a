"""Instruments of a compile: the budgets can be reached, and the score at every stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.export import ExportedProgram

from pruneopt.ir.codegen.module import build_module
from pruneopt.models.source import LoadedModel
from pruneopt.models.workload import Workload, top1
from pruneopt.passes.analysis.cost.budget import check_reachable, parse_budget
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.instrument import Instrument
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.regularised.regularised import Regularised
from pruneopt.passes.selection.alignment import alignment_of
from pruneopt.passes.selection.ladders import ladders
from pruneopt.tools.report.report import Score

__all__ = ["Watch", "metric_name", "stopped"]


def stopped(records: Mapping[str, object]) -> bool:
    """Return whether a search was stopped by hand, by the records of a run."""
    return any(getattr(record, "interrupted", False) for record in records.values())


def metric_name(workload: Workload) -> str:
    """Return ``accuracy`` for the share of right classes, ``score`` for a measure of the user's
    own."""
    return "accuracy" if workload.metric is top1 and workload.evaluate is None else "score"


@dataclass
class Watch(Instrument):
    """Sees every state. The budgets are checked as soon as costs are known, before anything is
    scored or trained."""

    loaded: LoadedModel
    workload: Workload | None
    steps: tuple[Pass, ...]
    device: str
    state: State | None = None
    """The last state seen."""
    sliced: Mapping[str, Tensor] = field(default_factory=dict)
    """The weights right after slicing."""
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0
    """Spent on scoring."""

    def before_pass(self, index: int, step: Pass, state: State) -> None:
        self.state = state
        if step.name in ("finetune", "scratch") and stopped(state.records):
            # Whoever stops a search does not want to wait for a training run: deliver what there
            # is.
            raise KeyboardInterrupt
        state.progress(step.label)

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        self.state = state
        if step.name == "cost":
            self._check_budgets(state)
            module = self.loaded.module
            if isinstance(module, ExportedProgram):
                module = build_module(state.original, state.original.weights)
            self._score("original", module)
        elif step.name == "slice":
            self.sliced = dict(state.graph.weights)
            self._score(step.name, build_module(state.graph, state.graph.weights))
        elif step.name != "verify" and (state.uncut is not None or isinstance(step, Regularised)):
            self._score(step.label, build_module(state.graph, state.graph.weights))

    def _check_budgets(self, state: State) -> None:
        """`BudgetError` for a budget below what the widths allowed by the pass's own options can
        reach."""
        if any(getattr(step, "granularity", "") in ("weight", "2:4") for step in self.steps):
            return  # no widths change: the pass itself knows what single weights can reach
        cost = state.need_cost()
        for step in self.steps:
            budgets = [*state.budgets, *map(parse_budget, getattr(step, "budget", ()))]
            if budgets:
                allowed = ladders(
                    state.need_coupling(),
                    cost,
                    round_to=alignment_of(getattr(step, "round_to", 1), state.graph, state.device),
                    minimum=getattr(step, "minimum", 1),
                    bounds=state.limits.bounds,
                    tied=state.limits.tied,
                )
                check_reachable(budgets, cost, minimum=allowed.lowest)

    def _score(self, stage: str, module: nn.Module) -> None:
        if self.workload is not None:
            started = time.perf_counter()
            self.scores.append(
                Score(stage, self.workload.score(module, "test", device=self.device))
            )
            self.seconds += time.perf_counter() - started
