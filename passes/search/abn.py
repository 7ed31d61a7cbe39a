"""The search of EagleEye and FNNP: many random plans, scored after adaptive batch norm; the best few are fine-tuned.

EagleEye (Li et al., ECCV 2020) and its preprint FNNP. A candidate is a random ratio per channel group, moved onto the
budget (`WidthSampler`); the units with the smallest L1 norm go. The cut network gets fresh batch-norm statistics and is
scored on images held out of the training set. The best are fine-tuned for a short while, and the best of those is the
plan. See docs/abn.md for what differs from the published code, and for the switches that bring it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch

from pruneopt.errors import UserError
from pruneopt.ir.printer import print_graph
from pruneopt.passes.analysis.annotate import write_plan
from pruneopt.passes.analysis.criteria import L1Norm
from pruneopt.passes.analysis.importance import Criterion, score_units
from pruneopt.passes.base import State, option
from pruneopt.passes.search.adaptive_bn import MEAN, PAPER
from pruneopt.passes.search.evaluation import Evaluator, Settings
from pruneopt.passes.search.journal import Journal, weights_digest
from pruneopt.passes.search.sampling import RARE, WidthSampler
from pruneopt.passes.transform.prune import BUDGET, MINIMUM, ROUND, Choose, add_budgets, check_leader
from pruneopt.passes.transform.select import budget_report

__all__ = ["JOURNAL", "AdaptiveBN", "Candidate", "Finalist", "Outcome", "Search"]

JOURNAL = "search.jsonl"
TOP = 2

Switch = Literal["leader", "floor", "momentum", "sampling"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One evaluated plan: its number, widths by group, and scores (``stale``: before adaptive batch norm, if asked)."""

    index: int
    widths: dict[str, int]
    score: float
    stale: float | None
    attempts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Finalist:
    """One of the best candidates: its score before adaptive batch norm, and after fine-tuning (None without)."""

    index: int
    stale: float
    tuned: float | None
    seconds: float


@dataclass
class Outcome:
    """What a search found.

    Attributes:
        candidates: all evaluated candidates, by number.
        finalists: the best of them, as far as they were looked at again.
        averaging: how batch-norm statistics were averaged.
        sampling: how plans were drawn.
        interrupted: the search was stopped by hand; ``winner`` is the best until then.
        notes: what the user should know.
    """

    averaging: str
    sampling: str
    candidates: list[Candidate] = field(default_factory=list)
    finalists: list[Finalist] = field(default_factory=list)
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def ranking(self) -> list[Candidate]:
        """Candidates with different widths, the best first; of equals the first."""
        distinct: dict[tuple[int, ...], Candidate] = {}
        for candidate in sorted(self.candidates, key=lambda item: (-item.score, item.index)):
            distinct.setdefault(tuple(candidate.widths.values()), candidate)
        return list(distinct.values())

    @property
    def winner(self) -> Candidate:
        """The best fine-tuned candidate, or the best score where none was fine-tuned."""
        tuned = [item for item in self.finalists if item.tuned is not None]
        if not tuned:
            return self.ranking[0]
        best = max(tuned, key=lambda item: (item.tuned, self._candidate(item.index).score, -item.index))
        return self._candidate(best.index)

    @property
    def winning_finalist(self) -> Finalist | None:
        """The winner's second look: its stale and its fine-tuned score; None if the search was stopped before."""
        return next((item for item in self.finalists if item.index == self.winner.index), None)

    @property
    def acceptance(self) -> float:
        """The share of drawn vectors that became candidates."""
        return len(self.candidates) / max(1, sum(item.attempts for item in self.candidates))

    def _candidate(self, index: int) -> Candidate:
        return next(item for item in self.candidates if item.index == index)


@dataclass
class Search:
    """Runs candidates and finalists, or takes them from the journal."""

    sampler: WidthSampler
    evaluator: Evaluator
    journal: Journal
    outcome: Outcome
    tell: Callable[[str, int, int], None]

    def run(self, candidates: int, top: int, epochs: int, stale: bool) -> Outcome:
        """Score candidates, then look again at the best; on Ctrl-C what there is so far.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first candidate was scored.
        """
        self._recall()
        try:
            self._score_all(candidates, stale)
            self._finish(top, epochs)
        except KeyboardInterrupt:
            if not self.outcome.candidates:
                raise
            self.outcome.interrupted = True
        return self.outcome

    def _recall(self) -> None:
        for entry in self.journal.entries:
            kind: Any = Candidate if "score" in entry else Finalist
            found = self.outcome.candidates if kind is Candidate else self.outcome.finalists
            try:
                found.append(kind(**entry))
            except TypeError as error:
                raise UserError(f"{self.journal.path} holds a line that is no result ({error}): delete it") from error
        if [item.index for item in self.outcome.candidates] != list(range(len(self.outcome.candidates))):
            raise UserError(f"{self.journal.path} lacks a candidate: delete the file to start anew")

    def _score_all(self, count: int, stale: bool) -> None:
        done = self.outcome.candidates
        for index in range(len(done), count):
            candidate = self._evaluate(index, stale)
            self.journal.append(asdict(candidate))
            done.append(candidate)
            self._warn_if_rare()
            best = max(item.score for item in done)
            self.tell(f"candidate {index} scores {candidate.score:.4f}, best {best:.4f}", index + 1, count)

    def _evaluate(self, index: int, stale: bool) -> Candidate:
        started = time.perf_counter()
        draw = self.sampler.draw(index)
        module = self.evaluator.network(draw.plan)
        before = self.evaluator.score(module) if stale else None
        self.evaluator.recalibrate(module)
        score = self.evaluator.score(module)
        widths = dict(zip(self.sampler.cost.groups, draw.widths.tolist(), strict=True))
        return Candidate(index, widths, score, before, draw.attempts, time.perf_counter() - started)

    def _finish(self, top: int, epochs: int) -> None:
        chosen = self.outcome.ranking[: top if epochs else 1]
        known = {item.index for item in self.outcome.finalists}
        for place, candidate in enumerate(chosen, 1):
            if candidate.index in known:
                continue
            finalist = self._second_look(candidate, epochs)
            self.journal.append(asdict(finalist))
            self.outcome.finalists.append(finalist)
            after = "" if finalist.tuned is None else f", {finalist.tuned:.4f} fine-tuned"
            self.tell(f"candidate {candidate.index}: {candidate.score:.4f}{after}", place, len(chosen))

    def _second_look(self, candidate: Candidate, epochs: int) -> Finalist:
        """From the original weights again: stale score, adaptive batch norm, fine-tuning."""
        started = time.perf_counter()
        module = self.evaluator.network(self.sampler.draw(candidate.index).plan)
        stale = self.evaluator.score(module) if candidate.stale is None else candidate.stale
        tuned = None
        if epochs:
            self.evaluator.recalibrate(module)
            self.evaluator.tune(module, epochs)
            tuned = self.evaluator.score(module)
        return Finalist(candidate.index, stale, tuned, time.perf_counter() - started)

    def _warn_if_rare(self) -> None:
        outcome = self.outcome
        if outcome.acceptance < RARE and not outcome.notes:
            outcome.notes.append(
                f"only {outcome.acceptance:.3%} of the drawn vectors hit the budget: change max-ratio, or leave "
                "compat=sampling out"
            )
            self.tell(outcome.notes[0], len(outcome.candidates), len(outcome.candidates))


@dataclass(frozen=True)
class AdaptiveBN(Choose):
    """Search by random plans and adaptive batch norm (EagleEye, FNNP)."""

    name: ClassVar[str] = "abn"
    summary: ClassVar[str] = "random plans on the budget, scored after adaptive batch norm (EagleEye, FNNP)"

    budget: tuple[str, ...] = option((), BUDGET)
    candidates: int = option(100, "plans to score")
    max_ratio: float = option(0.7, "the largest share of channels a group loses")
    min_ratio: float = option(0.0, "the smallest share of channels a group loses")
    calibration_batches: int = option(30, "batches for the batch-norm statistics")
    batch_size: int = option(128, "images in a batch, of calibration and fine-tuning")
    subval_limit: int | None = option(None, "score on this many sub-validation images (all)")
    top: int | None = option(None, "how many of the best are fine-tuned (2)")
    finetune_epochs: int = option(1, "epochs to decide between the best; 0 takes the best score")
    criterion: Criterion = option(L1Norm(), "which channels of a group go: those it scores lowest")  # noqa: RUF009
    round_to: int = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)
    stale: bool = option(False, "also score every candidate before its statistics are recomputed")
    whole: bool = option(False, "the complete network in training mode for the statistics: dropout drops")
    compat: tuple[Switch, ...] = option((), "as the published code does it: leader, floor, momentum, sampling")
    seed: int | None = option(None, "decides the candidates and batches (the run's seed)")

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"candidates": 1, "calibration_batches": 1, "batch_size": 2, "finetune_epochs": 0}
        for key, smallest in least.items():
            if getattr(self, key) < smallest:
                raise UserError(f"{key.replace('_', '-')}={getattr(self, key)} must be at least {smallest}")
        for key in ("subval_limit", "top"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"{key.replace('_', '-')}={getattr(self, key)} must be at least 1")
        for switch in self.compat:
            if switch not in get_args(Switch):
                raise UserError(f"there is no compat switch {switch!r}: use {', '.join(get_args(Switch))}")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")
        if self.top is not None and not self.finetune_epochs:
            raise UserError("top is for fine-tuning: leave it out, or give finetune-epochs of at least 1")
        check_leader("leader" in self.compat, self.criterion, "compat=leader")

    @property
    def needs_data(self) -> str | None:
        return self.name

    def requires(self, state: State) -> str | None:
        needs_data = "it needs data: give --data, or a model file with data()"
        return super().requires(state) or (needs_data if state.workload is None else None)

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        if not state.budgets:
            raise UserError("abn needs a budget to aim at: give one, such as 50%FLOPs")
        search = self.prepare(state)
        outcome = search.run(self.candidates, self.top or TOP, self.finetune_epochs, self.stale)
        before = state.graph.channels
        state.plan = search.sampler.draw(outcome.winner.index).plan
        write_plan(state.graph, state.plan)
        state.records[self.name] = outcome
        state.records["budget"] = budget_report(state.budgets, state.need_cost(), state.plan)
        return state.graph.channels != before

    def prepare(self, state: State) -> Search:
        """The search of a state, continued from its journal where there is one.

        Raises:
            BudgetError: a budget that cannot be reached.
            UserError: an impossible option, no data, or a journal of another search.
        """
        coupling, cost, workload = state.need_coupling(), state.need_cost(), state.need_workload(self.name)
        seed = state.seed if self.seed is None else self.seed
        scores = score_units(
            coupling,
            state.graph.weights,
            self.criterion,
            leader="leader" in self.compat,
            seed=seed,
            workload=workload,
            batch_size=self.batch_size,
            device=state.device,
        )
        sampler = WidthSampler(
            coupling,
            cost,
            state.budgets,
            scores,
            max_ratio=self.max_ratio,
            min_ratio=self.min_ratio,
            round_to=self.round_to,
            minimum=self.minimum,
            floor="floor" in self.compat,
            rejection="sampling" in self.compat,
            seed=seed,
        )
        settings = Settings(
            self.calibration_batches,
            self.batch_size,
            PAPER if "momentum" in self.compat else MEAN,
            self.whole,
            self.subval_limit,
            seed,
            state.device,
        )
        path = None if state.run_dir is None else state.run_dir / JOURNAL
        outcome = Outcome(f"{settings.averaging}, n={settings.batches}", sampler.describe())
        evaluator = Evaluator(state.graph, coupling, workload, settings)
        return Search(sampler, evaluator, Journal(path, self._identity(state, seed)), outcome, state.progress)

    def _identity(self, state: State, seed: int) -> dict[str, object]:
        """What makes a search the one it is: everything its result depends on."""
        workload, coupling = state.need_workload(self.name), state.need_coupling()
        options = asdict(replace(self, budget=(), seed=None))
        options["budgets"] = [(item.unit, item.value, item.relative) for item in state.budgets]
        options["convention"] = state.need_cost().convention.name
        options["groups"] = [(group.name, group.width, group.step, group.frozen is None) for group in coupling.groups]
        metric, loss = workload.metric, workload.loss
        task = [getattr(item, "__qualname__", type(item).__name__) for item in (metric, loss)]
        return {
            "the graph": print_graph(coupling.graph),
            "the weights": weights_digest(state.graph.weights),
            "the data": {**workload.describe(), "task": task},
            "the options": options,
            "the seed": seed,
            "the device": state.device.partition(":")[0],
            "PyTorch": torch.__version__,
        }
