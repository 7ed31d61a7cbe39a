"""The pass ``explore``: many structures between small and large are judged, and what nothing
dominates is the front.

It decides nothing and changes nothing: `FrontPoint` cuts to a point of a front.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from pruneopt.digest import weights_digest
from pruneopt.errors import UserError
from pruneopt.ir.text.printer import print_graph
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import TABLE, on_target, target_of
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.analysis.importance.importance import Criterion, score_units
from pruneopt.passes.front.front_outcome import FrontOutcome, Tried, objectives
from pruneopt.passes.options.configured import option
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State, without_data
from pruneopt.passes.search.evaluators.evaluator import AdaptiveStatistics, Evaluator
from pruneopt.passes.search.evaluators.scorer import Scorer, ScoringContext
from pruneopt.passes.search.journal import Journal
from pruneopt.passes.search.rankings.ranking import Accuracy
from pruneopt.passes.search.search_loop import JOURNAL, batch_within
from pruneopt.passes.search.searchers.by_levels import ByLevels
from pruneopt.passes.search.searchers.explorer import Explorer, Structure
from pruneopt.passes.search.searchers.nsga2 import NSGA2
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.searcher import FrontSearcher, Searcher, SearchMethod
from pruneopt.passes.search.searchers.space import Proposal, Space
from pruneopt.passes.selection.alignment import Alignment, alignment_of
from pruneopt.passes.selection.prune import BUDGET, MINIMUM, add_budgets, aims_of
from pruneopt.passes.selection.rounding import ROUND, RoundTo, rounding
from pruneopt.passes.targets.target import parse_target

__all__ = ["Exploration", "Explore", "canonical_unit"]

GRID = tuple(range(1, 101))
LEAST_POPULATION = 8


@dataclass
class Exploration:
    """Asks, judges and tells, or takes the answers from the journal.

    Attributes:
        explorer: what proposes structures.
        open_scorer: called with the first structure that the journal does not answer.
        batch_size_at: how many structures to judge side by side from a number on; scores do not
            depend on it.
    """

    explorer: Explorer
    open_scorer: Callable[[], Scorer]
    batch_size_at: Callable[[int], int]
    journal: Journal
    outcome: FrontOutcome
    tell: Callable[[str, int, int], None]
    _scorer: Scorer | None = None

    def run(self, candidates: int) -> FrontOutcome:
        """Judge so many structures; on Ctrl-C what there is so far.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first was judged.
        """
        try:
            self._explore(self._recalled(), candidates)
        except KeyboardInterrupt:
            if not self.outcome.candidates:
                raise
            self.outcome.interrupted = True
        return self.outcome

    def _recalled(self) -> list[Tried]:
        try:
            found = [Tried(**entry) for entry in self.journal.entries]
        except TypeError as error:
            raise UserError(
                f"{self.journal.path} holds a line that is no result ({error}): delete it"
            ) from error
        if [item.index for item in found] != list(range(len(found))):
            raise UserError(f"{self.journal.path} lacks a candidate: delete the file to start anew")
        return found

    def _explore(self, recalled: Sequence[Tried], candidates: int) -> None:
        done = self.outcome.candidates
        while len(done) < candidates:
            number = self.explorer.generation
            generation = self.explorer.ask()
            if not generation:
                self.outcome.notes.append(
                    f"there are no more structures to judge: {len(done)} are all that are new"
                )
                return
            asked = generation[: candidates - len(done)]
            known = [
                self._checked(*pair) for pair in zip(recalled[len(done) :], asked, strict=False)
            ]
            done.extend(known)
            self._judge_all(number, asked[len(known) :], candidates)
            if len(done) == candidates:
                return
            widths = np.stack([structure.widths for structure in generation])
            values = [item.value for item in done[-len(generation) :]]
            self.explorer.tell(objectives(values, widths, self.outcome.against, self.outcome.cost))

    def _judge_all(self, generation: int, structures: Sequence[Structure], candidates: int) -> None:
        """Judge structures of a generation side by side, as many as the evaluator likes, but for a
        minute at most."""
        done, pace = self.outcome.candidates, math.inf
        while structures:
            self._scorer = self._scorer or self._opened(candidates)
            count = batch_within(self.batch_size_at(len(done)), pace)
            found = self._judged(generation, structures[:count], self._scorer)
            structures, pace = structures[count:], found[-1].seconds
            for item in found:
                self.journal.append(asdict(item))
            done.extend(found)
            for item in found:
                self._progress(item, candidates)

    def _opened(self, candidates: int) -> Scorer:
        scorer = self.open_scorer()
        self.outcome.averaging = scorer.describe()
        self.tell(
            f"structures are judged by {self.outcome.averaging}",
            len(self.outcome.candidates),
            candidates,
        )
        return scorer

    def _checked(self, item: Tried, structure: Structure) -> Tried:
        """Return a line of the journal, which must be the structure that is asked for now."""
        if item.widths != self._widths(structure):
            raise UserError(
                f"candidate {item.index} in {self.journal.path} is not what this search proposes: "
                "it was written by "
                "another version; delete the file to start anew"
            )
        return item

    def _judged(
        self, generation: int, structures: Sequence[Structure], scorer: Scorer
    ) -> list[Tried]:
        started = time.perf_counter()
        found = scorer.score_all([Proposal(structure.widths) for structure in structures])
        seconds = (time.perf_counter() - started) / len(found)
        first = len(self.outcome.candidates)
        return [
            Tried(
                index,
                generation,
                item.origin,
                self._widths(item),
                judged.score,
                judged.signal,
                seconds,
            )
            for index, (item, judged) in enumerate(zip(structures, found, strict=True), first)
        ]

    def _widths(self, structure: Structure) -> dict[str, int]:
        return dict(zip(self.outcome.cost.groups, structure.widths.tolist(), strict=True))

    def _progress(self, item: Tried, candidates: int) -> None:
        unit, cost = self.outcome.against[0], self.outcome.cost
        row = np.array([item.widths[name] for name in cost.groups])
        share = float(cost.measure(unit, row)) / cost.original(unit)
        text = (
            f"candidate {item.index} ({item.origin}) scores {item.score:.4f} at {share:.1%} of "
            f"the {unit}"
        )
        self.tell(text, item.index + 1, candidates)


@dataclass(frozen=True)
class Explore(Pass):
    """Find the Pareto front of accuracy against one cost or several, by NSGA-II or any other
    searcher."""

    name: ClassVar[str] = "explore"
    summary: ClassVar[str] = (
        "find the Pareto front of accuracy against costs (NSGA-II); decides nothing"
    )

    against: tuple[str, ...] = option(
        ("flops",), f"cost units: {', '.join(unit.name for unit in TABLE)}; the first spreads"
    )
    budget: tuple[str, ...] = option((), BUDGET)
    candidates: int = option(200, "structures to judge")
    population: int = option(20, "structures in a generation")
    least: float | None = option(
        None, "the smallest share of the first cost that is explored (a fifth of the largest)"
    )
    most: float = option(1.0, "the largest share of the first cost that is explored")
    searcher: SearchMethod = option(
        NSGA2(), "what proposes structures after the first generation, the same for all"
    )
    evaluator: Evaluator = option(AdaptiveStatistics(), "what judges structures")
    criterion: Criterion = option(L1Norm(), "which channels of a group go: those it scores lowest")
    round_to: RoundTo = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)
    seed: int | None = option(None, "decides the structures and batches (the run's seed)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.against:
            raise UserError("against names no cost: give one or several, such as flops")
        if self.population < LEAST_POPULATION:
            raise UserError(f"population={self.population} must be at least {LEAST_POPULATION}")
        if self.candidates < self.population:
            raise UserError(
                f"candidates={self.candidates} must be at least the population, {self.population}"
            )
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")
        if len(self.against) > 1 and not isinstance(self.searcher, FrontSearcher):
            raise UserError(
                f"the searcher {self.searcher.name} trades accuracy against one cost, and against "
                f"names {', '.join(self.against)}: nsga2 and random take several"
            )
        if not self.evaluator.batch_independent:
            raise UserError(
                "a race gives up what scores below the best so far, as every small network does: "
                "leave race out here"
            )

    @property
    def needs_data(self) -> str | None:
        return self.name

    def requires(self, state: State) -> str | None:
        if state.uncut is not None:
            return "the network is already cut: explore before slice"
        if state.coupling is None:
            return "run couple first"
        return "run cost first" if state.cost is None else without_data(state)

    def finishing_passes(self, seed: int) -> list[Pass]:
        """Return the passes that give a delivered network what the judged ones had, where the run's
        seed is this."""
        return self.evaluator.finishing_passes(seed if self.seed is None else self.seed)

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        state.records[self.name] = self.prepare(state).run(self.candidates)
        return False

    def prepare(self, state: State) -> Exploration:
        """Return the exploration of a state, to be continued from its journal where there is one.

        Raises:
            BudgetError: a budget, or a range, that cannot be reached.
            UserError: an unknown cost, an impossible option, no data, or a journal of another
                search.
        """
        seed = state.seed if self.seed is None else self.seed
        cost = state.need_cost()
        units = tuple(unit_of(text, cost) for text in self.against)
        if len(set(units)) < len(units):
            raise UserError(f"against names {', '.join(units)}: each cost counts once")
        self.evaluator.check(Accuracy())
        space = self.space(state, seed)
        reach = Reach(space, units[0], self.least, self.most)
        explorer = self._explorer(reach, seed)
        size = int(cost.measure("bytes", cost.full))
        path = None if state.run_dir is None else state.run_dir / JOURNAL
        return Exploration(
            explorer,
            lambda: self.evaluator.open(ScoringContext(state, space, seed)),
            lambda index: self.evaluator.batch_size_at(index, 1, size),
            Journal(path, self._identity(state, units, space, seed)),
            FrontOutcome(cost, units, "from the journal", explorer.describe()),
            state.progress,
        )

    def _explorer(self, reach: Reach, seed: int) -> Explorer:
        if isinstance(self.searcher, FrontSearcher):
            return self.searcher.explore(reach, self.population, seed)
        assert isinstance(self.searcher, Searcher)
        return ByLevels(self.searcher, reach, self.population, seed)

    def space(self, state: State, seed: int) -> Space:
        """Return what is searched: every group that moves by itself has a width of its own."""
        workload = state.need_workload(self.name)
        scores = score_units(
            state.need_coupling(),
            state.graph.weights,
            self.criterion,
            normalise=True,
            seed=seed,
            workload=workload,
            batch_size=self.evaluator.settings(seed, state.device).batch_size,
            device=state.device,
        )
        return Space(
            state.need_coupling(),
            state.need_cost(),
            state.budgets,
            scores,
            grid=GRID,
            round_to=rounding(state, self.round_to),
            minimum=self.minimum,
            bounds=state.limits.bounds,
            tied=state.limits.tied,
        )

    def _identity(
        self, state: State, units: Sequence[str], space: Space, seed: int
    ) -> dict[str, object]:
        """Return what makes an exploration the one it is: everything its result depends on, but for
        its length."""
        workload = state.need_workload(self.name)
        aligned = alignment_of(self.round_to, state.graph, state.device)
        ends = np.stack([space.allowed.lowest, space.allowed.highest])
        plain = replace(
            self, budget=(), seed=None, candidates=max(type(self).candidates, self.population)
        )
        return {
            "the graph": print_graph(state.need_coupling().graph, locations=False),
            "the weights": weights_digest(state.graph.weights),
            "the data": {**workload.describe(), "task": workload.task},
            "the options": {
                "pass": pass_text(plain),
                **({"round-to": aligned.target} if isinstance(aligned, Alignment) else {}),
                **aims_of(state),
            },
            "the costs": {unit: space.cost.measure(unit, ends).tolist() for unit in units},
            "the seed": seed,
            "the device": state.device.partition(":")[0],
            "PyTorch": torch.__version__,
        }


def canonical_unit(unit: str) -> str:
    """Return a unit on a target with the target's one name; `UserError` where it names none."""
    plain, _, target = unit.partition("@")
    return on_target(str(parse_target(target)), plain)


def unit_of(text: str, cost: CostModel) -> str:
    """Return the cost unit that a user's word stands for; letters of the plain ones may be large or
    small.

    Raises:
        UserError: no such unit, or one that this cost model was not given.
    """
    unit = text.lower() if text.lower() in {unit.name for unit in TABLE} else text
    if target_of(unit) is not None:
        unit = canonical_unit(unit)
    cost.measure(unit, cost.full)
    return unit
