"""A search, whatever it is made of: a searcher proposes, an evaluator judges, a ranking compares, a
journal remembers.

`Searched` is the pass; the published searches are this pass with other parts. The best candidates
may be looked at again: cut from the trained weights and fine-tuned for a short while, and the best
of those is the plan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from pruneopt.digest import weights_digest
from pruneopt.errors import UserError
from pruneopt.ir.text.printer import print_graph
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.analysis.importance.importance import Criterion, score_units
from pruneopt.passes.options.configured import option
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State, without_data
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.search.evaluators.evaluator import AdaptiveStatistics, Evaluator
from pruneopt.passes.search.evaluators.scorer import Scorer, ScoringContext, StructureScore
from pruneopt.passes.search.journal import Journal
from pruneopt.passes.search.outcome import Candidate, Finalist, Outcome
from pruneopt.passes.search.rankings.ranking import Accuracy, Measured, Ranking, comparable
from pruneopt.passes.search.searchers.random_search import RandomSearch
from pruneopt.passes.search.searchers.sampling import RARE
from pruneopt.passes.search.searchers.searcher import AskTell, Searcher
from pruneopt.passes.search.searchers.space import Proposal, Space
from pruneopt.passes.selection.alignment import Alignment, alignment_of
from pruneopt.passes.selection.prune import BUDGET, MINIMUM, Choose, add_budgets, aims_of
from pruneopt.passes.selection.rounding import ROUND, RoundTo, rounding
from pruneopt.passes.selection.select import is_filled, keep_best
from pruneopt.passes.selection.set_plan import set_plan_for_budgets

__all__ = ["JOURNAL", "Search", "Searched", "batch_within"]

JOURNAL = "search.jsonl"
TOP = 2
MAX_LOST_SECONDS = 60.0
"""Seconds of work that a killed search may lose, where it can choose."""


def batch_within(limit: int, seconds_each: float) -> int:
    """Return how many of ``limit`` structures to judge at once, where each takes so many seconds:
    `MAX_LOST_SECONDS` of work, or one."""
    return max(1, min(limit, int(MAX_LOST_SECONDS / max(seconds_each, 1e-9))))


@dataclass
class Search:
    """Asks, judges and tells, or takes the answers from the journal.

    Attributes:
        space, asker, ranking: what is searched, by whom, and how candidates are compared.
        open_scorer: called with the first candidate that the journal does not answer.
        networks: cuts and scores finalists; opened when there are any.
        batch_size_at: how many candidates to judge side by side, at most, from the one of a number
            on.
        batch_independent: whether scores do not depend on that; then no more than a minute's work
            is done at once.
    """

    space: Space
    asker: AskTell
    open_scorer: Callable[[], Scorer]
    ranking: Ranking
    networks: Callable[[], CutNetworks]
    batch_size_at: Callable[[int], int]
    batch_independent: bool
    journal: Journal
    outcome: Outcome
    tell: Callable[[str, int, int], None]

    def run(self, top: int, epochs: int) -> Outcome:
        """Judge candidates, then look again at the best; on Ctrl-C what there is so far.

        Raises:
            KeyboardInterrupt: Ctrl-C before the first candidate was judged.
        """
        try:
            self._judge_all(self._recalled())
            if epochs:
                self._finish(top, epochs)
        except KeyboardInterrupt:
            if not self.outcome.candidates:
                raise
            self.outcome.interrupted = True
        return self.outcome

    def plan(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Return the units of the trained network that a candidate keeps."""
        return keep_best(
            self.widths(candidate), self.space.scores, self.space.coupling, self.space.cost
        )

    def widths(self, candidate: Candidate) -> np.ndarray:
        """Return the width vector `[G]` of a candidate."""
        return np.array([candidate.widths[name] for name in self.space.cost.groups])

    # Candidates

    def _recalled(self) -> list[Candidate]:
        """Return the candidates in the journal; finalists go straight to the outcome."""
        found: list[Candidate] = []
        for entry in self.journal.entries:
            try:
                if "widths" in entry:
                    found.append(Candidate(**entry))
                else:
                    self.outcome.finalists.append(Finalist(**entry))
            except TypeError as error:
                raise UserError(
                    f"{self.journal.path} holds a line that is no result ({error}): delete it"
                ) from error
        if [item.index for item in found] != list(range(len(found))):
            raise UserError(f"{self.journal.path} lacks a candidate: delete the file to start anew")
        return found

    def _judge_all(self, recalled: list[Candidate]) -> None:
        done = self.outcome.candidates
        scorer: Scorer | None = None
        pace = math.inf
        while group := self._asked(len(done), pace):
            known = recalled[len(done) : len(done) + len(group)]
            candidates = [self._checked(*pair) for pair in zip(known, group, strict=False)]
            if new := group[len(known) :]:
                scorer = scorer or self._opened()
                candidates += self._judged(len(done) + len(known), new, scorer)
                pace = candidates[-1].seconds
            for number, (proposal, candidate) in enumerate(zip(group, candidates, strict=True)):
                self.asker.tell(proposal, candidate.fitness)
                done.append(candidate)
                if scorer is not None and candidate.trace is not None:
                    scorer.recall(candidate.trace)
                if number >= len(known):
                    self._progress(candidate)

    def _asked(self, index: int, pace: float) -> list[Proposal]:
        """Return the structures that are judged next, side by side; ``pace``: seconds that one
        takes."""
        most = self.batch_size_at(index)
        if self.batch_independent:
            most = batch_within(most, pace)
        group: list[Proposal] = []
        while len(group) < most and (not group or self.asker.ready):
            proposal = self.asker.ask()
            if proposal is None:
                break
            group.append(proposal)
        return group

    def _opened(self) -> Scorer:
        """Return the scorer, which knows what was judged before."""
        scorer = self.open_scorer()
        self.outcome.averaging = scorer.describe()
        self.tell(
            f"candidates are judged by {self.outcome.averaging}",
            len(self.outcome.candidates),
            self.asker.total,
        )
        for candidate in self.outcome.candidates:
            if candidate.trace is not None:
                scorer.recall(candidate.trace)
        return scorer

    def _checked(self, candidate: Candidate, proposal: Proposal) -> Candidate:
        """Return a candidate of the journal, which must be the one that is asked for now."""
        if candidate.widths != self._widths(proposal):
            raise UserError(
                f"candidate {candidate.index} in {self.journal.path} is not what this search "
                "proposes: it was written "
                "by another version; delete the file to start anew"
            )
        return candidate

    def _judged(self, first: int, proposals: Sequence[Proposal], scorer: Scorer) -> list[Candidate]:
        """Return candidates from number ``first`` on, in the journal."""
        started = time.perf_counter()
        found = scorer.score_all(proposals)
        seconds = (time.perf_counter() - started) / len(proposals)
        candidates = [
            self._candidate(first + number, proposal, judged, seconds)
            for number, (proposal, judged) in enumerate(zip(proposals, found, strict=True))
        ]
        for candidate in candidates:
            self.journal.append(asdict(candidate))
        return candidates

    def _candidate(
        self, index: int, proposal: Proposal, judged: StructureScore, seconds: float
    ) -> Candidate:
        fitness = self._fitness(
            proposal.widths, judged.score if judged.signal is None else judged.signal
        )
        return Candidate(
            index,
            self._widths(proposal),
            judged.score,
            fitness,
            judged.stale,
            proposal.attempts,
            seconds,
            judged.images,
            judged.batches,
            judged.trace,
        )

    def _widths(self, proposal: Proposal) -> dict[str, int]:
        return dict(zip(self.space.cost.groups, proposal.widths.tolist(), strict=True))

    def _fitness(self, widths: np.ndarray, score: float) -> float:
        return self.ranking.fitness(Measured(score, widths, self.space.cost))

    def _progress(self, candidate: Candidate) -> None:
        outcome = self.outcome
        if outcome.acceptance < RARE and not outcome.notes:
            outcome.notes.append(
                f"only {outcome.acceptance:.3%} of the drawn vectors hit the budget: change "
                "max-ratio (or low and high "
                "of an evolution), or leave rejection out"
            )
            self.tell(outcome.notes[0], candidate.index + 1, self.asker.total)
        best = max(outcome.candidates, key=lambda item: comparable(item.fitness))
        # Logs of a reward that call it accuracy have misled readers: say what is compared.
        ranked = (
            ""
            if isinstance(self.ranking, Accuracy)
            else f" ({self.ranking.name} {best.fitness:.4g})"
        )
        self.tell(
            f"candidate {candidate.index} scores {candidate.score:.4f}, best "
            f"{best.score:.4f}{ranked}",
            candidate.index + 1,
            self.asker.total,
        )

    # Finalists

    def _finish(self, top: int, epochs: int) -> None:
        chosen = self.outcome.ranking[:top]
        known = {item.index for item in self.outcome.finalists}
        networks: CutNetworks | None = None
        for place, candidate in enumerate(chosen, 1):
            if candidate.index in known:
                continue
            networks = networks or self.networks()
            finalist = self._second_look(candidate, epochs, networks)
            self.journal.append(asdict(finalist))
            self.outcome.finalists.append(finalist)
            text = (
                f"candidate {candidate.index}: {candidate.score:.4f}, {finalist.tuned:.4f} "
                "fine-tuned"
            )
            self.tell(text, place, len(chosen))

    def _second_look(self, candidate: Candidate, epochs: int, networks: CutNetworks) -> Finalist:
        """Cut a candidate from the original weights again: stale score, fresh statistics,
        fine-tuning."""
        started = time.perf_counter()
        plan = self.plan(candidate)
        module = networks.network(plan)
        stale = networks.score(module) if candidate.stale is None else candidate.stale
        networks.recalibrate(module, plan)
        networks.tune(module, plan, epochs)
        tuned = networks.score(module)
        seconds = time.perf_counter() - started
        return Finalist(
            candidate.index, stale, tuned, self._fitness(self.widths(candidate), tuned), seconds
        )


@dataclass(frozen=True)
class Searched(Choose):
    """A pass that decides by searching. Subclasses set other defaults, and the genes of the
    space."""

    budget: tuple[str, ...] = option((), BUDGET)
    searcher: Searcher = option(RandomSearch(), "what proposes structures")
    evaluator: Evaluator = option(AdaptiveStatistics(), "what judges them")
    ranking: Ranking = option(Accuracy(), "how judged structures are compared")
    criterion: Criterion = option(L1Norm(), "which channels of a group go: those it scores lowest")
    top: int | None = option(None, "how many of the best are fine-tuned (2)")
    finetune_epochs: int = option(0, "epochs to decide between the best; 0 takes the best fitness")
    round_to: RoundTo = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)
    window: float | None = option(None, "candidates use at least 1 - window of the tightest budget")
    seed: int | None = option(None, "decides the candidates and batches (the run's seed)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finetune_epochs < 0:
            raise UserError(f"finetune-epochs={self.finetune_epochs} must be at least 0")
        if self.top is not None and self.top < 1:
            raise UserError(f"top={self.top} must be at least 1")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")
        if self.top is not None and not self.finetune_epochs:
            raise UserError(
                "top is for fine-tuning: leave it out, or give finetune-epochs of at least 1"
            )

    @property
    def needs_data(self) -> str | None:
        return self.name

    def requires(self, state: State) -> str | None:
        return super().requires(state) or without_data(state)

    def finishing_passes(self) -> list[Pass]:
        """Return the evaluator's passes: a plan judged with fresh statistics is delivered with
        them."""
        return self.parts()[1].finishing_passes(self.seed)

    def parts(self) -> tuple[Searcher, Evaluator]:
        """Return the searcher and the evaluator, with what the pass's own options make of them."""
        return self.searcher, self.evaluator

    def space(self, state: State, scores: dict[str, np.ndarray]) -> Space:
        """Return what is searched: by default every group has a scale of its own."""
        return Space(
            state.need_coupling(),
            state.need_cost(),
            state.budgets,
            scores,
            window=self.window,
            round_to=rounding(state, self.round_to),
            minimum=self.minimum,
            bounds=state.limits.bounds,
            tied=state.limits.tied,
        )

    def leader(self) -> bool:
        """Return whether units are scored by their first layer alone."""
        return False

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        if not state.budgets:
            raise UserError(f"{self.name} needs a budget to aim at: give one, such as 50%FLOPs")
        search = self.prepare(state)
        outcome = search.run(self.top or TOP, self.finetune_epochs)
        state.records[self.name] = outcome
        widths = search.widths(outcome.winner)
        filled = is_filled(widths, search.space.allowed, state.budgets, state.need_cost())
        return set_plan_for_budgets(state, search.plan(outcome.winner), filled=filled)

    def prepare(self, state: State) -> Search:
        """Return the search of a state, to be continued from its journal where there is one.

        Raises:
            BudgetError: a budget that cannot be reached.
            UserError: an impossible option, no data, or a journal of another search.
        """
        workload = state.need_workload(self.name)
        searcher, evaluator = self.parts()
        seed = state.seed if self.seed is None else self.seed
        self.ranking.check(state.need_cost(), state.budgets)
        evaluator.check(self.ranking)
        settings = evaluator.settings(seed, state.device)
        scores = score_units(
            state.need_coupling(),
            state.graph.weights,
            self.criterion,
            leader=self.leader(),
            seed=seed,
            workload=workload,
            batch_size=settings.batch_size,
            device=state.device,
        )
        space = self.space(state, scores)
        asker = searcher.open(space, seed)
        keep = max(searcher.breeds_from, self.top or TOP if self.finetune_epochs else 1)
        size = int(space.cost.measure("bytes", space.cost.full))
        path = None if state.run_dir is None else state.run_dir / JOURNAL
        return Search(
            space,
            asker,
            lambda: evaluator.open(ScoringContext(state, space, seed, keep)),
            self.ranking,
            lambda: CutNetworks(state.graph, space.coupling, workload, settings, state.masks),
            lambda index: evaluator.batch_size_at(index, keep, size),
            evaluator.batch_independent,
            Journal(path, self._identity(state, seed)),
            Outcome("from the journal", asker.describe(), self.ranking.name),
            state.progress,
        )

    def _identity(self, state: State, seed: int) -> dict[str, object]:
        """Return what makes a search the one it is: everything its result depends on."""
        workload = state.need_workload(self.name)
        aligned = alignment_of(self.round_to, state.graph, state.device)
        options = {
            "pass": pass_text(replace(self, budget=(), seed=None)),
            **({"round-to": aligned.target} if isinstance(aligned, Alignment) else {}),
            "ranking": self.ranking.source(),
            **aims_of(state),
        }
        return {
            "the graph": print_graph(state.need_coupling().graph, locations=False),
            "the weights": weights_digest(state.graph.weights),
            "the data": {**workload.describe(), "task": workload.task},
            "the options": options,
            "the seed": seed,
            "the device": state.device.partition(":")[0],
            "PyTorch": torch.__version__,
        }
