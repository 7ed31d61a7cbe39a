"""The allowed widths of every group, ascending; without bounds and ties up to the full width.

A rung is a multiple of the group's step (blocks keep equal counts) and of the rounding, from the
minimum to the full width. A user may bound the widths of a group, and tie groups: tied groups have
the same rungs and climb together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.importance.importance import produced_slots
from pruneopt.passes.selection.alignment import Alignment

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = [
    "Bounds",
    "Ladders",
    "Ties",
    "channels_per_unit",
    "common_rungs",
    "ladders",
    "tied_columns",
]

Bounds = Mapping[str, tuple[int, int]]
"""Group -> the smallest and the largest width it may get."""
Ties = Sequence[Sequence[str]]
"""Sets of groups that get the same width; sets that share a group are one."""
SHOWN = 6
"""How many rungs an error lists."""


@dataclass(frozen=True)
class Ladders:
    """The allowed widths of every group of a cost model, ascending. Without bounds and ties the
    last is the full width.

    Attributes:
        rungs: int64, of every group.
        tied: the columns of groups that have the same width; they have the same rungs.
    """

    rungs: tuple[np.ndarray, ...]
    tied: tuple[tuple[int, ...], ...] = ()

    @property
    def lowest(self) -> np.ndarray:
        """The smallest allowed widths, int64 `[G]`."""
        return np.array([rung[0] for rung in self.rungs], dtype=np.int64)

    @property
    def highest(self) -> np.ndarray:
        """The largest allowed widths, int64 `[G]`."""
        return np.array([rung[-1] for rung in self.rungs], dtype=np.int64)

    @cached_property
    def moves(self) -> tuple[np.ndarray, ...]:
        """The columns that move together: one array for every single group or tied set."""
        first = {columns[0]: columns for columns in self.tied}
        inside = {column for columns in self.tied for column in columns}
        starts = [i for i in range(len(self.rungs)) if i in first or i not in inside]
        return tuple(np.array(first.get(i, (i,)), dtype=np.int64) for i in starts)

    def moved(self, widths: np.ndarray, to: np.ndarray) -> np.ndarray:
        """Return ``widths`` `[G]` with every move to ``to`` `[G]` made alone: int64 `[M, G]`."""
        trials = np.repeat(widths[None], len(self.moves), axis=0)
        for row, columns in zip(trials, self.moves, strict=True):
            row[columns] = to[columns]
        return trials

    def even(self, widths: np.ndarray) -> np.ndarray:
        """Return widths `[P, G]` in which tied groups have their mean, rounded down.

        So none of them decides for the others.
        """
        widths = widths.copy()
        for columns in map(list, self.tied):
            widths[:, columns] = widths[:, columns].sum(axis=1, keepdims=True) // len(columns)
        return widths

    def floor(self, widths: np.ndarray) -> np.ndarray:
        """Return the largest allowed widths not above ``widths`` `[P, G]`, else the lowest."""
        places = [
            np.searchsorted(rung, widths[:, i], side="right") - 1
            for i, rung in enumerate(self.rungs)
        ]
        found = np.stack(
            [rung[np.maximum(at, 0)] for rung, at in zip(self.rungs, places, strict=True)], axis=1
        )
        # Tied groups have the same rungs, but may come with widths of their own.
        for columns in map(list, self.tied):
            found[:, columns] = found[:, columns].min(axis=1, keepdims=True)
        return found

    def above(self, widths: np.ndarray) -> np.ndarray:
        """Return the next allowed widths above ``widths`` `[G]`; the same where there is none."""
        places = [
            np.searchsorted(rung, width, side="right")
            for rung, width in zip(self.rungs, widths, strict=True)
        ]
        return np.array(
            [rung[min(at, len(rung) - 1)] for rung, at in zip(self.rungs, places, strict=True)],
            np.int64,
        )

    def cut(self, least: np.ndarray, most: np.ndarray) -> Ladders:
        """Return the rungs from ``least`` to ``most`` `[G]`; if none, the next above ``least``."""
        least, most = least.copy(), most.copy()
        for columns in map(list, self.tied):
            least[columns], most[columns] = least[columns].max(), most[columns].min()
        rungs = []
        for rung, bottom, top in zip(self.rungs, least, most, strict=True):
            above = rung[rung >= bottom]
            inside = above[above <= top]
            rungs.append(inside if len(inside) else above[:1] if len(above) else rung[-1:])
        return Ladders(tuple(rungs), self.tied)


def ladders(
    coupling: Coupling,
    cost: CostModel,
    *,
    round_to: int | Alignment = 1,
    minimum: float = 1,
    ignore: Collection[str] = (),
    bounds: Bounds | None = None,
    tied: Ties = (),
) -> Ladders:
    """Return the allowed widths of every group.

    Args:
        round_to: kept channel counts are multiples of this (a unit may own several channels of a
            tensor); the full width stays allowed, and groups with fewer channels than this keep
            all. What a target likes gives every group a multiple of its own.
        minimum: the fewest units a group keeps, or, below 1, the smallest share of its width.
        ignore: groups that keep all.
        bounds: the smallest and largest width of free groups. A single width (both are the same) is
            taken as it is, whatever ``round_to`` and ``minimum`` say; only blocks must still be
            equally wide.
        tied: free groups that get the same width, which every one of them allows.

    Raises:
        UserError: ``round_to`` below 1, ``minimum`` not above 0, a name that is no free group, or
            no width left.
    """
    if not isinstance(round_to, Alignment) and round_to < 1:
        raise UserError(
            f"round-to={round_to} is impossible: use 1 (no rounding) or more, such as 8"
        )
    if not minimum > 0:
        raise UserError(
            f"minimum={minimum:g} is impossible: no group may vanish; use a share (0.1), or 1, 2, "
            "..."
        )
    sets = tied_columns(coupling, cost, tied)
    limits = _limits(coupling, cost, bounds or {}, sets)
    channels = channels_per_unit(coupling) if round_to != 1 else {}
    found = []
    for i, name in enumerate(cost.groups):
        full, step = int(cost.full[i]), int(cost.step[i])
        own = channels.get(name, 1)
        multiple = round_to.multiple(full * own) if isinstance(round_to, Alignment) else round_to
        # Widths count units: a unit of several channels needs so much less to fill a multiple.
        grain = math.lcm(step, multiple // math.gcd(multiple, own))
        least = math.ceil(minimum * full - 1e-9) if minimum < 1 else min(full, math.ceil(minimum))
        first = -(-max(least, int(cost.minimum[i]), 1) // grain) * grain
        rungs = np.array(
            [full] if name in ignore else [*range(first, full, grain), full], dtype=np.int64
        )
        if name in limits:
            low, high = limits[name]
            # A width that was asked for by its number wins over rounding, which is only a wish.
            alone = low == high <= full and low % step == 0 and name not in ignore
            rungs = np.array([low], dtype=np.int64) if alone else _bounded(name, rungs, low, high)
        found.append(rungs)
    return Ladders(tuple(common_rungs(cost, found, sets)), sets)


def tied_columns(coupling: Coupling, cost: CostModel, tied: Ties) -> tuple[tuple[int, ...], ...]:
    """Return the columns of tied groups, each set ascending; sets that share a group are one.

    Raises:
        UserError: a name that is no free group.
    """
    sets: list[set[int]] = []
    for names in tied:
        new = {_column(coupling, cost, name, "tied") for name in names}
        for other in [other for other in sets if other & new]:
            sets.remove(other)
            new |= other
        sets.append(new)
    return tuple(sorted(tuple(sorted(columns)) for columns in sets if len(columns) > 1))


def _column(coupling: Coupling, cost: CostModel, name: str, what: str) -> int:
    if name in cost.groups:
        return cost.groups.index(name)
    frozen = {group.name: group.frozen for group in coupling.groups if group.frozen is not None}
    if name in frozen:
        raise UserError(f"group {name} cannot be {what}: it is frozen, {frozen[name]}")
    raise UserError(
        f"group {name} cannot be {what}: {cost.graph.name} has no channel group of this name"
    )


def _limits(
    coupling: Coupling, cost: CostModel, bounds: Bounds, sets: Sequence[Sequence[int]]
) -> dict[str, tuple[int, int]]:
    """Return the bounds by group, with those of tied groups in each of them."""
    given = {_column(coupling, cost, name, "given a width"): pair for name, pair in bounds.items()}
    for column, (low, high) in given.items():
        if not 1 <= low <= high:
            raise UserError(
                f"group {cost.groups[column]} cannot have from {low} to {high} channels: no such "
                "width"
            )
    for columns in sets:
        mine = [given[column] for column in columns if column in given]
        if mine:
            pair = max(low for low, _ in mine), min(high for _, high in mine)
            if pair[0] > pair[1]:
                names = ", ".join(cost.groups[column] for column in columns)
                raise UserError(
                    f"the groups {names} are tied, but one must keep at least {pair[0]} and "
                    f"another at most {pair[1]}: "
                    "leave out the tie, or one of the widths"
                )
            given.update(dict.fromkeys(columns, pair))
    return {cost.groups[column]: pair for column, pair in given.items()}


def _bounded(name: str, rungs: np.ndarray, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = rungs[(rungs >= low) & (rungs <= high)]
    if not len(inside):
        asked = f"{low}" if low == high else f"from {low} to {high}"
        raise UserError(f"group {name} cannot keep {asked} channels: it may keep {_shown(rungs)}")
    return inside


def common_rungs(
    cost: CostModel, rungs: Sequence[np.ndarray], tied: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Return the rungs of all groups, of tied ones the common ones; `UserError` for none."""
    found = list(rungs)
    for columns in tied:
        common = found[columns[0]]
        for column in columns[1:]:
            common = np.intersect1d(common, found[column])
        if not len(common):
            each = "; ".join(
                f"{cost.groups[column]} may keep {_shown(found[column])}" for column in columns
            )
            raise UserError(
                f"groups that are tied must be equally wide, but no width suits all of them: {each}"
            )
        for column in columns:
            found[column] = common
    return found


def _shown(rungs: np.ndarray) -> str:
    texts = [str(rung) for rung in rungs]
    return ", ".join(texts if len(texts) <= SHOWN else [*texts[: SHOWN - 2], "...", texts[-1]])


def channels_per_unit(coupling: Coupling) -> dict[str, int]:
    """Return the output channels per unit of every group, the common divisor of its layers."""
    common = np.zeros(len(coupling.groups), dtype=np.int64)
    for slot in produced_slots(coupling):
        units = slot.units[slot.units >= 0]
        owners, counts = np.unique(units, return_counts=True)
        np.gcd.at(common, coupling.unit_group[owners], counts)
    return {
        group.name: max(1, int(count)) for group, count in zip(coupling.groups, common, strict=True)
    }
