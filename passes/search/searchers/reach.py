"""The structures that a front may hold: inside every budget, and spread over a range of the first
cost.

A structure is searched as a position `[M]` with a number from 0 to 1 for every group, or set of
tied groups, that moves by itself: its place on the ladder of widths that are allowed. Widths, and
so costs, grow with the position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.cost.budget import Budget, check_reachable, within
from pruneopt.passes.search.searchers.space import Space
from pruneopt.passes.selection.select import Scope, largest_share, select

__all__ = ["LEAST", "Reach"]

LEAST = 0.2
"""Where the range begins if nothing is asked for: at this share of its end, where a network gets as
small."""


class Reach:
    """The structures that may be proposed, and how one gets to a level of the first cost.

    Args:
        space: of the run, with all its budgets.
        unit: the first cost, that the range speaks of.
        least, most: the range, as shares of the original's; None takes `LEAST`, or the smallest
            that can be reached.

    Raises:
        BudgetError: budgets, or a range, that no structure reaches.
        UserError: an impossible range.
    """

    def __init__(self, space: Space, unit: str, least: float | None, most: float) -> None:
        if not 0 < most <= 1 or not (least is None or 0 < least < most):
            shown = "" if least is None else f"{least:g}"
            raise UserError(
                f"{shown}:{most:g} is no range: write two shares of the original, ascending, at "
                "most 1"
            )
        self.space, self.unit = space, unit
        self.rungs = space.allowed.rungs
        self.moves = space.allowed.moves
        self.original = space.cost.original(unit)
        if not self.original > 0:
            raise UserError(
                f"{space.cost.graph.name} costs no {unit}: there is nothing to trade accuracy "
                "against"
            )
        self.budgets = (*space.budgets, self.level(most))
        check_reachable(self.budgets, space.cost, minimum=space.allowed.lowest)
        if least is not None:
            check_reachable([self.level(least)], space.cost, minimum=space.allowed.lowest)
        self.high = self._share(self.widths(self.largest(np.ones(len(self.moves)), self.budgets)))
        self.low = (
            max(self._share(space.allowed.lowest), LEAST * self.high) if least is None else least
        )
        if self.low >= self.high:
            raise BudgetError(
                f"there is no range to explore: inside the budgets {space.cost.graph.name} uses at "
                "most "
                f"{self.high:.1%} of its {unit}, and the range begins at {self.low:.1%}"
            )

    def level(self, share: float) -> Budget:
        """Return a share of the original's first cost as a budget."""
        return Budget(f"{100 * share:.4g}%{self.unit}", self.unit, share, relative=True)

    def _share(self, widths: np.ndarray) -> float:
        return float(self.space.cost.measure(self.unit, widths)) / self.original

    # Positions

    def widths(self, position: np.ndarray) -> np.ndarray:
        """Map positions `[P, M]` or `[M]` to the widths of every group, int64 `[P, G]` or `[G]`."""
        rows = np.atleast_2d(position)
        found = np.empty((len(rows), len(self.rungs)), dtype=np.int64)
        for number, columns in enumerate(self.moves):
            rungs = self.rungs[columns[0]]
            places = np.floor(np.clip(rows[:, number], 0, 1) * (len(rungs) - 1) + 0.5).astype(
                np.int64
            )
            found[:, columns] = rungs[places][:, None]
        return found.reshape((*position.shape[:-1], len(self.rungs)))

    def position(self, widths: np.ndarray) -> np.ndarray:
        """Return the position `[M]` of allowed widths `[G]`; the next lower one of others."""
        found = np.zeros(len(self.moves))
        for number, columns in enumerate(self.moves):
            rungs = self.rungs[columns[0]]
            place = max(int(np.searchsorted(rungs, widths[columns].min(), side="right")) - 1, 0)
            found[number] = place / max(1, len(rungs) - 1)
        return found

    def allows(self, widths: np.ndarray) -> bool:
        """Return whether widths `[G]` are inside every budget, and not above the range."""
        return bool(within(self.budgets, self.space.cost, widths))

    def inside(self, widths: np.ndarray) -> bool:
        """Return whether they are also not below the range."""
        return self.allows(widths) and self._share(widths) >= self.low * (1 - 1e-12)

    # Moving

    def largest(self, position: np.ndarray, budgets: Sequence[Budget]) -> np.ndarray:
        """Return the position moved to where the budgets are just met: towards the smallest
        structure, or the largest one."""

        def along(shares: np.ndarray) -> np.ndarray:
            part = shares[:, None]
            moved: np.ndarray = np.where(
                part < 0.5, 2 * part * position, position + (2 * part - 1) * (1 - position)
            )
            return moved

        share = largest_share(lambda shares: self.widths(along(shares)), budgets, self.space.cost)
        found: np.ndarray = along(np.array([share]))[0]
        return found

    def moved(self, position: np.ndarray, share: float) -> np.ndarray:
        """Return the position moved to a level of the first cost, further down where a budget asks
        for it."""
        return self.largest(position, (*self.budgets, self.level(share)))

    def put(self, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the position, moved inside the budgets where it is outside; from below the range
        up into its first tenth."""
        if self._share(self.widths(position)) < self.low:
            return self.moved(position, self.low + rng.random() * (self.high - self.low) / 10)
        if not within(self.budgets, self.space.cost, self.widths(position)):
            return self.largest(position, self.budgets)
        return position

    def selected(self, scope: Scope, share: float) -> np.ndarray:
        """Return the widths `[G]` that the passes uniform (``local``) or prune (``global``) choose
        at a level."""
        space = self.space
        plan = select(
            space.scores,
            space.coupling,
            space.cost,
            (*self.budgets, self.level(share)),
            scope=scope,
            round_to=space.round_to,
            minimum=space.minimum,
            bounds=space.bounds,
            tied=space.tied,
        )
        return space.cost.widths(plan)

    def levels(self, count: int) -> list[float]:
        """Return shares of the first cost in equal ratios, ascending, from the smallest to the
        largest of the range."""
        if count == 1:
            return [self.high]
        ratio = math.log(self.high / self.low) / (count - 1)
        return [min(self.low * math.exp(ratio * place), self.high) for place in range(count)]
