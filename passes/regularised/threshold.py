"""One threshold over the scales of all layers, and what it leaves of every channel group (Network
Slimming).

A channel survives where its scale is strictly greater than the threshold. What survives in each
layer is merged over the layers of a channel group, because a group lives or dies together; floors,
fixed ratios, rounding and equal counts per block then give its width, and the units with the
greatest scales fill it. Under budgets the threshold is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.groups import Coupling, Group, Plan
from pruneopt.passes.analysis.cost.budget import check_reachable, within
from pruneopt.passes.pns.schema import Merge
from pruneopt.passes.regularised.scales import Rule, Scales, ratio_threshold
from pruneopt.passes.selection.ladders import Ladders, common_rungs, ladders
from pruneopt.passes.selection.select import best_units, fill_up, step_scores

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = ["Cut", "Cutter", "GroupCut"]

Reason = Literal[
    "threshold", "floor", "rounding", "blocks", "budget", "fixed", "asked", "kept", "regulariser"
]

PROBES = 64
FALLBACK = 0.05
"""The share of a group that stays, as published, where the layers that are intersected have nothing
in common."""


@dataclass(frozen=True, slots=True)
class GroupCut:
    """The fate of a group: widths before and after, how many units survived the threshold, and what
    set the width.

    ``reason``: ``threshold``; ``floor``: too few survived; ``rounding``; ``blocks``: equal counts
    in every block; ``budget``: more than survived still fitted; ``fixed``; ``asked``: by bounds or
    a tie; ``kept``: all, by request; ``regulariser``: it picked.
    """

    group: str
    before: int
    survivors: int
    after: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Cut:
    """A plan, its threshold, what became of every free group, and the names of layers of which
    nothing survived."""

    plan: dict[str, np.ndarray]
    threshold: float
    groups: tuple[GroupCut, ...]
    empty: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Left:
    """The rest of a group behind a threshold: its survivors, the width that they ask for, and the
    width it gets."""

    survivors: int
    count: int
    width: int


class Cutter:
    """Thresholds over the scales of one network.

    Args:
        coupling, cost: of the network.
        scales: of its layers.
        rule: what becomes of the survivors.
        alive: a plan; what it removed does not come back.

    Raises:
        UserError: a group to prune without scales, or a name that does not exist.
    """

    def __init__(
        self,
        coupling: Coupling,
        cost: CostModel,
        scales: Sequence[Scales],
        rule: Rule | None = None,
        alive: Plan | None = None,
    ) -> None:
        self.coupling, self.cost, self.scales = coupling, cost, tuple(scales)
        self.rule = Rule() if rule is None else rule
        count = len(coupling.unit_group)
        self._groups = [coupling.group(name) for name in cost.groups]
        self._alive = np.ones(count, dtype=bool) if alive is None else coupling.kept_units(alive)
        units = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(layer.units for layer in self.scales)]
        )
        self._inside = units >= 0
        self._units = units[self._inside]
        self._total = np.bincount(self._units, minlength=count)
        either = np.array([self._method(group) == "or" for group in coupling.groups], dtype=bool)
        self._either = either[coupling.unit_group]
        self._layers = {group.name: self._layers_of(group) for group in self._groups}
        self._merged = self._merge_values()
        self._check()
        self.ladders = self._ladders()
        """The widths that every group may get."""

    def at_ratio(self, ratio: float) -> Cut:
        """Return the cut at the threshold of a ratio (`ratio_threshold`)."""
        return self.at(ratio_threshold(self.scales, ratio))

    def at(self, threshold: float) -> Cut:
        """Return the cut at a threshold."""
        return self._cut(threshold, self._widths(threshold))

    def inside(self, budgets: Sequence[Budget]) -> Cut:
        """Return the cut at the smallest threshold that is inside all budgets, filled up with the
        best of what still fits.

        Raises:
            BudgetError: a budget below what the floors and other constraints allow.
        """
        check_reachable(budgets, self.cost, minimum=self._widths(np.inf))
        threshold = self._solve(budgets)
        gains = step_scores(self._scores(threshold), self.coupling, self.cost)
        widths = fill_up(self._widths(threshold), gains, self.ladders, budgets, self.cost)
        return self._cut(threshold, widths)

    def _solve(self, budgets: Sequence[Budget]) -> float:
        """Return the smallest threshold inside the budgets; none (-1) and every scale are tried,
        many at a time."""
        levels = np.unique(
            np.concatenate([np.full(1, -1.0), *(layer.values for layer in self.scales)])
        )
        # A higher threshold leaves no wider group, so costs fall along the levels and a bisection
        # finds the first that is inside. It cuts the range into many parts at a time, as widths of
        # many thresholds are measured together.
        low, high = 0, len(levels) - 1
        while low < high:
            places = np.unique(np.linspace(low, high, PROBES).astype(np.int64))
            rows = np.stack([self._widths(float(levels[place])) for place in places[:-1]])
            # The last place is known to be inside: at first because nothing survives there.
            first = int(np.argmax(np.append(within(budgets, self.cost, rows), True)))
            low, high = (
                (int(places[first - 1]) + 1 if first else int(places[0])),
                int(places[first]),
            )
        return float(levels[high])

    # What survives

    def _flags(self, layer: Scales, threshold: float) -> np.ndarray:
        """Return which channels of a layer survive `[C]`, before layers are merged."""
        rule, width, flags = self.rule, len(layer.values), layer.values > threshold
        if layer.name in rule.fixed:
            return layer.top(rule.share(width, 1 - rule.fixed[layer.name]))
        if "floor" in rule.compat and not flags.any():
            flags = layer.top(rule.least(width))
        return (
            layer.top(rule.rounded(int(flags.sum()), width)) if "rounding" in rule.compat else flags
        )

    def _kept(self, threshold: float) -> np.ndarray:
        """Return which units survive `[units]`, after merging."""
        flags = np.concatenate(
            [np.zeros(0, dtype=bool), *(self._flags(layer, threshold) for layer in self.scales)]
        )
        # A unit that several layers make has a scale in each: one or all of them must survive.
        count = np.bincount(self._units[flags[self._inside]], minlength=len(self._total))
        needed = np.where(self._either, 1, np.maximum(self._total, 1))
        kept: np.ndarray = (count >= needed) & self._alive
        return kept

    def _merge_values(self) -> np.ndarray:
        """Return a score for every unit: its greatest scale where any survivor is enough, else its
        smallest; removed: -1."""
        values = np.concatenate([np.zeros(0), *(layer.values for layer in self.scales)])[
            self._inside
        ]
        most, least = np.zeros(len(self._total)), np.full(len(self._total), np.inf)
        np.maximum.at(most, self._units, values)
        np.minimum.at(least, self._units, values)
        score = np.where(self._either | (self._total == 0), most, least)
        return np.where(self._alive, score, -1.0)

    def _scores(self, threshold: float) -> dict[str, np.ndarray]:
        """Return the scores by which units fill the width of their group: survivors come before all
        others."""
        # Lifted above the largest scale there is.
        lifted = self._merged + self._kept(threshold) * (1.0 + self._merged.max(initial=0.0))
        return {group.name: lifted[group.units] for group in self._groups}

    def _left(self, threshold: float) -> list[_Left]:
        kept = self._kept(threshold)
        found = []
        for group, rungs in zip(self._groups, self.ladders.rungs, strict=True):
            flags = kept[group.units]
            count = self._count(group, flags)
            if count == 0 and "floor" in self.rule.compat:
                count = self.rule.share(group.width, FALLBACK)
            # The next wider width that is allowed: no survivor goes because of rounding.
            place = min(int(np.searchsorted(rungs, count)), len(rungs) - 1)
            found.append(_Left(int(flags.sum()), count, int(rungs[place])))
        for columns in self.ladders.tied:
            width = max(found[column].width for column in columns)
            for column in columns:
                found[column] = replace(found[column], width=width)
        return found

    def _count(self, group: Group, flags: np.ndarray) -> int:
        """Return how many units a group needs: blocks keep equal counts, those of the fullest
        (``or``) or emptiest block."""
        each = [int(flags[block].sum()) for block in group.blocks]
        return group.step * (max(each) if self._method(group) == "or" else min(each))

    def _widths(self, threshold: float) -> np.ndarray:
        return np.array([left.width for left in self._left(threshold)], dtype=np.int64)

    def _cut(self, threshold: float, widths: np.ndarray) -> Cut:
        scores = self._scores(threshold)
        empty = tuple(layer.name for layer in self.scales if not (layer.values > threshold).any())
        plan, cuts = {}, []
        for group, left, width in zip(
            self._groups, self._left(threshold), widths.tolist(), strict=True
        ):
            plan[group.name] = best_units(group, scores[group.name], width)
            reason = self._reason(group, left, width, empty)
            cuts.append(GroupCut(group.name, group.width, left.survivors, width, reason))
        return Cut(plan, threshold, tuple(cuts), empty)

    def _reason(self, group: Group, left: _Left, width: int, empty: Sequence[str]) -> Reason:
        compat = "floor" in self.rule.compat
        if group.name in self.rule.whole:
            return "kept"
        if self._is_fixed(group):
            return "fixed"
        if width != left.width:
            return "budget"
        if left.count < (1 if compat else self.rule.least(group.width)):
            return "floor"
        if compat and (
            left.survivors == 0 or {layer.name for layer in self._layers[group.name]} & set(empty)
        ):
            return "floor"
        if width != left.count:
            return "asked" if self._is_asked(group) else "rounding"
        return "threshold" if left.count == left.survivors else "blocks"

    # Constraints

    def _method(self, group: Group) -> Merge:
        return self.rule.methods.get(group.name, self.rule.merge)

    def _layers_of(self, group: Group) -> list[Scales]:
        return [layer for layer in self.scales if np.isin(layer.units, group.units).any()]

    def _is_fixed(self, group: Group) -> bool:
        """Return whether the width of a group does not depend on the threshold."""
        fixed = self.rule.fixed
        return group.name in fixed or all(layer.name in fixed for layer in self._layers[group.name])

    def _is_asked(self, group: Group) -> bool:
        """Return whether a group has bounds, or is tied to another."""
        tied = any(
            group.name == self.cost.groups[column]
            for columns in self.ladders.tied
            for column in columns
        )
        return tied or group.name in self.rule.bounds

    def _ladders(self) -> Ladders:
        eight = self.rule.rounding == "eight" and "rounding" not in self.rule.compat
        base = ladders(
            self.coupling,
            self.cost,
            round_to=8 if eight else 1,
            ignore=self.rule.whole,
            bounds=self.rule.bounds,
            tied=self.rule.tied,
        )
        rungs = [
            self._rungs(group, found) for group, found in zip(self._groups, base.rungs, strict=True)
        ]
        return Ladders(tuple(common_rungs(self.cost, rungs, base.tied)), base.tied)

    def _rungs(self, group: Group, rungs: np.ndarray) -> np.ndarray:
        """Return the widths that a group may get, ascending, of those that its step and rounding
        allow."""
        rule, alive = self.rule, int(self._alive[group.units].sum())
        if group.name in rule.whole:
            return rungs
        if self._is_fixed(group):
            return np.array([min(self._fixed_width(group), alive)], dtype=np.int64)
        if rule.rounding == "two-pow" and "rounding" not in rule.compat:
            each = rungs // group.step
            rungs = rungs[(each & (each - 1) == 0) | (rungs == group.width)]
        least = group.step if "floor" in rule.compat else rule.least(group.width)
        allowed = rungs[(rungs >= least) & (rungs <= alive)]
        return allowed if len(allowed) else np.array([alive], dtype=np.int64)

    def _fixed_width(self, group: Group) -> int:
        """Return the width of a group with a fixed ratio; where all its layers have one, what
        merging leaves of them."""
        if group.name in self.rule.fixed:
            count = self.rule.share(group.width, 1 - self.rule.fixed[group.name])
        else:
            count = self._count(group, self._kept(np.inf)[group.units]) or self.rule.least(
                group.width
            )
        return -(-count // group.step) * group.step

    def _check(self) -> None:
        known = [
            *(layer.name for layer in self.scales),
            *(group.name for group in self.coupling.groups),
        ]
        for name in self.rule.fixed:
            if name not in known:
                guess = did_you_mean(name, known)
                raise UserError(
                    f"fixed={name}: no layer with scales and no channel group has this name: "
                    f"{guess}"
                )
            mine = [
                g.name
                for g in self._groups
                if name in (g.name, *(layer.name for layer in self._layers[g.name]))
            ]
            if set(mine) <= self.rule.whole:
                why = "they are to be kept whole" if mine else "they are frozen"
                raise UserError(f"fixed={name}: none of its channels may be removed, {why}")
        for group in self._groups:
            if group.name not in self.rule.whole and not self._total[group.units].all():
                raise UserError(
                    f"group {group.name} has no batch-norm scale ({group.location}): rank by "
                    "weights instead, with "
                    "regulariser=group-norm criterion=l2, or keep it whole with "
                    f"ignore={group.name}"
                )
