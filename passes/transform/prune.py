"""The passes that choose channels by score: prune with every option, and the recipes uniform, l1 and random.

They decide a plan and write it into the graph's header; slice cuts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pruneopt.errors import UserError
from pruneopt.passes.analysis.annotate import write_plan
from pruneopt.passes.analysis.coupling import Coupling, freeze_named
from pruneopt.passes.analysis.criteria import L1Norm
from pruneopt.passes.analysis.importance import Criterion, score_units
from pruneopt.passes.base import Pass, State, option
from pruneopt.passes.budget import parse_budget
from pruneopt.passes.transform.select import Scope, Scores, budget_report, select

__all__ = [
    "L1",
    "Choose",
    "Prune",
    "Random",
    "Uniform",
    "add_budgets",
    "check_leader",
    "data_for",
    "decide",
    "ignored_groups",
]

BUDGET = "what the result may cost, such as 50%FLOPs or 300MFLOPs; may be given several times"
ROUND = "kept channel counts are multiples of this, where the width allows"
MINIMUM = "the fewest channels a group keeps; below 1: the smallest share of its width"


@dataclass(frozen=True)
class Choose(Pass):
    """A pass that decides a plan: needs the channel groups and their costs, and comes before slice."""

    def requires(self, state: State) -> str | None:
        if state.uncut is not None:
            return "the network is already cut: choose channels before slice"
        if state.coupling is None:
            return "run couple first"
        return "run cost first" if state.cost is None else None

    def after(self) -> list[Pass]:
        """The passes that follow the proof in the standard pipeline, so that what is delivered is what was decided on."""
        return []

    @abstractmethod
    def run(self, state: State) -> bool: ...


def add_budgets(state: State, texts: Sequence[str]) -> None:
    """Add a pass's own budgets to those of the run (a budget given twice counts once)."""
    for text in texts:
        budget = parse_budget(text)
        if budget not in state.budgets:
            state.budgets.append(budget)


def check_leader(leader: bool, criterion: Criterion, option: str) -> None:
    """`UserError` for a criterion that cannot score by a group's first layer alone."""
    if leader and not criterion.leads:
        raise UserError(f"{criterion.name} scores have no leader: leave {option} out, or choose another criterion")


def data_for(name: str, criterion: Criterion) -> str | None:
    """What `Pass.needs_data` says for a pass that needs data only where its criterion does."""
    return f"{name} with criterion={criterion.name}" if criterion.data else None


def decide(
    state: State,
    scores: Scores,
    *,
    scope: Scope,
    round_to: int = 1,
    minimum: float = 1,
    ignore: Collection[str] = (),
    ratio: float | None = None,
) -> bool:
    """Select a plan for the state's budgets, write it into the graph's header and report; whether the header changed.

    Raises:
        BudgetError: a budget that cannot be reached.
        UserError: an impossible option.
    """
    cost = state.need_cost()
    plan = select(
        scores,
        state.need_coupling(),
        cost,
        state.budgets,
        scope=scope,
        round_to=round_to,
        minimum=minimum,
        ignore=ignore,
        ratio=ratio,
        seed=state.seed,
    )
    before = state.graph.channels
    state.plan = plan
    write_plan(state.graph, plan)
    if state.budgets:
        state.records["budget"] = budget_report(state.budgets, cost, plan)
    return state.graph.channels != before


def ignored_groups(coupling: Coupling, names: Sequence[str]) -> set[str]:
    """The free groups that the named parameters, modules or groups belong to; `UserError` for a name without match."""
    if not names:
        return set()
    left = {group.name for group in freeze_named(coupling, list(names)).free}
    return {group.name for group in coupling.free} - left


@dataclass(frozen=True)
class Prune(Choose):
    """Keep the units that a criterion scores best, inside the budgets."""

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "keep the channels that a criterion scores best, inside every budget"

    criterion: Criterion = option(L1Norm(), "what a channel is scored by")  # noqa: RUF009  as dataclasses.field
    scope: Literal["local", "global"] = option("global", "rank all channels together, or cut all groups by one ratio")
    normalise: bool = option(True, "divide scores by their group's mean before groups are compared")
    leader: bool = option(False, "score the first layer of a group only, as EagleEye does, not all of them")
    budget: tuple[str, ...] = option((), BUDGET)
    ratio: float | None = option(None, "without a budget: the share of channels to remove, such as 0.5")
    round_to: int = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)
    ignore: tuple[str, ...] = option((), "parameters, modules or groups that keep all channels")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_leader(self.leader, self.criterion, "leader")

    @property
    def needs_data(self) -> str | None:
        return data_for(self.name, self.criterion)

    def run(self, state: State) -> bool:
        coupling = state.need_coupling()
        add_budgets(state, self.budget)
        scores = score_units(
            coupling,
            state.graph.weights,
            self.criterion,
            normalise=self.normalise,
            leader=self.leader,
            seed=state.seed,
            workload=state.workload,
            device=state.device,
        )
        ignored = ignored_groups(coupling, self.ignore)
        return decide(
            state,
            scores,
            scope=self.scope,
            round_to=self.round_to,
            minimum=self.minimum,
            ignore=ignored,
            ratio=self.ratio,
        )


@dataclass(frozen=True)
class Uniform(Choose):
    """Cut every group by the same ratio: the baseline that searches are compared with."""

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "cut every group by the same ratio, as far as the budget asks"

    budget: tuple[str, ...] = option((), BUDGET)
    criterion: Criterion = option(L1Norm(), "what a channel is scored by")  # noqa: RUF009  as dataclasses.field
    round_to: int = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)

    @property
    def needs_data(self) -> str | None:
        return data_for(self.name, self.criterion)

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        scores = score_units(
            state.need_coupling(),
            state.graph.weights,
            self.criterion,
            normalise=True,
            seed=state.seed,
            workload=state.workload,
            device=state.device,
        )
        return decide(state, scores, scope="local", round_to=self.round_to, minimum=self.minimum)


@dataclass(frozen=True)
class L1(Choose):
    """Rank all channels together by their L1 norm over their group's mean."""

    name: ClassVar[str] = "l1"
    summary: ClassVar[str] = "remove the channels with the smallest normalised L1 norm, wherever they are"

    budget: tuple[str, ...] = option((), BUDGET)
    round_to: int = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        scores = score_units(state.need_coupling(), state.graph.weights, "l1", normalise=True)
        return decide(state, scores, scope="global", round_to=self.round_to, minimum=self.minimum)


@dataclass(frozen=True)
class Random(Choose):
    """Random widths moved onto the budget, and random channels: the weakest baseline."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random widths on the budget and random channels, repeatable by the seed"

    budget: tuple[str, ...] = option((), BUDGET)
    round_to: int = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        scores = score_units(state.need_coupling(), state.graph.weights, "random", seed=state.seed)
        return decide(state, scores, scope="random", round_to=self.round_to, minimum=self.minimum)
