"""Cutting a network to budgets, on time too, and timing it at several widths in turns, for
`latency_search.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from pruneopt import BudgetError, Graph, PassManager, Result, Workload, parse_target
from pruneopt.extend import CostModel, Instrument, Pass, State, couple, parse_budget, parse_pipeline
from pruneopt.passes.latency.database import Database
from pruneopt.passes.latency.deliver import Delivery, in_rounds
from pruneopt.passes.latency.learn import Learner, learn
from pruneopt.passes.latency.probe import Probe
from pruneopt.passes.latency.regions import find_regions
from pruneopt.passes.timing.timing import Measurement, Rounds, take_rounds

__all__ = ["TARGET", "Cut", "Stand", "pair"]

TARGET = "ort-cpu"
"""onnxruntime on a processor: one input, one thread, single precision."""


def pair(rounds: Rounds, slow: int, fast: int) -> dict[str, Any]:
    """Return a speed-up with its interval, for JSON."""
    found = asdict(rounds.speedup(slow, fast))
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in found.items()
    }


@dataclass(frozen=True)
class Cut:
    """What came of a budget.

    Attributes:
        result: the cut network; None where the budget was missed.
        row: for JSON: the shares that are left of FLOPs and parameters, the widths, predicted and
            measured milliseconds and the limit of every round of a budget on time, or why it was
            missed.
    """

    result: Result | None
    row: dict[str, Any]


@dataclass
class _Watch(Instrument):
    """The cost model of a run, and the widths that were decided on."""

    cost: CostModel | None = None
    widths: list[int] = field(default_factory=list)

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        self.cost = state.cost
        if step.name == "slice":
            self.widths = state.need_cost().widths(state.plan or {}).tolist()


class Stand:
    """A network on the target, at any widths: the file at some widths is made from those of a few
    exports."""

    def __init__(self, graph: Graph, options: argparse.Namespace) -> None:
        self.graph, self.options = graph, options
        self.cost = CostModel(graph, couple(graph))
        self.target = parse_target(TARGET)
        self.probe = Probe(self.cost, self.target)
        self.full: list[int] = self.cost.full.tolist()

    def timed(self, rows: Sequence[Sequence[int]]) -> Rounds:
        """Time the network at several widths in turns."""
        sessions = [self.probe.session(np.array(row)) for row in rows]
        try:
            return take_rounds([session.step for session in sessions], seconds=self.options.seconds)
        finally:
            for session in sessions:
                session.close()

    def prepare(self) -> int:
        """Measure sub-networks for predictions where fewer than enough are known; how many are
        known then."""
        options = self.options
        with Database(options.db) as known:
            done = len(known.measured(TARGET, find_regions(self.cost, self.target.batch)).samples)
            if done < options.enough:
                print(
                    f"{self.graph.name}: measuring sub-networks for {options.minutes:g} minutes",
                    flush=True,
                )
                found = learn(
                    self.cost, self.target, known, minutes=options.minutes, probe=self.probe
                )
                done = len(found.measured.samples)
        return done

    def cut(
        self,
        choose: Pass,
        budget: str,
        *,
        workload: Workload | None = None,
        seed: int = 0,
        anchor: tuple[Sequence[int], float] | None = None,
    ) -> Cut:
        """Cut the network to a budget; one on time is kept as `pruneopt compile` keeps it, in up to
        four rounds.

        ``anchor``: widths, and their milliseconds. Budgets on time are met as if these still took
        as long: rounds of a search lie minutes apart, and what the machine became slower or faster
        by meanwhile cancels.
        """
        watch, wanted = _Watch(), parse_budget(budget)
        row: dict[str, Any] = {"budget": budget}
        instruments: list[Instrument] = [watch]
        delivery = None
        if anchor is not None:

            def measure(
                text: str, networks: Sequence[tuple[Graph, Mapping[str, Tensor]]]
            ) -> list[Measurement]:
                return self._beside(anchor, [self.full, watch.widths][: len(networks)])

            delivery = Delivery(Learner(self.options.db, 0.0), [wanted], measure=measure)
            instruments = [delivery, watch]  # the last one is told first
        manager = PassManager(
            [*parse_pipeline("couple,cost"), choose, *parse_pipeline("slice")],
            instruments=instruments,
        )
        result = None
        try:
            result = in_rounds(
                lambda: manager.run(self.graph, budgets=[wanted], workload=workload, seed=seed),
                delivery,
            )
        except BudgetError as error:
            row["missed"] = str(error)
        row["rounds"] = [] if delivery is None else [_round(items[0]) for items in delivery.rounds]
        if result is not None:
            for unit in ("flops", "params"):
                share = float(self.cost.measure(unit, watch.widths)) / self.cost.original(unit)
                row[f"{unit}_share"] = round(share, 5)
            row["widths"] = watch.widths
        return Cut(result, row)

    def _beside(
        self, anchor: tuple[Sequence[int], float], rows: Sequence[Sequence[int]]
    ) -> list[Measurement]:
        """Return times as they were when the anchor's was taken."""
        rounds = self.timed([*rows, anchor[0]])
        *found, own = [rounds.measurement(index) for index in range(len(rows) + 1)]
        by = anchor[1] / 1e3 / own.seconds
        return [replace(m, seconds=m.seconds * by, low=m.low * by, high=m.high * by) for m in found]


def _round(item: Any) -> dict[str, float]:
    names = {"predicted_ms": item.predicted, "measured_ms": item.measured, "limit_ms": item.limit}
    return {name: round(1e3 * value, 4) for name, value in names.items()}
