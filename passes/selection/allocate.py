"""Widths on coarse ladders under budgets with the least loss, decided for all groups together.

Where rungs lie far apart, a threshold that is laid first and rounded afterwards wastes budget: it
cannot know that one group climbing to its next rung pays for two that step down. Here the score
that is kept is maximised over the rungs themselves. It is a knapsack whose costs are products of
widths, so it is solved by turns: costs are taken as linear around the best widths so far, the
linear knapsack is solved for many prices of the budget at once (a Lagrangian), the best result that
really fits is filled up, and at last pairs of groups exchange rungs until no exchange gains
anything. Every step compares with what was there before and keeps the better, so the result is
never worse than any start.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pruneopt.passes.analysis.cost.budget import within
from pruneopt.passes.selection.ladders import Ladders

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = ["allocate", "kept_score"]

PRICES = 96
TURNS = 6
EXCHANGES = 200
SHAKES = 24
SHAKEN = 300
"""Only problems with at most so many other rungs are shaken: with many groups, exchanges alone use
up a budget."""
ALTERNATIVES = 600
"""Rungs looked at in an exchange, of all groups together; beyond, only those near the present
ones."""
TRIALS = (64, 512, 2048)
"""How many exchanges, those first that gain most, are measured exactly: as many as these, until one
fits."""
MARGIN = 0.02
"""Estimated costs of an exchange may lie so far above a budget: the true ones are often lower."""
ROUNDING = 1 + 1e-12
"""Shares of a budget are counted as `within` counts them."""
GAIN = 1e-9
"""Relative gain below which an exchange is rounding."""


def allocate(
    gains: Sequence[np.ndarray],
    steps: Ladders,
    budgets: Sequence[Budget],
    cost: CostModel,
    starts: Sequence[np.ndarray],
) -> np.ndarray:
    """Return the widths int64 `[G]` of the best kept score that the search finds.

    Args:
        gains: per group, what its steps are worth, ascending (`step_scores`).
        steps: the allowed widths; their lowest must be inside all budgets.
        starts: widths `[G]` on the ladders inside all budgets; the result is at least as good as
            each.
    """
    problem = _Problem(gains, steps, budgets, cost)
    # Every part of this search ends in some local best; another start, or a shake, may leave it.
    points = [problem.choice(widths) for widths in (*starts, steps.lowest)]
    best = max(points, key=problem.score)
    for point in (best, problem.descended()):
        best = max(
            best,
            _exchanged(problem, _linearised(problem, problem.filled(point))),
            key=problem.score,
        )
    best = _shaken(problem, best)
    widths: np.ndarray = problem.widths(best[None])[0]
    return widths


def kept_score(widths: np.ndarray, gains: Sequence[np.ndarray], cost: CostModel) -> float:
    """Return the sum of the scores of the units that stay at widths `[G]`."""
    pairs = zip(gains, widths, cost.full, cost.step, strict=True)
    return float(sum(gain[(full - width) // step :].sum() for gain, width, full, step in pairs))


class _Problem:
    """A point is a rung number for every move of the ladders, int64 `[M]`."""

    def __init__(
        self,
        gains: Sequence[np.ndarray],
        steps: Ladders,
        budgets: Sequence[Budget],
        cost: CostModel,
    ) -> None:
        self.steps, self.budgets, self.cost = steps, budgets, cost
        self.limits = np.array([budget.limit(cost) for budget in budgets])
        self.rungs = [steps.rungs[columns[0]] for columns in steps.moves]
        self.sizes = np.array([len(rungs) for rungs in self.rungs], dtype=np.int64)
        # A score below zero would make less of a group better than more of it.
        least = min(
            (float(gain.min()) / step for gain, step in zip(gains, cost.step, strict=True)),
            default=0.0,
        )
        raised = [
            gain - min(least, 0.0) * step for gain, step in zip(gains, cost.step, strict=True)
        ]
        self.values = np.zeros((len(self.rungs), int(self.sizes.max())))
        """What is kept of a move's groups at each of its rungs `[M, R]`; beyond the last it goes on
        as there."""
        for values, rungs, columns in zip(self.values, self.rungs, steps.moves, strict=True):
            for column in columns:
                kept = np.append(0.0, raised[column][::-1].cumsum())[rungs // cost.step[column]]
                values += np.append(kept, np.full(len(values) - len(kept), kept[-1]))

    def choice(self, widths: np.ndarray) -> np.ndarray:
        """Return the point of widths `[G]` on the ladders."""
        pairs = zip(self.rungs, self.steps.moves, strict=True)
        return np.array(
            [int(np.searchsorted(rungs, widths[columns[0]])) for rungs, columns in pairs],
            dtype=np.int64,
        )

    def widths(self, points: np.ndarray) -> np.ndarray:
        """Turn points `[P, M]` -> widths `[P, G]`."""
        found = np.zeros((len(points), len(self.steps.rungs)), dtype=np.int64)
        for number, (rungs, columns) in enumerate(zip(self.rungs, self.steps.moves, strict=True)):
            found[:, columns] = rungs[points[:, number], None]
        return found

    def scores(self, points: np.ndarray) -> np.ndarray:
        """Return what points `[P, M]` keep, `[P]`."""
        kept: np.ndarray = self.values[np.arange(points.shape[1]), points].sum(axis=1)
        return kept

    def score(self, point: np.ndarray) -> float:
        return float(self.scores(point[None])[0])

    def fit(self, points: np.ndarray) -> np.ndarray:
        """Return which of the points `[P, M]` are inside all budgets."""
        return np.asarray(within(self.budgets, self.cost, self.widths(points)))

    def used(self, points: np.ndarray) -> np.ndarray:
        """Return the share of every budget that points `[P, M]` use, `[P, B]`."""
        widths = self.widths(points)
        used: np.ndarray = (
            np.stack([self.cost.measure(b.unit, widths) for b in self.budgets], axis=1)
            / self.limits
        )
        return used

    def alternatives(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return other rungs, near ones if many: moves `[S]` and rungs `[S]`."""
        far = int(self.sizes.max())
        while True:
            offset = np.arange(-far, far + 1)
            places = point[:, None] + offset
            move, at = np.nonzero((places >= 0) & (places < self.sizes[:, None]) & (offset != 0))
            if len(move) <= ALTERNATIVES or far == 1:
                return move, places[move, at]
            far //= 2

    def descended(self) -> np.ndarray:
        """Go down from the widest point, by the least score for what is saved, until inside."""
        return self.repaired(self.sizes - 1)

    def repaired(self, point: np.ndarray, but: int = -1) -> np.ndarray:
        """Return a point taken down inside the budgets in this way; the move ``but`` goes last."""
        now = self.used(point[None])[0]
        while (now > ROUNDING).any():
            moves = np.flatnonzero(point > 0)
            # What was forced on the point is taken back only where nothing else is left.
            moves = moves[moves != but] if (moves != but).any() else moves
            trials = np.repeat(point[None], len(moves), axis=0)
            trials[np.arange(len(moves)), moves] -= 1
            used = self.used(trials)
            # Savings count by how far their budget is exceeded, so that the worst is mended first.
            saved = np.maximum(now - used, 0) @ np.maximum(now - 1, 0)
            lost = self.score(point) - self.scores(trials)
            best = int(np.argmax((saved + 1e-15) / (lost + 1e-12)))
            point, now = trials[best], used[best]
        return point

    def filled(self, point: np.ndarray) -> np.ndarray:
        """Return a point with rungs added while all budgets hold, the best for its cost first."""
        point, open_ = point.copy(), np.ones(len(point), dtype=bool)
        now = self.used(point[None])[0]
        while len(moves := np.flatnonzero(open_ & (point < self.sizes - 1))):
            trials = np.repeat(point[None], len(moves), axis=0)
            trials[np.arange(len(moves)), moves] += 1
            used = self.used(trials)
            fits = (used <= ROUNDING).all(axis=1)
            # Costs grow with the widths: what does not fit now never will.
            open_[moves[~fits]] = False
            if fits.any():
                paid = (used - now).max(axis=1)
                won = self.scores(trials) - self.score(point)
                best = int(np.argmax(np.where(fits, (won + 1e-15) / (paid + 1e-12), -1.0)))
                point, now = trials[best], used[best]
        return point


def _linearised(problem: _Problem, point: np.ndarray) -> np.ndarray:
    """Return the best point of several turns, each with costs linear around the last.

    Rungs are chosen by their price, and what fits is filled up.
    """
    best = point
    for _ in range(TURNS):
        found = _priced(problem, best)
        if problem.score(found) <= problem.score(best) * (1 + GAIN):
            break
        best = found
    return best


def _priced(problem: _Problem, point: np.ndarray) -> np.ndarray:
    """Return the best point inside the budgets that is optimal at some price.

    Costs are linear around ``point``.
    """
    moves, rungs = np.indices(problem.values.shape).reshape(2, -1)
    real = rungs < problem.sizes[moves]
    trials = np.repeat(point[None], len(moves), axis=0)
    trials[np.arange(len(moves)), moves] = np.where(real, rungs, point[moves])
    costs = problem.used(trials).reshape(*problem.values.shape, -1)
    real = real.reshape(problem.values.shape)
    # One budget alone binds at most points; the mean of all stands for the others.
    weighted = np.concatenate([costs, costs.mean(axis=-1, keepdims=True)], axis=-1)
    found = []
    for column in range(weighted.shape[-1]):
        spent = weighted[..., column]
        scale = np.ptp(problem.values, axis=1).sum() / max(
            float(np.ptp(spent, axis=1).sum()), 1e-12
        )
        prices = scale * np.geomspace(1e-2, 1e2, PRICES)
        # The second time between the last price that is too low and the first that is not.
        for _ in range(2):
            points = np.array(
                [
                    np.where(real, problem.values - price * spent, -np.inf).argmax(1)
                    for price in prices
                ]
            )
            inside = np.flatnonzero(problem.fit(points))
            if not len(inside):
                break
            found.append(points[inside[int(np.argmax(problem.scores(points[inside])))]])
            prices = np.linspace(prices[max(inside[0] - 1, 0)], prices[inside[0]], PRICES)
    return problem.filled(max(found, key=problem.score)) if found else point


def _exchanged(problem: _Problem, point: np.ndarray) -> np.ndarray:
    """Return a point after exchanges of two rungs (or changes of one), while they gain."""
    for _ in range(EXCHANGES):
        found = _best_exchange(problem, point)
        if found is None:
            return point
        point = found
    return point


def _shaken(problem: _Problem, point: np.ndarray) -> np.ndarray:
    """Return a point after forced changes of single rungs, each repaired and kept if it gained."""
    moves, rungs = problem.alternatives(point)
    if len(moves) > SHAKEN:
        return point
    near = np.argsort(abs(rungs - point[moves]), kind="stable")[:SHAKES]
    for move, rung in zip(moves[near], rungs[near], strict=True):
        trial = point.copy()
        trial[move] = rung
        found = _exchanged(problem, problem.filled(problem.repaired(trial, int(move))))
        if problem.score(found) > problem.score(point) * (1 + GAIN):
            point = found
    return point


def _best_exchange(problem: _Problem, point: np.ndarray) -> np.ndarray | None:
    moves, rungs = problem.alternatives(point)
    if not len(moves):
        return None
    trials = np.repeat(point[None], len(moves), axis=0)
    trials[np.arange(len(moves)), moves] = rungs
    won = problem.scores(trials) - problem.score(point)
    paid = problem.used(trials) - problem.used(point[None])
    room = 1 - problem.used(point[None])[0] + MARGIN
    # All pairs are estimated as sums of single moves; only the best are measured together.
    first, second = np.triu_indices(len(moves))
    gained = np.where(first == second, won[first], won[first] + won[second])
    likely = (gained > GAIN * problem.score(point)) & (
        (moves[first] != moves[second]) | (first == second)
    )
    first, second, gained = first[likely], second[likely], gained[likely]
    shared = np.where((first == second)[:, None], paid[first], paid[first] + paid[second])
    fits = (shared <= room).all(axis=1)
    first, second, gained = first[fits], second[fits], gained[fits]
    order = np.argsort(-gained, kind="stable")
    for start, stop in itertools.pairwise((0, *TRIALS)):
        rows = order[start:stop]
        points = np.repeat(point[None], len(rows), axis=0)
        points[np.arange(len(rows)), moves[first[rows]]] = rungs[first[rows]]
        points[np.arange(len(rows)), moves[second[rows]]] = rungs[second[rows]]
        inside = np.flatnonzero(problem.fit(points))
        if len(inside):
            return np.array(points[inside[0]])
    return None
