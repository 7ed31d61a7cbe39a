"""From scores and budgets to a plan: which units stay.

Widths first. Every group has a ladder of allowed widths (`pruneopt.passes.selection.ladders`). A
one-parameter family of width vectors, from everything to the minimum, is bisected for the largest
vector inside all budgets (`local`: one ratio for all groups; `global`: one score threshold over all
units; `random`: a random vector scaled as a whole). What the budget still has room for is then
filled up rung by rung. Every probe is one vectorised call of the cost model. Then, per block, the
units with the best scores stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.channels.groups import Coupling, Group, Plan
from pruneopt.passes.analysis.cost.budget import BudgetUse, budget_uses, check_reachable, within
from pruneopt.passes.selection.alignment import Alignment
from pruneopt.passes.selection.allocate import allocate
from pruneopt.passes.selection.ladders import Bounds, Ladders, Ties, ladders

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = [
    "BudgetReport",
    "Ladders",
    "Scope",
    "Scores",
    "best_units",
    "budget_report",
    "fill_up",
    "is_filled",
    "keep_best",
    "ladders",
    "largest_share",
    "largest_within",
    "select",
    "step_scores",
]

Scope = Literal["local", "global", "random"]
Scores = Mapping[str, np.ndarray]
Family = Callable[[np.ndarray], np.ndarray]
"""Shares `[P]` from 0 (the minimum) to 1 (everything) -> widths `[P, G]`, which never fall as the
share grows."""

PROBES = 64
ROUNDS = 6
CLOSE = 0.99
"""A plan that uses this share of its tightest budget counts as on it."""


def select(
    scores: Scores,
    coupling: Coupling,
    cost: CostModel,
    budgets: Sequence[Budget] = (),
    *,
    scope: Scope = "global",
    round_to: int | Alignment = 1,
    minimum: float = 1,
    ignore: Collection[str] = (),
    bounds: Bounds | None = None,
    tied: Ties = (),
    ratio: float | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return a plan for all free groups: the best units, close below the tightest budget.

    Args:
        scores: a score per unit of every free group; for the global scope comparable between groups
            (normalised).
        scope: ``local`` gives all groups one ratio, ``global`` ranks all units together (a step of
            a group with blocks is one unit of every block, with the sum of their scores),
            ``random`` gives every group a random ratio.
        round_to, minimum, ignore, bounds, tied: see `ladders`. What a target likes makes the global
            scope weigh scores against costs, rung by rung (`allocate`); what no such rung can use
            of the budget, smaller multiples may.
        ratio: without a budget: the share of units to remove, at least 0 and below 1.
        seed: for the random scope.

    Raises:
        BudgetError: a budget below what the constraints allow; before any work.
        UserError: an impossible option.
    """
    allowed = partial(
        ladders, coupling, cost, minimum=minimum, ignore=ignore, bounds=bounds, tied=tied
    )
    steps = allowed(round_to=round_to)
    if not budgets and ratio is None:
        raise UserError("there is nothing to aim at: give a budget such as 50%FLOPs, or ratio=0.5")
    if budgets and ratio is not None:
        raise UserError("a budget and a ratio contradict each other: give one of them")
    if ratio is not None and scope == "random":
        raise UserError("random widths need a budget to aim at: give one, such as 50%FLOPs")
    if ratio is not None and not 0 <= ratio < 1:
        raise UserError(
            f"ratio={ratio:g} must be the share of channels to remove, at least 0 and below 1"
        )
    check_reachable(budgets, cost, minimum=steps.lowest)
    if not cost.groups:
        return {}
    gains = step_scores(scores, coupling, cost)
    family = _family(scope, gains, cost, steps, seed)
    if ratio is not None:
        widths = family(np.array([1 - ratio]))[0]
    else:
        widths = largest_within(family, budgets, cost)
        widths = fill_up(widths, gains, steps, budgets, cost, evenly=scope == "local")
        if isinstance(round_to, Alignment):
            # A threshold ranks units by score alone; on wide rungs what they cost matters as much.
            if scope == "global":
                afterwards = _rounded_afterwards(gains, cost, allowed(round_to=1), steps, budgets)
                widths = allocate(gains, steps, budgets, cost, (widths, afterwards))
            if not _is_close(widths, budgets, cost):
                fine = allowed(round_to=round_to.finest())
                widths = fill_up(widths, gains, fine, budgets, cost, evenly=scope == "local")
    return keep_best(widths, scores, coupling, cost)


def _rounded_afterwards(
    gains: list[np.ndarray],
    cost: CostModel,
    every: Ladders,
    steps: Ladders,
    budgets: Sequence[Budget],
) -> np.ndarray:
    """Return the widths `[G]` of a plan without rounding, taken down to rungs and filled up."""
    try:
        check_reachable(budgets, cost, minimum=every.lowest)
    except BudgetError:
        return steps.lowest
    plain = fill_up(
        largest_within(_by_threshold(gains, cost, every), budgets, cost),
        gains,
        every,
        budgets,
        cost,
    )
    floor = steps.floor(plain[None])[0]
    return (
        fill_up(floor, gains, steps, budgets, cost)
        if within(budgets, cost, floor)
        else steps.lowest
    )


def _is_close(widths: np.ndarray, budgets: Sequence[Budget], cost: CostModel) -> bool:
    """Return whether widths `[G]` use up the tightest of the budgets."""
    return any(float(cost.measure(b.unit, widths)) >= CLOSE * b.limit(cost) for b in budgets)


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """How close a plan came to its budgets.

    ``reached`` says why it came no closer: ``within 1 %`` of the tightest budget; ``one channel
    step``: the next step of any group would leave a budget; ``full``: nothing had to be removed;
    ``less``: there is room left, as where the widths of a search lie on a grid.
    """

    uses: tuple[BudgetUse, ...]
    reached: Literal["within 1 %", "one channel step", "full", "less"]

    @property
    def tightest(self) -> BudgetUse:
        """The budget of which the plan uses the largest share."""
        return max(self.uses, key=lambda use: use.share)


def budget_report(
    budgets: Sequence[Budget], cost: CostModel, plan: Plan, *, filled: bool = True
) -> BudgetReport:
    """Return the report of a plan; ``filled``: no allowed step of any group fits any more."""
    uses = budget_uses(list(budgets), cost, plan)
    if (cost.widths(plan) == cost.full).all():
        return BudgetReport(uses, "full")
    if max(use.share for use in uses) >= CLOSE:
        return BudgetReport(uses, "within 1 %")
    return BudgetReport(uses, "one channel step" if filled else "less")


def is_filled(
    widths: np.ndarray, steps: Ladders, budgets: Sequence[Budget], cost: CostModel
) -> bool:
    """Return whether no group can climb from widths `[G]` to its next width inside all budgets."""
    wider = steps.moved(widths, steps.above(widths))
    wider = wider[(wider > widths).any(axis=1)]
    return not bool(within(budgets, cost, wider).any())


# Widths


def step_scores(scores: Scores, coupling: Coupling, cost: CostModel) -> list[np.ndarray]:
    """Return by group the worth of its steps: entry j sums the j-th worst of each block."""
    gains = []
    for name in cost.groups:
        blocks = np.stack([np.sort(scores[name][block]) for block in coupling.group(name).blocks])
        gains.append(blocks.sum(axis=0))
    return gains


def _family(
    scope: Scope, gains: list[np.ndarray], cost: CostModel, steps: Ladders, seed: int
) -> Family:
    if scope == "global":
        return _by_threshold(gains, cost, steps)
    if scope == "local":
        # As EagleEye counts: what is removed is rounded down, and what stays then goes down to its
        # rung.
        return lambda shares: steps.floor(
            steps.even(cost.full - _whole(np.outer(1 - shares, cost.full)))
        )
    start = np.random.default_rng(seed).random(len(cost.groups))
    return lambda shares: steps.floor(
        steps.even(_whole(_scaled(start, shares[:, None]) * cost.full))
    )


def _scaled(start: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return ratios `[P, G]` that grow from 0 through ``start`` (share 0.5) to 1, in proportion."""
    result: np.ndarray = np.where(
        shares < 0.5, 2 * shares * start, start + (2 * shares - 1) * (1 - start)
    )
    return result


def _whole(widths: np.ndarray) -> np.ndarray:
    """Return widths rounded down; a product such as 0.29 * 100 counts as its whole number."""
    result: np.ndarray = np.floor(widths + 1e-9).astype(np.int64)
    return result


def _by_threshold(gains: list[np.ndarray], cost: CostModel, steps: Ladders) -> Family:
    """Cut steps of all groups, lowest score first; a share is that of the units that stay.

    Groups that keep all are not ranked.
    """
    ranked = [
        gain if len(rung) > 1 else gain[:0] for gain, rung in zip(gains, steps.rungs, strict=True)
    ]
    owner = np.repeat(np.arange(len(ranked)), [len(gain) for gain in ranked])
    order = np.argsort(np.concatenate([*ranked, np.zeros(0)]), kind="stable")
    # Sorted once; the widths of any share are then look-ups.
    places = [np.flatnonzero(owner[order] == i) for i in range(len(gains))]
    removed = np.concatenate([[0], np.cumsum(cost.step[owner[order]])])

    def widths(shares: np.ndarray) -> np.ndarray:
        aim = _whole((1 - np.asarray(shares)) * removed[-1])
        cut = np.searchsorted(removed, aim, side="right") - 1
        # How many of a group's steps stand before the cut.
        gone = np.stack([np.searchsorted(place, cut) for place in places], axis=1)
        left: np.ndarray = cost.full - gone * cost.step
        return steps.floor(steps.even(left))

    return widths


def largest_within(family: Family, budgets: Sequence[Budget], cost: CostModel) -> np.ndarray:
    """Return the widths `[G]` of the largest share of a family that are inside all budgets.

    Share 0 must be inside.
    """
    widths: np.ndarray = family(np.array([largest_share(family, budgets, cost)]))[0]
    return widths


def largest_share(family: Family, budgets: Sequence[Budget], cost: CostModel) -> float:
    """Return the largest share of a family whose widths are inside all budgets.

    Share 0 must be inside.
    """
    low, high = 0.0, 1.0
    # Costs are measured for many widths at once almost as fast as for one: so not by halves.
    for _ in range(ROUNDS):
        shares = np.linspace(low, high, PROBES + 1)
        inside = np.flatnonzero(np.asarray(within(budgets, cost, family(shares))))
        if len(inside) == 0:
            break
        last = int(inside[-1])
        low = float(shares[last])
        if last == PROBES:
            break
        high = float(shares[last + 1])
    return low


def fill_up(
    widths: np.ndarray,
    gains: list[np.ndarray],
    steps: Ladders,
    budgets: Sequence[Budget],
    cost: CostModel,
    *,
    evenly: bool = False,
) -> np.ndarray:
    """Return widths `[G]` with rungs added while they fit, the best score per unit first.

    ``evenly`` lets no group climb twice before every other that can has climbed once, which keeps
    ratios equal.
    """
    widths, climbed = widths.copy(), np.zeros(len(steps.moves), dtype=np.int64)
    open_ = np.ones(len(steps.moves), dtype=bool)
    while True:
        above = steps.above(widths)
        trials = steps.moved(widths, above)
        open_ &= (trials > widths).any(axis=1)
        rows = np.flatnonzero(open_)
        if len(rows) == 0:
            return widths
        fits = np.asarray(within(budgets, cost, trials[rows]))
        # Costs grow with the widths: what does not fit now never will.
        open_[rows[~fits]] = False
        if not fits.any():
            return widths
        rows = rows[fits]
        worth = np.array([_worth(gains, cost, steps.moves[row], widths, above) for row in rows])
        chosen = rows[np.lexsort((-worth, climbed[rows] if evenly else np.zeros(len(rows))))[0]]
        widths = trials[chosen]
        climbed[chosen] += 1


def _worth(
    gains: Sequence[np.ndarray],
    cost: CostModel,
    columns: np.ndarray,
    widths: np.ndarray,
    above: np.ndarray,
) -> float:
    """Return the mean score of the steps between two widths of the groups that move together."""
    parts = []
    for i in columns:
        step, full = int(cost.step[i]), int(cost.full[i])
        parts.append(gains[i][(full - int(above[i])) // step : (full - int(widths[i])) // step])
    return float(np.concatenate(parts).mean())


# Units


def keep_best(
    widths: np.ndarray, scores: Scores, coupling: Coupling, cost: CostModel
) -> dict[str, np.ndarray]:
    """Return the plan that keeps the units with the best scores in every block of every group.

    Of equal ones the first stay.
    """
    plan = {}
    for name, width in zip(cost.groups, widths, strict=True):
        plan[name] = best_units(coupling.group(name), scores[name], int(width))
    return plan


def best_units(group: Group, score: np.ndarray, width: int) -> np.ndarray:
    """Return the ``width`` units of a group with the best scores `[group.width]`, sorted ranks.

    As many of every block, the first of equal ones.
    """
    each = width // group.step
    kept = [block[np.argsort(-score[block], kind="stable")[:each]] for block in group.blocks]
    return np.sort(np.concatenate(kept)).astype(np.int64)
