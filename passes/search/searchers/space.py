"""The space of a search: widths by gene on a grid of scales, inside the budgets.

A gene is a set of channel groups that share one scale (`gene_order.Gene`): every group its own,
or tied as MetaPruning ties stages and the insides of blocks. A gene's value is an index into the
grid, and a group of width C gets ``int(C * scale)`` (MetaPruning truncates), moved down to the next
width that its constraints allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import check_reachable, within
from pruneopt.passes.analysis.residual.gene_order import Gene
from pruneopt.passes.selection.alignment import Alignment
from pruneopt.passes.selection.ladders import Bounds, Ties, ladders
from pruneopt.passes.selection.select import Scores

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = ["GRID", "Proposal", "Space", "untied_genes"]

GRID = tuple(range(10, 101, 3))
"""MetaPruning's scales in percent: 0.10, 0.13, ..., 1.00. Integers, so that ``C * scale`` truncates
exactly."""


@dataclass(frozen=True)
class Proposal:
    """A structure to be judged.

    Attributes:
        widths: int64 `[G]`, in the order of ``cost.groups``.
        scales: float64 `[G]`, the grid scale of every group (1 where it has no gene); None off the
            grid.
        attempts: how many vectors were drawn until this one fitted.
    """

    widths: np.ndarray
    scales: np.ndarray | None = None
    attempts: int = 1


def untied_genes(coupling: Coupling) -> list[Gene]:
    """Return one gene per free group."""
    return [Gene((group.name,), group.width) for group in coupling.free]


def tied_genes(genes: Sequence[Gene], sets: Sequence[Sequence[str]]) -> list[Gene]:
    """Return the genes with those that share groups of a tied set made one; what a frozen one is
    tied to is frozen too."""
    found = list(genes)
    for names in sets:
        mine = [gene for gene in found if set(gene.groups) & set(names)]
        if len(mine) > 1:
            groups = tuple(dict.fromkeys(name for gene in mine for name in gene.groups))
            frozen = next((gene.frozen for gene in mine if gene.frozen is not None), None)
            found[found.index(mine[0])] = Gene(groups, mine[0].width, frozen)
            found = [gene for gene in found if gene not in mine]
    return found


class Space:
    """The structures that a search may propose.

    Args:
        coupling, cost: of the network; cost gives the order of the groups.
        budgets: every proposal is inside all of them.
        scores: per unit of every free group, for searchers that look at the units themselves.
        genes: see the module's text; frozen ones keep their full width.
        grid: scales in percent, ascending, the last one 100.
        window: proposals must use at least ``1 - window`` of the tightest budget; None sets no
            lower bound.
        round_to, minimum, bounds, tied: see `ladders`; genes that a tie joins are one.

    Raises:
        BudgetError: a budget that no structure of the grid reaches.
        UserError: nothing to search, or an impossible option.
    """

    def __init__(
        self,
        coupling: Coupling,
        cost: CostModel,
        budgets: Sequence[Budget],
        scores: Scores,
        *,
        genes: Sequence[Gene] | None = None,
        grid: Sequence[int] = GRID,
        window: float | None = None,
        round_to: int | Alignment = 1,
        minimum: float = 1,
        bounds: Bounds | None = None,
        tied: Ties = (),
    ) -> None:
        if not cost.groups:
            raise UserError(
                f"no channel group of {cost.graph.name} can be pruned; `pruneopt inspect` says why"
            )
        if not len(grid) or list(grid) != sorted(set(grid)) or grid[0] < 1 or grid[-1] != 100:
            raise UserError(
                "the scales of a grid are whole percentages in ascending order, and the last one "
                "is 100"
            )
        if window is not None and not 0 < window <= 1:
            raise UserError(
                f"window={window:g} must be a share of the budget, above 0 and at most 1"
            )
        self.coupling, self.cost, self.budgets, self.scores = coupling, cost, tuple(budgets), scores
        self.round_to, self.minimum, self.window = round_to, minimum, window
        self.grid = np.array(grid, dtype=np.int64)
        self.bounds, self.tied = bounds, tied
        self.allowed = ladders(
            coupling, cost, round_to=round_to, minimum=minimum, bounds=bounds, tied=tied
        )
        sets = [[cost.groups[column] for column in columns] for columns in self.allowed.tied]
        chosen = tied_genes(untied_genes(coupling) if genes is None else genes, sets)
        self.genes = tuple(gene for gene in chosen if gene.frozen is None)
        if not self.genes:
            raise UserError(
                f"no gene of {cost.graph.name} is free to be searched; `pruneopt inspect` says why"
            )
        self._gene_of = self._columns()
        check_reachable(self.budgets, cost, minimum=self.allowed.lowest)
        self._check_lowest()
        self._check_window(self.allowed.highest, "the original uses", "give a smaller budget")

    def under(self, budgets: Sequence[Budget]) -> Space:
        """Return the same space inside other budgets.

        Raises:
            BudgetError: a budget that no structure of the grid reaches.
        """
        found = copy(self)
        found.budgets = tuple(budgets)
        check_reachable(found.budgets, found.cost, minimum=found.allowed.lowest)
        found._check_lowest()
        return found

    @property
    def untied(self) -> bool:
        """Return whether every free group has a gene of its own, or one with those that it is tied
        to."""
        return len(self.genes) == len(self.allowed.moves) and bool((self._gene_of >= 0).all())

    def _columns(self) -> np.ndarray:
        """Return the number of the gene of every group, -1 for none, int64 `[G]`."""
        place = {name: column for column, name in enumerate(self.cost.groups)}
        found = np.full(len(self.cost.groups), -1, dtype=np.int64)
        for number, gene in enumerate(self.genes):
            for name in gene.groups:
                found[place[name]] = number
        return found

    def _check_lowest(self) -> None:
        """Raise `BudgetError`, with what is reachable, where even the smallest structure of the
        grid is outside a budget."""
        lowest = self.widths_of(np.zeros(len(self.genes), dtype=np.int64))
        try:
            check_reachable(self.budgets, self.cost, minimum=lowest)
        except BudgetError as error:
            raise BudgetError(
                f"{error}; the search keeps at least {self.grid[0]} % of every width"
            ) from error

    def check_range(self, low: int, high: int, least: str, most: str) -> None:
        """Refuse a range of grid indices without a feasible structure; the texts are the options
        that set the range.

        Raises:
            BudgetError: even its smallest structure is outside a budget.
            UserError: even its largest one is below the window.
        """
        ends = self.widths_of(np.repeat([[low], [high]], len(self.genes), axis=1))
        if not within(self.budgets, self.cost, ends[0]):
            texts = ", ".join(budget.text for budget in self.budgets)
            raise BudgetError(
                f"random structures with {least} do not reach {texts}: let them be smaller"
            )
        self._check_window(
            ends[1], f"random structures with {most} use at most", "let them be larger"
        )

    def _check_window(self, widths: np.ndarray, what: str, remedy: str) -> None:
        """Raise `UserError` where not even structures as wide as ``widths`` `[G]` reach the
        window."""
        if self.window is None or not self.budgets:
            return
        share, least = float(self.used(widths[None])[0]), 1 - self.window
        if share < least:
            raise UserError(
                f"{what} {share:.1%} of the tightest budget, and window={self.window:g} asks for "
                f"{least:.1%}: {remedy}"
                ", or use a wider window"
            )

    # Structures

    def scales_of(self, indices: np.ndarray) -> np.ndarray:
        """Map grid indices `[P, L]` or `[L]` to the scale of every group, float64 `[P, G]` or
        `[G]`."""
        percent = np.append(self.grid[indices], np.full((*indices.shape[:-1], 1), 100), axis=-1)
        result: np.ndarray = percent[..., self._gene_of] / 100
        return result

    def widths_of(self, indices: np.ndarray) -> np.ndarray:
        """Map grid indices `[P, L]` or `[L]` to the width of every group, int64 `[P, G]` or
        `[G]`."""
        percent = np.append(self.grid[indices], np.full((*indices.shape[:-1], 1), 100), axis=-1)
        rows = np.atleast_2d(self.cost.full * percent[..., self._gene_of] // 100)
        result: np.ndarray = self.allowed.floor(rows)
        return result.reshape((*indices.shape[:-1], len(self.cost.groups)))

    def proposal(self, indices: np.ndarray, attempts: int = 1) -> Proposal:
        """Return the structure of one index vector `[L]`."""
        return Proposal(self.widths_of(indices), self.scales_of(indices), attempts)

    def feasible(self, widths: np.ndarray) -> np.ndarray:
        """Return whether structures `[P, G]` are inside every budget, and not below the window,
        bool `[P]`."""
        inside = np.asarray(within(self.budgets, self.cost, widths))
        if self.window is not None and self.budgets:
            inside &= self.used(widths) >= 1 - self.window
        return inside

    def used(self, widths: np.ndarray) -> np.ndarray:
        """Return the share of the tightest budget that structures `[P, G]` use, float64 `[P]`; 0
        without budgets."""
        shares = [self.cost.measure(b.unit, widths) / b.limit(self.cost) for b in self.budgets]
        return np.max(shares, axis=0) if shares else np.zeros(len(widths))

    # Random structures

    def uniform(
        self, rng: np.random.Generator, low: int = 0, high: int | None = None
    ) -> np.ndarray:
        """Draw independent grid indices, each uniform on ``low`` to ``high`` (included), int64
        `[L]`."""
        return rng.integers(low, len(self.grid) if high is None else high + 1, len(self.genes))

    def moved(
        self, indices: np.ndarray, rng: np.random.Generator, low: int = 0, high: int | None = None
    ) -> np.ndarray | None:
        """Return an index vector moved to a feasible one: single steps down in random places until
        every budget is met, then up in random places until the window is. Indices from ``low`` to
        ``high`` (included) stay there. None where no such walk ends inside.
        """
        top = len(self.grid) - 1 if high is None else high
        down = _walk(indices, indices - low, -1, rng)
        inside = np.flatnonzero(within(self.budgets, self.cost, self.widths_of(down)))
        if not len(inside):
            return None
        found: np.ndarray = down[inside[0]]
        room = top - found
        while not self.feasible(self.widths_of(found)[None])[0]:
            if not room.any():
                return None
            up = _walk(found, room, 1, rng)
            widths = self.widths_of(up)
            fits = np.flatnonzero(self.feasible(widths))
            if len(fits):
                return np.array(up[fits[0]])
            # Costs grow with the widths: what does not fit now never will.
            last = int(np.flatnonzero(within(self.budgets, self.cost, widths))[-1])
            found, blocked = up[last], up[min(last + 1, len(up) - 1)] > up[last]
            room = np.where(blocked | (room == 0), 0, top - found)
        return found


def _walk(start: np.ndarray, room: np.ndarray, sign: int, rng: np.random.Generator) -> np.ndarray:
    """Return the places of a random walk from ``start`` `[L]` on, int64 `[1 + steps, L]`: every
    step moves one gene by ``sign``, any of those that have ``room`` left with equal probability,
    until none has.
    """
    # Events of independent Poisson processes come in just this order.
    times = rng.exponential(size=(len(start), int(room.max(initial=0)))).cumsum(axis=1)
    owner, place = np.nonzero(np.arange(times.shape[1]) < room[:, None])
    order = owner[np.argsort(times[owner, place])]
    steps = np.zeros((1 + len(order), len(start)), dtype=np.int64)
    steps[np.arange(1, len(steps)), order] = sign
    walk: np.ndarray = start + steps.cumsum(axis=0)
    return walk
