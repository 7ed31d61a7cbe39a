"""The pass ``slimming``: Network Slimming (Liu et al., ICCV 2017), and its variant for networks
without batch norm.

Train under a penalty on the scales of batch norms, cut the channels whose scales are not above one
global threshold. The threshold comes from a ratio, exactly as published, or is solved for budgets.

Several rounds (``passes``) repeat this before anything is cut: what a round removes is held at zero
in the next, in all weights that make or read it. The network then computes what the cut one would,
one plan in units of the original stays the result, and the proof is that of a single round. The
price is that later rounds train at full size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.digest import file_digest
from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.sizes import kept_mask
from pruneopt.passes.analysis.cost.budget import Budget
from pruneopt.passes.analysis.importance.criteria import NormScale
from pruneopt.passes.analysis.importance.importance import Criterion, score_units
from pruneopt.passes.analysis.ops.batch_norm import batch_norms
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pns.reader import read_schema
from pruneopt.passes.pns.schema import Merge, Rounding
from pruneopt.passes.regularised.gamma import GammaL1
from pruneopt.passes.regularised.regularised import (
    Decision,
    Regularised,
    Regulariser,
    RegulariserHook,
    Trained,
)
from pruneopt.passes.regularised.scales import Compat, Rule, Scales, gamma_scales, unit_scales
from pruneopt.passes.regularised.threshold import Cut, Cutter, GroupCut
from pruneopt.passes.selection.masks import masked
from pruneopt.passes.selection.prune import add_budgets, ignored_groups
from pruneopt.passes.training.keep_masks import KeepMasks
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.recipe import SGD, Recipe

__all__ = ["Round", "Slimming", "SlimmingRecord", "unit_masks"]

RECIPE = SGD(epochs=120, lr=0.01, weight_decay=5e-4, batch_size=64, every="epoch")
"""That of pns for CIFAR-10."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of sparse training: the mean scale before and after it, the threshold, and the
    units removed so far."""

    before: float
    after: float
    threshold: float
    removed: int
    regulariser: Any
    training: TrainingLog


@dataclass(frozen=True, slots=True)
class SlimmingRecord:
    """The result of slimming.

    Attributes:
        variant: ``network slimming``, or which regulariser and criterion took the place of its own.
        ratio: the share of all scales to remove; None where budgets set the threshold.
        threshold: the last one; None where the regulariser picked the units itself.
        scales: how many scales the threshold was laid over.
        groups: what became of every free group.
        rounds: every round of sparse training.
        notes: what the user should know: groups at their floor, scales that were not trained, ...
    """

    variant: str
    ratio: float | None
    threshold: float | None
    scales: int
    groups: tuple[GroupCut, ...]
    rounds: tuple[Round, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Slimming(Regularised):
    """Network Slimming. Fine-tuning is a pass of its own, and without the penalty."""

    name: ClassVar[str] = "slimming"
    summary: ClassVar[str] = (
        "Network Slimming: train with a penalty on batch-norm scales, cut below one threshold"
    )

    ratio: float | None = option(
        None, "without a budget: the share of all scales to remove, above 0 and below 1"
    )
    regulariser: Regulariser = option(GammaL1(), "the penalty in training")
    recipe: Recipe = option(RECIPE, "how to train under it")
    criterion: Criterion = option(
        NormScale(), "what the threshold is laid over: scales, or scores of units"
    )
    passes: int = option(
        1, "rounds of training and removing; the ratio or budget is reached in equal steps"
    )
    gamma_init: float | None = option(
        None, "set scales to this and shifts to 0 first, such as 0.5: only from scratch"
    )
    merge: Merge = option(
        "or", "keep what survives in any layer of a group, or only what survives in all"
    )
    min_channels: int = option(2, "the fewest channels a group keeps")
    min_ratio: float = option(0.02, "the smallest share of a group that stays")
    round: Rounding = option(
        "none", "raise widths to multiples of eight channels, or to powers of two"
    )
    fixed: tuple[str, ...] = option(
        (), "NAME:SHARE: a batch norm or group that loses this share, whatever its scales"
    )
    ignore: tuple[str, ...] = option((), "parameters, modules or groups that keep all channels")
    schema: str | None = option(
        None, "a pns schema file: merging, fixed ratios, rounding, what stays whole"
    )
    compat: tuple[Compat, ...] = option(
        (), "as published, layer by layer before merging: floor, rounding"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise UserError(
                f"ratio={self.ratio:g} must be the share of all scales to remove, above 0 and "
                "below 1"
            )
        if self.ratio is not None and self.budget:
            raise UserError("a budget and a ratio contradict each other: give one of them")
        if self.passes < 1:
            raise UserError(f"passes={self.passes} is impossible: use at least 1")
        if self.gamma_init is not None and not 0 < self.gamma_init < math.inf:
            raise UserError(f"gamma-init={self.gamma_init:g} must be above 0, such as 0.5")
        if self.schema is not None and not Path(self.schema).is_file():
            raise UserError(f"the pns schema {self.schema} does not exist")
        Rule(min_channels=self.min_channels, min_ratio=self.min_ratio, fixed=self._fixed())

    @property
    def variant(self) -> str:
        """Which method this is."""
        if isinstance(self.criterion, NormScale) and isinstance(self.regulariser, GammaL1):
            return "network slimming"
        return (
            f"{self.regulariser.name} training, threshold over {self.criterion.name} (a "
            "variant "
            "of network slimming)"
        )

    def parts(self) -> tuple[Regulariser, Recipe]:
        return self.regulariser, self.recipe

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        self._check_aim(state)
        if self.gamma_init is not None:
            state.graph.weights = _with_scales(state, self.gamma_init)
        self.decide(state, state.graph.weights)  # the last round's aim, before any training
        rounds: list[Round] = []
        plan: Plan | None = None
        for number in range(1, self.passes):
            trained = self._round(state, number, plan, rounds)
            plan = trained.decision.plan
            state.graph.weights = masked(
                state.graph.weights, unit_masks(state.need_coupling(), plan)
            )
        trained = self._round(state, self.passes, plan, rounds)
        changed = self.conclude(state, trained)
        state.records[self.name] = self._record(state, trained, rounds, plan)
        return changed or len(rounds) > 1 or self.gamma_init is not None

    def decide(self, state: State, weights: Mapping[str, Tensor]) -> Decision:
        return Decision(self._cut(state, self.passes, None, weights).plan)

    def record(self, state: State, log: Any, hook: RegulariserHook, decision: Decision) -> None:
        """Do nothing: `run` makes the record, which spans all rounds."""

    # Rounds

    def _round(self, state: State, number: int, alive: Plan | None, rounds: list[Round]) -> Trained:
        """Train once and decide; the round is added to ``rounds``."""
        cut = partial(self._cut, state, number, alive)
        before = self._mean_scale(state)
        trained = self.train(
            state,
            lambda weights: Decision(cut(weights).plan),
            name=self.name if self.passes == 1 else f"{self.name}.{number}",
            hooks=() if alive is None else (KeepMasks(unit_masks(state.need_coupling(), alive)),),
        )
        coupling, plan = state.need_coupling(), trained.decision.plan
        removed = int((~coupling.kept_units(plan)).sum())
        threshold = cut(state.graph.weights).threshold
        rounds.append(
            Round(
                before,
                self._mean_scale(state),
                threshold,
                removed,
                trained.hook.report(),
                trained.log,
            )
        )
        return trained

    def _cut(
        self, state: State, number: int, alive: Plan | None, weights: Mapping[str, Tensor]
    ) -> Cut:
        """Return what a round removes; all but the last aim at their part of the way only."""
        cutter = Cutter(
            state.need_coupling(),
            state.need_cost(),
            self._scales(state, weights),
            self.rule(state),
            alive,
        )
        part = number / self.passes
        if self.ratio is not None:
            return cutter.at_ratio(self.ratio * part)
        return cutter.inside([_partly(budget, part, state) for budget in state.budgets])

    def _scales(self, state: State, weights: Mapping[str, Tensor]) -> list[Scales]:
        coupling = state.need_coupling()
        if isinstance(self.criterion, NormScale):
            return gamma_scales(coupling, weights)
        scores = score_units(
            coupling,
            weights,
            self.criterion,
            normalise=True,
            seed=state.seed,
            workload=state.workload,
            device=state.device,
        )
        return unit_scales(coupling, scores)

    def rule(self, state: State) -> Rule:
        """Return how survivors become widths in this network: the pass's options, and what a pns
        schema says."""
        coupling = state.need_coupling()
        rule = Rule(
            merge=self.merge,
            min_channels=self.min_channels,
            min_ratio=self.min_ratio,
            rounding=self.round,
            fixed=self._fixed(),
            whole=frozenset(ignored_groups(coupling, self.ignore)),
            compat=self.compat,
            bounds=state.limits.bounds,
            tied=state.limits.tied,
        )
        if self.schema is None:
            return rule
        schema = read_schema(self.schema, coupling)
        free = {group.name for group in coupling.free}
        return replace(
            rule,
            methods=schema.methods(coupling),
            rounding=schema.rounding if self.round == "none" else self.round,
            fixed={**dict(schema.fixed), **rule.fixed},
            whole=rule.whole | (schema.unpruned(coupling) & free),
        )

    def source(self) -> str:
        return "" if self.schema is None else file_digest(self.schema)

    # Options

    def _fixed(self) -> dict[str, float]:
        found = {}
        for text in self.fixed:
            name, _, share = text.rpartition(":")
            try:
                found[name] = float(share)
            except ValueError:
                name = ""
            if not name:
                raise UserError(f"fixed={text} must be NAME:SHARE, such as layer1.0.bn1:0.5")
        return found

    def _check_aim(self, state: State) -> None:
        if self.ratio is None and not state.budgets:
            raise UserError(
                "there is nothing to aim at: give a budget such as 50%FLOPs, or ratio=0.5"
            )
        if self.ratio is not None and state.budgets:
            raise UserError("a budget and a ratio contradict each other: give one of them")

    # The record

    def _mean_scale(self, state: State) -> float:
        """Return the mean of what the threshold is laid over."""
        values = [layer.values for layer in self._scales(state, state.graph.weights)]
        return float(np.concatenate(values).mean()) if values else 0.0

    def _record(
        self, state: State, trained: Trained, rounds: list[Round], alive: Plan | None
    ) -> SlimmingRecord:
        cut = self._cut(state, self.passes, alive, state.graph.weights)
        own = trained.hook.decision is None
        widths = trained.decision.plan
        groups = tuple(
            item
            if own
            else GroupCut(
                item.group, item.before, item.survivors, len(widths[item.group]), "regulariser"
            )
            for item in cut.groups
        )
        scales = sum(len(layer.values) for layer in self._scales(state, state.graph.weights))
        threshold = cut.threshold if own else None
        notes = tuple(dict.fromkeys([*self._notes(rounds), *(_floors(cut) if own else [])]))
        return SlimmingRecord(
            self.variant, self.ratio, threshold, scales, groups, tuple(rounds), notes
        )

    def _notes(self, rounds: list[Round]) -> list[str]:
        found = []
        if self.variant != "network slimming":
            found.append(f"not the paper's method: {self.variant}")
        if self.gamma_init is not None:
            found.append(
                f"all batch-norm scales were set to {self.gamma_init:g} and shifts to 0 before "
                "training: this forgets "
                "what trained weights knew, and is meant for training from scratch"
            )
        for number, item in enumerate(rounds, 1):
            if item.training.steps and item.after > 0.99 * item.before:
                found.append(
                    f"round {number}: training hardly shrank the scales (their mean went from "
                    f"{item.before:.3g} to "
                    f"{item.after:.3g}): raise the scale of the penalty, or train longer"
                )
            found += item.training.notes
            skipped = getattr(item.regulariser, "skipped", ())
            if skipped and item.training.steps:
                found.append(
                    f"{len(skipped)} weights are frozen or unused and had no penalty, first "
                    f"{skipped[0]}"
                )
        return found


def _floors(cut: Cut) -> list[str]:
    return [
        f"group {item.group}: {item.survivors} of {item.before} channels survive the threshold; "
        "its floor keeps "
        f"{item.after}"
        for item in cut.groups
        if item.reason == "floor"
    ]


def unit_masks(coupling: Coupling, plan: Plan) -> dict[str, Tensor]:
    """Return for every parameter that holds removed units a boolean tensor of its shape: False at
    the weights of these."""
    kept = np.append(coupling.kept_units(plan), True)
    found = {}
    for name, value in coupling.graph.params.items():
        slots = [slot for slot in coupling.slots_of(value) if not kept[slot.units].all()]
        if slots and value.kind == "param":
            found[name] = kept_mask(slots, value.type.shape(), kept[:-1])
    return found


def _with_scales(state: State, scale: float) -> dict[str, Tensor]:
    """Return the weights with all scales of batch norms at one value and all shifts at 0."""
    weights = dict(state.graph.weights)
    for norm in batch_norms(state.need_coupling().graph):
        weights[norm.scale.name] = torch.full_like(weights[norm.scale.name], scale)
        if norm.shift is not None:
            weights[norm.shift.name] = torch.zeros_like(weights[norm.shift.name])
    return weights


def _partly(budget: Budget, part: float, state: State) -> Budget:
    """Return the budget that is met when ``part`` of the way from the original to a budget is
    gone."""
    if part == 1:
        return budget
    cost = state.need_cost()
    full = float(cost.measure(budget.unit, cost.full))
    return Budget(
        budget.text,
        budget.unit,
        full - (full - min(budget.limit(cost), full)) * part,
        relative=False,
    )
