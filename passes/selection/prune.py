"""The passes that choose channels by score: prune, and the recipes uniform, l1 and random.

They decide a plan and write it into the graph's header; slice cuts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.analysis.importance.importance import Criterion, score_units
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.by_ratio import LayerRule, Pick
from pruneopt.passes.selection.one_shot import prune_by_layer, prune_weights
from pruneopt.passes.selection.prunable import Reach
from pruneopt.passes.selection.ratios import COMPAT, RATIOS, SKIP, SkipRule
from pruneopt.passes.selection.rounding import ROUND, RoundTo, rounding
from pruneopt.passes.selection.select import Scope, Scores, select
from pruneopt.passes.selection.semi_structured import prune_two_of_four
from pruneopt.passes.selection.set_plan import set_plan_for_budgets

__all__ = [
    "L1",
    "Choose",
    "Prune",
    "Random",
    "Uniform",
    "add_budgets",
    "aims_of",
    "check_leader",
    "data_for",
    "decide",
    "ignored_groups",
]

BUDGET = "what the result may cost, such as 50%FLOPs or 300MFLOPs; may be given several times"
GRANULARITY = (
    "what goes: whole channel groups, filters or input channels of layers, or single "
    "weights (masks)"
)
Granularity = Literal["unit", "filter", "channel", "weight", "2:4"]
MINIMUM = "the fewest channels a group keeps; below 1: the smallest share of its width"


@dataclass(frozen=True)
class Choose(Pass):
    """A pass that decides a plan, from groups and costs, before slice."""

    def requires(self, state: State) -> str | None:
        if state.uncut is not None:
            return "the network is already cut: choose channels before slice"
        if state.coupling is None:
            return "run couple first"
        return "run cost first" if state.cost is None else None

    def finishing_passes(self) -> list[Pass]:
        """Return the passes that follow the proof, so that what is delivered was decided on."""
        return []

    @property
    def aims(self) -> bool:
        """True where the pass knows what to aim at without a budget of the run."""
        return bool(getattr(self, "budget", ())) or getattr(self, "ratio", None) is not None

    @abstractmethod
    def run(self, state: State) -> bool: ...


def add_budgets(state: State, texts: Sequence[str]) -> None:
    """Add a pass's own budgets to those of the run (a budget given twice counts once)."""
    for text in texts:
        budget = parse_budget(text)
        if budget not in state.budgets:
            state.budgets.append(budget)


def aims_of(state: State) -> dict[str, object]:
    """Return the aims and freedoms of a decision, beside the options of its pass, as plain values.

    What a pass leaves on the disk is for these only: a run that is resumed may have been given
    others.
    """
    coupling, cost = state.need_coupling(), state.need_cost()
    return {
        "budgets": [(item.unit, item.value, item.relative) for item in state.budgets],
        "convention": cost.convention.name,
        "limits": (sorted(state.limits.bounds.items()), sorted(map(sorted, state.limits.tied))),
        "latency": None if cost.latency is None else cost.latency.data(),
        "groups": [
            (group.name, group.width, group.step, group.frozen is None) for group in coupling.groups
        ],
    }


def check_leader(leader: bool, criterion: Criterion, option: str) -> None:
    """Raise `UserError` for a criterion that cannot score by a group's first layer alone."""
    if leader and not criterion.leads:
        raise UserError(
            f"{criterion.name} scores have no leader: leave {option} out, or choose another "
            "criterion"
        )


def data_for(name: str, criterion: Criterion) -> str | None:
    """Return what `Pass.needs_data` says where only the criterion needs data."""
    return f"{name} with criterion={criterion.name}" if criterion.data else None


def decide(
    state: State,
    scores: Scores,
    *,
    scope: Scope,
    round_to: RoundTo = 1,
    minimum: float = 1,
    ignore: Collection[str] = (),
    ratio: float | None = None,
) -> bool:
    """Select a plan for the state's budgets, write it into the header, and return if that changed.

    Raises:
        BudgetError: a budget that cannot be reached.
        UserError: an impossible option.
    """
    plan = select(
        scores,
        state.need_coupling(),
        state.need_cost(),
        state.budgets,
        scope=scope,
        round_to=rounding(state, round_to),
        minimum=minimum,
        ignore=ignore,
        bounds=state.limits.bounds,
        tied=state.limits.tied,
        ratio=ratio,
        seed=state.seed,
    )
    return set_plan_for_budgets(state, plan)


def ignored_groups(coupling: Coupling, names: Sequence[str]) -> set[str]:
    """Return the free groups of named parameters, modules or groups; `UserError` for no match."""
    if not names:
        return set()
    left = {group.name for group in freeze_named(coupling, names).free}
    return {group.name for group in coupling.free} - left


@dataclass(frozen=True)
class Prune(Choose):
    """Keep the units that a criterion scores best, inside the budgets."""

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "keep the channels that a criterion scores best, inside every budget"

    criterion: Criterion = option(L1Norm(), "what a channel is scored by")
    scope: Literal["local", "global"] = option(
        "global", "rank all channels together, or cut all groups by one ratio"
    )
    normalise: bool = option(True, "divide scores by their group's mean before groups are compared")
    leader: bool = option(
        False, "score the first layer of a group only, as EagleEye does, not all of them"
    )
    budget: tuple[str, ...] = option((), BUDGET)
    ratio: float | None = option(
        None, "without a budget: the share of channels to remove, such as 0.5"
    )
    round_to: RoundTo = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)
    ignore: tuple[str, ...] = option((), "parameters, modules or groups that keep all channels")
    granularity: Literal["unit", "weight"] = option(
        "unit", "what goes: whole groups, or single weights (masks)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_leader(self.leader, self.criterion, "leader")
        _check_granularity(self.granularity, self.round_to, self.minimum)
        if self.granularity == "weight" and (self.leader or not isinstance(self.criterion, L1Norm)):
            raise UserError(
                "single weights are scored by their magnitude: leave criterion and leader out"
            )

    @property
    def needs_data(self) -> str | None:
        return data_for(self.name, self.criterion)

    def run(self, state: State) -> bool:
        coupling = state.need_coupling()
        add_budgets(state, self.budget)
        ignored = ignored_groups(coupling, self.ignore)
        if self.granularity == "weight":
            return prune_weights(
                state,
                scope=self.scope,
                normalise=self.normalise,
                ratio=self.ratio,
                ignore=self.ignore,
            )
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
    criterion: Criterion = option(L1Norm(), "what a channel is scored by")
    round_to: RoundTo = option(1, ROUND)
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
class Baseline(Choose):
    """A pass that prunes at once: whole groups for a budget, or layer by layer as GReg does."""

    budget: tuple[str, ...] = option((), BUDGET)
    round_to: RoundTo = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)
    granularity: Granularity = option("unit", GRANULARITY)
    ratios: str | None = option(None, RATIOS)
    skip: tuple[str, ...] = option((), SKIP)
    compat: SkipRule = option("exact", COMPAT)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_granularity(self.granularity, self.round_to, self.minimum)
        if self.ratios is None and self.granularity in ("unit", "weight", "2:4"):
            if self.skip or self.compat != "exact":
                raise UserError(
                    "skip and compat go with ratios, or with granularity=filter or channel"
                )
        elif self.granularity == "2:4":
            raise UserError("2:4 sparsity removes half of every layer: leave ratios out")
        else:
            self._rule()

    @property
    def aims(self) -> bool:
        return super().aims or self.ratios is not None or self.granularity == "2:4"

    @property
    @abstractmethod
    def order(self) -> Pick:
        """Which of the scored groups go."""

    @abstractmethod
    def whole_units(self, state: State) -> bool:
        """Decide on whole channel groups for the budgets."""

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        if self.granularity == "2:4":
            return prune_two_of_four(state)
        if self.ratios is not None or self.granularity in ("filter", "channel"):
            return prune_by_layer(state, self._rule(), self.order)
        if self.granularity == "weight":
            return prune_weights(state, pick=self.order)
        return self.whole_units(state)

    def _rule(self) -> LayerRule:
        """Return the rule: units are filters of whole groups, else the residual stream stays."""
        kind: Any = "filter" if self.granularity == "unit" else self.granularity
        scope: Reach = "coupled" if self.granularity == "unit" else "internal"
        return LayerRule(
            self.ratios, self.skip, self.compat, kind, scope, self.round_to, self.minimum
        )


@dataclass(frozen=True)
class L1(Baseline):
    """Rank all channels together by their L1 norm over their group's mean."""

    name: ClassVar[str] = "l1"
    summary: ClassVar[str] = (
        "remove the channels with the smallest normalised L1 norm, wherever they are"
    )

    pick: Literal["min", "max", "rand"] = option(
        "min", "what goes: the smallest, the largest, or random ones"
    )

    @property
    def order(self) -> Pick:
        return self.pick

    def whole_units(self, state: State) -> bool:
        criterion = "random" if self.pick == "rand" else "l1"
        scores = score_units(
            state.need_coupling(), state.graph.weights, criterion, normalise=True, seed=state.seed
        )
        if self.pick == "max":
            scores = {name: -score for name, score in scores.items()}
        return decide(state, scores, scope="global", round_to=self.round_to, minimum=self.minimum)


@dataclass(frozen=True)
class Random(Baseline):
    """Random widths moved onto the budget, and random channels: the weakest baseline."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = (
        "random widths on the budget and random channels, repeatable by the seed"
    )

    @property
    def order(self) -> Pick:
        return "rand"

    def whole_units(self, state: State) -> bool:
        scores = score_units(state.need_coupling(), state.graph.weights, "random", seed=state.seed)
        return decide(state, scores, scope="random", round_to=self.round_to, minimum=self.minimum)


def _check_granularity(granularity: Granularity, round_to: RoundTo, minimum: float) -> None:
    if granularity in ("weight", "2:4") and (round_to != 1 or minimum != 1):
        raise UserError(
            "round-to and minimum count channels: leave them out where single weights go"
        )
