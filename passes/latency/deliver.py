"""Budgets on the time on targets: predictions for whatever decides, and the network that comes out
measured.

`WithTimes` gives the cost model of a run its predictors. `Delivery` also measures the network as
soon as it is cut, side by side with the original; `Observation` does that on targets that no budget
limits. Where the network misses a budget, predictions of that target are corrected by what was
measured, and the run begins again: `TooSlow` tells the caller. The rounds are written down, so that
a run that was stopped goes on in the round where it was, with the corrections it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from pruneopt.errors import BudgetError, UserError
from pruneopt.files import write_json
from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.cost.budget import Budget, format_value
from pruneopt.passes.analysis.cost.units import on_target, target_of
from pruneopt.passes.latency.learn import Learner
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.instrument import Instrument
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.targets.target import parse_target
from pruneopt.passes.timing.timing import Measurement, measure
from pruneopt.reading import read_record

__all__ = [
    "MOST_ROUNDS",
    "ROUNDS_FILE",
    "Delivered",
    "Delivery",
    "Observation",
    "TooSlow",
    "WithTimes",
    "check_targets",
    "in_rounds",
    "targets_of",
]

T = TypeVar("T")
MOST_ROUNDS = 4
MARGIN = 1.005
"""A correction goes this much further than what was measured: a network exactly on its budget would
miss it half the time.
"""
ROUNDS_FILE = "latency-rounds.json"

Measure = Callable[[str, Sequence[tuple[Graph, Mapping[str, Tensor]]]], list[Measurement]]
"""Measures networks side by side on the target of a text."""


class TooSlow(Exception):
    """The cut network missed a budget on a target; predictions were corrected, and the run is to
    begin again."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """Times on one target in one round, in seconds: predicted and measured, before (the original)
    and after.

    ``limit``: None where no budget speaks of the target.
    """

    target: str
    limit: float | None
    predicted_before: float
    predicted: float
    measured_before: float
    measured: float
    low: float
    high: float
    noisy: str | None

    @property
    def met(self) -> bool:
        """True where the measured network is inside the budget."""
        return self.limit is None or self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class _Rounds:
    """What the file of measured rounds holds."""

    originals: dict[str, float]
    rounds: list[list[Delivered]]


def targets_of(budgets: Sequence[Budget]) -> list[str]:
    """Return the texts of the targets that budgets speak of, each once."""
    found = (target_of(budget.unit) for budget in budgets)
    return list(dict.fromkeys(target for target in found if target is not None))


def check_targets(texts: Sequence[str]) -> None:
    """Raise `UserError` for a target that is not here, or whose times cannot be predicted."""
    for text in texts:
        target = parse_target(text)
        target.need()
        if getattr(target, "dtype", None) == "int8":
            raise UserError(
                f"times on {text} are not predicted: int8 needs calibration for every network; "
                "give the budget for "
                "another precision, and measure with `pruneopt quantise` and `pruneopt bench`"
            )


class WithTimes(Instrument):
    """Gives the cost model its predictors, right after the pass that makes it.

    Args:
        learner: makes them.
        budgets: all of the run and of its passes.
    """

    def __init__(self, learner: Learner, budgets: Sequence[Budget]) -> None:
        self.learner, self.budgets = learner, tuple(budgets)
        self.targets = targets_of(budgets)
        check_targets(self.targets)

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        if step.name != "cost":
            return
        self.learner.progress, self.learner.seed = state.progress, state.seed
        state.need_cost().times = self.learner
        for budget in self.budgets:
            target = target_of(budget.unit)
            if target is not None and not budget.relative:
                self.learner.limits[target] = budget.value / 1e9


class Delivery(WithTimes):
    """Measures the cut network, and begins another round where it misses a budget.

    Args:
        learner, budgets: see `WithTimes`.
        folder: where the rounds are written down, and found again by a run that goes on; None for
            nowhere.
        measure: takes the times.
    """

    def __init__(
        self,
        learner: Learner,
        budgets: Sequence[Budget],
        folder: Path | None = None,
        measure: Measure | None = None,
    ) -> None:
        super().__init__(learner, budgets)
        self.rounds: list[list[Delivered]] = []
        """The times that were measured, by round."""
        self._measure = measure or side_by_side
        self._path = None if folder is None else folder / ROUNDS_FILE
        self._originals, self._done = self._read()

    def _read(self) -> tuple[dict[str, float], list[list[Delivered]]]:
        """Read what an earlier process has measured: the seconds of the original by target, and its
        rounds."""
        if self._path is None or not self._path.exists():
            return {}, []
        try:
            found = read_record(self._path, "record of latencies", _Rounds)
        except UserError as error:
            raise UserError(
                f"{self._path} is damaged: remove it to measure again ({error})"
            ) from error
        return found.originals, found.rounds

    def _write(self) -> None:
        if self._path is not None:
            rounds = [[asdict(item) for item in items] for items in self.rounds]
            write_json(self._path, {"originals": self._originals, "rounds": rounds})

    @property
    def corrections(self) -> dict[str, float]:
        """The factors that predictions are multiplied with, by the targets' texts."""
        return self.learner.corrections

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        super().after_pass(index, step, state)
        if step.name == "cost":
            self._measure_originals(state)
        elif step.name == "slice" and self.targets:
            self._judge(state)

    def _measure_originals(self, state: State) -> None:
        """Measure the original's times, of which relative budgets are shares."""
        for budget in self.budgets:
            text = target_of(budget.unit)
            if text is not None and budget.relative:
                if text not in self._originals:
                    state.progress(f"measuring the original on {text}")
                    original = (state.original, state.original.weights)
                    self._originals[text] = self._measure(text, [original])[0].seconds
                    self._write()
                state.need_cost().before[budget.unit] = 1e9 * self._originals[text]
                self.learner.limits[text] = budget.value * self._originals[text]

    def _judge(self, state: State) -> None:
        """Take this round's times, and decide whether there is another."""
        if len(self.rounds) < len(self._done):
            found = self._done[len(self.rounds)]
        else:
            found = [self._delivered(text, state) for text in self.targets]
        self.rounds.append(found)
        self._write()
        if all(item.met for item in found):
            return
        if len(self.rounds) == MOST_ROUNDS:
            raise self.missed()
        state.progress("the cut network missed a budget: once more with corrected predictions")
        for item in found:
            if not item.met:
                self.learner.correct(item.target, MARGIN * item.measured / item.predicted)
        raise TooSlow

    def missed(self) -> BudgetError:
        """Return the error that names the best that was reached."""
        best = min(
            self.rounds,
            key=lambda items: max(item.measured / (item.limit or math.inf) for item in items),
        )
        reached = ", ".join(
            format_value(on_target(item.target), 1e9 * item.measured) for item in best
        )
        texts = ", ".join(
            budget.text for budget in self.budgets if target_of(budget.unit) is not None
        )
        many = f"{len(self.rounds)} networks were" if len(self.rounds) > 1 else "one network was"
        noise = next((item.noisy for item in best if item.noisy), None)
        return BudgetError(
            f"{texts} was missed: {many} cut and measured, and the best took {reached}"
            f"{f' ({noise})' if noise else ''}; give a larger budget, or more --latency-minutes"
        )

    def _delivered(self, text: str, state: State) -> Delivered:
        cost, unit = state.need_cost(), on_target(text)
        before, after = cost.measure(unit, [cost.full, cost.widths(state.plan or {})]) / 1e9
        limit = min(budget.limit(cost) for budget in self.budgets if budget.unit == unit) / 1e9
        return _delivered(text, state, limit, (float(before), float(after)), self._measure)


class Observation(Instrument):
    """Measures the cut network on targets that no budget limits.

    Args:
        predicted: by the targets' texts, the seconds that were predicted of the original and of the
            cut network.
        measure: takes the times.

    Attributes:
        rounds: what was measured, as `Delivery.rounds`: one round, once the network is cut.
    """

    def __init__(
        self, predicted: Mapping[str, tuple[float, float]], measure: Measure | None = None
    ) -> None:
        self._predicted, self._measure = dict(predicted), measure or side_by_side
        self.rounds: list[list[Delivered]] = []
        self.corrections: dict[str, float] = {}

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        if step.name == "slice":
            pairs = self._predicted.items()
            self.rounds = [
                [_delivered(text, state, None, pair, self._measure) for text, pair in pairs]
            ]


def _delivered(
    text: str, state: State, limit: float | None, predicted: tuple[float, float], measure: Measure
) -> Delivered:
    """Measure the original and the cut network of a state side by side."""
    state.progress(f"measuring the cut network on {text}")
    networks = [(state.original, state.original.weights), (state.graph, state.graph.weights)]
    before, after = measure(text, networks)
    noisy = after.noisy or before.noisy
    return Delivered(
        text, limit, *predicted, before.seconds, after.seconds, after.low, after.high, noisy
    )


def in_rounds(run: Callable[[], T], delivery: Delivery | None) -> T:
    """Run until the cut network is inside its budgets on targets, and return what the run gives.

    Raises:
        BudgetError: the last round missed them, or corrected predictions say that nothing is fast
            enough.
    """
    while True:
        try:
            return run()
        except TooSlow:
            continue
        except BudgetError as error:
            if delivery is None or not delivery.rounds:
                raise
            raise delivery.missed() from error


def side_by_side(
    text: str, networks: Sequence[tuple[Graph, Mapping[str, Tensor]]]
) -> list[Measurement]:
    """Measure networks in turns on a target, as they would be deployed there."""
    target = parse_target(text)
    sessions = [target.load(graph, weights) for graph, weights in networks]
    try:
        return measure([session.step for session in sessions], clock=sessions[0].clock())
    finally:
        for session in sessions:
            session.close()
