"""Random width vectors that meet the budget: one ratio per channel group, as EagleEye draws them.

EagleEye (ECCV 2020, section 3.2; its code) draws every layer's ratio uniformly and throws vectors
away until one hits the target, which keeps 0.3 to 4 % of them. Here a vector is drawn once and
moved along its ray until it is just inside every budget: ``t * ratios``, cut off at the largest
ratio, for the smallest t that fits; what the budget still has room for is filled up step by step.
`WidthSampler.rejection` keeps the published way.

Candidate i depends on the seed and i alone, so that a search can be continued anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import check_reachable, within
from pruneopt.passes.selection.alignment import Alignment
from pruneopt.passes.selection.ladders import Bounds, Ladders, Ties, ladders
from pruneopt.passes.selection.select import Scores, fill_up, keep_best, largest_within

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = ["TOLERANCE", "Draw", "WidthSampler", "floor_widths", "untied_widths"]

TOLERANCE = 0.005
"""EagleEye accepts a share of MACs this close to its target, on either side."""
ATTEMPTS = 100_000
CHUNK = 1_000
RARE = 1e-3
"""Below this acceptance rejection sampling is reported as a poor choice."""


@dataclass(frozen=True)
class Draw:
    """One sampled plan, the ratios it was drawn with `[G]`, its widths `[G]`, and the vectors it
    took to find it."""

    index: int
    ratios: np.ndarray
    widths: np.ndarray
    plan: dict[str, np.ndarray]
    attempts: int


def floor_widths(ratios: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Return EagleEye's count of what stays: ``C - floor(r * C)``."""
    kept: np.ndarray = full - np.floor(ratios * full).astype(np.int64)
    return kept


def untied_widths(
    widths: np.ndarray, scores: Scores, coupling: Coupling, cost: CostModel
) -> np.ndarray:
    """Apply EagleEye's thresholds: only units strictly above the best removed one stay, so units
    that tie with it go too.

    A group that loses nothing keeps all. Blocks are thresholded each on its own and then made equal
    to the smallest.
    """
    found = widths.copy()
    for i, name in enumerate(cost.groups):
        group = coupling.group(name)
        removed = (group.width - int(widths[i])) // group.step
        if removed > 0:
            blocks = [np.sort(scores[name][block]) for block in group.blocks]
            found[i] = min(int((block > block[removed - 1]).sum()) for block in blocks) * group.step
    return found


class WidthSampler:
    """Draws plans inside budgets.

    Args:
        coupling, cost: of the network; cost gives the order of the groups.
        budgets: every plan is inside all of them; without any, the ratios are taken as drawn.
        scores: per unit of every free group; the best of a group stay.
        max_ratio, min_ratio: the range of the share of units that a group loses.
        round_to: kept channel counts are multiples of this (see `ladders`); the range gives way to
            it.
        minimum: the fewest units a group keeps, or, below 1, the smallest share (see `ladders`).
        bounds, tied: see `ladders`; the range gives way to them.
        floor: EagleEye's count, ``C - floor(r C)`` without filling up, and what ties with the
            removed goes too.
        rejection: EagleEye's sampling, see `_rejected`.
        seed: with a candidate's number, decides its ratios.

    Raises:
        BudgetError: a budget that the network, or the range, cannot reach.
        UserError: an impossible range, or rejection without a single FLOPs budget.
    """

    def __init__(
        self,
        coupling: Coupling,
        cost: CostModel,
        budgets: Sequence[Budget],
        scores: Scores,
        *,
        max_ratio: float = 0.7,
        min_ratio: float = 0.0,
        round_to: int | Alignment = 1,
        minimum: float = 1,
        bounds: Bounds | None = None,
        tied: Ties = (),
        floor: bool = False,
        rejection: bool = False,
        seed: int = 0,
    ) -> None:
        if not (0 <= min_ratio <= max_ratio <= 1 and max_ratio > 0):
            raise UserError(
                f"ratios from {min_ratio:g} to {max_ratio:g} are no range of shares between 0 and 1"
            )
        if not cost.groups:
            raise UserError(
                f"no channel group of {cost.graph.name} can be pruned; `pruneopt inspect` says why"
            )
        self.coupling, self.cost, self.budgets, self.scores = coupling, cost, tuple(budgets), scores
        self.low, self.high, self.floor, self.rejection, self.seed = (
            min_ratio,
            max_ratio,
            floor,
            rejection,
            seed,
        )
        self.allowed = ladders(
            coupling, cost, round_to=round_to, minimum=minimum, bounds=bounds, tied=tied
        )
        self.ranged = _cut(self.allowed, cost, min_ratio, max_ratio)
        check_reachable(self.budgets, cost, minimum=self.allowed.lowest)
        self._check_range()

    def draw(self, index: int) -> Draw:
        """Draw candidate ``index``; the same arguments give the same plan."""
        rng = np.random.default_rng([self.seed, index])
        if self.rejection:
            ratios, widths, attempts = self._rejected(rng)
        else:
            ratios = rng.uniform(self.low, self.high, len(self.cost.groups))
            widths, attempts = self._solved(ratios, rng), 1
        if self.floor:
            untied = untied_widths(widths, self.scores, self.coupling, self.cost)
            widths = np.minimum(widths, self.allowed.floor(untied[None])[0])
        return Draw(
            index,
            ratios,
            widths,
            keep_best(widths, self.scores, self.coupling, self.cost),
            attempts,
        )

    def describe(self) -> str:
        """Return how plans are drawn, in a few words."""
        if not self.rejection:
            return f"ratios from {self.low:g} to {self.high:g}, moved onto the budget"
        return f"ratios from {self.low:g} to {self.low + self.high:g}, kept if they hit the budget"

    # Solving

    def _solved(self, ratios: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the widths of the smallest multiple of ``ratios`` inside all budgets, filled up
        unless ``floor``."""
        full, ladder = self.cost.full, self.ranged
        if not self.budgets:
            free: np.ndarray = ladder.floor(ladder.even(floor_widths(ratios, full)[None]))[0]
            return free
        # No ratio is 0 exactly, so that the far end of the ray is the largest ratio everywhere.
        ray = np.maximum(ratios, 1e-9)

        def family(shares: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore"):
                times = (1 - shares) / shares
            scaled = np.clip(times[:, None] * ray, self.low, self.high)
            return ladder.floor(ladder.even(floor_widths(scaled, full)))

        widths = largest_within(family, self.budgets, self.cost)
        if self.floor:
            return widths
        # A random order, for a fixed one would make all candidates alike in what they are filled up
        # with.
        order = [
            rng.random(int(width) // int(step))
            for width, step in zip(full, self.cost.step, strict=True)
        ]
        return fill_up(widths, order, ladder, self.budgets, self.cost, evenly=True)

    def _check_range(self) -> None:
        """Refuse a budget that only ratios above the largest would reach."""
        if self.rejection:
            self._target()
            if self.low + self.high > 1:
                raise UserError(
                    "rejection (compat=sampling) draws ratios up to min-ratio + max-ratio, here "
                    f"{self.low + self.high:g}: their sum must be at most 1"
                )
        elif not within(self.budgets, self.cost, self.ranged.lowest):
            for percent in range(int(self.high * 100) + 1, 101):
                if within(
                    self.budgets,
                    self.cost,
                    _cut(self.allowed, self.cost, self.low, percent / 100).lowest,
                ):
                    break
            texts = ", ".join(budget.text for budget in self.budgets)
            raise BudgetError(
                f"removing at most {self.high:g} of every group does not reach {texts}: use "
                f"max-ratio={percent / 100:g} or more (a little more than that leaves candidates a "
                "choice)"
            )

    # Rejection

    def _target(self) -> float:
        """Return the share of FLOPs that rejection sampling aims at."""
        flops = [budget for budget in self.budgets if budget.unit == "flops"]
        if len(flops) != 1:
            raise UserError(
                "rejection (compat=sampling) aims at a share of FLOPs: give one FLOPs budget, such "
                "as 50%FLOPs"
            )
        return flops[0].limit(self.cost) / float(self.cost.measure("flops", self.cost.full))

    def _rejected(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        """Draw as EagleEye does: ``U(0, 1) * max + min`` (as the code has it) until the share of
        FLOPs fits.

        The window is as wide as EagleEye's, two tolerances, but ends at the budget instead of lying
        around it: a budget holds. Budget 50.5 % is thus EagleEye's 50 % +- 0.5.
        """
        target, full = self._target(), float(self.cost.measure("flops", self.cost.full))
        for first in range(0, ATTEMPTS, CHUNK):
            ratios = rng.random((CHUNK, len(self.cost.groups))) * self.high + self.low
            widths = self.allowed.floor(self.allowed.even(floor_widths(ratios, self.cost.full)))
            near = self.cost.measure("flops", widths) / full >= target - 2 * TOLERANCE
            hits = np.flatnonzero(near & within(self.budgets, self.cost, widths))
            if len(hits):
                return ratios[hits[0]], widths[hits[0]], first + int(hits[0]) + 1
        raise UserError(
            f"none of {ATTEMPTS} random vectors with {self.describe()} was within "
            f"{200 * TOLERANCE:g} points below "
            f"{target:.1%} of the FLOPs and inside every budget (acceptance below "
            f"{1 / ATTEMPTS:.3%}): change max-ratio, or leave rejection out, which solves for the "
            "budget"
        )


def _cut(allowed: Ladders, cost: CostModel, low: float, high: float) -> Ladders:
    """Return the rungs between the range's ends; where none lies between, the next above."""
    return allowed.cut(
        floor_widths(np.array(high), cost.full), floor_widths(np.array(low), cost.full)
    )
