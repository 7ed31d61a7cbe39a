"""From labels to units: what lives or dies together, and blocks that must keep equal counts.

Units are the connected components of the labels. A view that splits channels over several axes (heads, groups,
shuffles) asks every block for the same number of kept channels. Where such demands cannot be met by counts alone (a
transposed view, blocks of different kinds), the channels at the same place of every block are united: always right,
less free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pruneopt.errors import InternalError
from pruneopt.ir.graph import Value
from pruneopt.passes.analysis.label_moves import view_blocks
from pruneopt.passes.analysis.labels import Blocks, Labels
from pruneopt.passes.analysis.planes import varying

__all__ = ["Cell", "Slot", "Units", "find_units"]

MAX_ROUNDS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One labelled plane of a value, and the unit (or -1) of each of its elements."""

    value: Value
    axes: tuple[int, ...]
    units: np.ndarray


@dataclass(frozen=True, slots=True)
class Cell:
    """Units of one kind in one block; every cell of the same ``family`` keeps as many."""

    family: int
    units: tuple[int, ...]


@dataclass
class Units:
    """All units: how many, why frozen (None: free), where they occur, and in which cell they are."""

    count: int
    frozen: list[str | None]
    slots: list[Slot]
    of_label: np.ndarray
    """The unit (or -1) of every label."""
    cells: list[Cell] = field(default_factory=list)


def find_units(labels: Labels) -> Units:
    """Units and cells; ties are added until every demand for equal counts can be met by counting."""
    blocks = [*labels.blocks, *view_blocks(labels)]
    for _ in range(MAX_ROUNDS):
        units = _components(labels)
        ties = _settle(labels, units, blocks)
        if not ties:
            return units
    for block in blocks:
        labels.freeze(block.plane, f"blocks of {block.op} could not be reconciled")
    units = _components(labels)
    if _settle(labels, units, []):
        raise InternalError("cells without blocks asked for ties")
    return units


def _components(labels: Labels) -> Units:
    """Connected components, numbered by first occurrence in the graph so that the result is deterministic."""
    size = labels.count
    if labels.edges:
        a = np.concatenate([edge[0] for edge in labels.edges])
        b = np.concatenate([edge[1] for edge in labels.edges])
        matrix = coo_matrix((np.ones(len(a), dtype=bool), (a, b)), shape=(size, size))
        _, raw = connected_components(matrix, directed=False)
    else:
        raw = np.arange(size)
    used, slots = _slots(labels, raw)
    number = np.full(raw.max(initial=0) + 1, -1)
    made = np.zeros(len(number), dtype=bool)
    for produced in labels.produced:
        made[raw[produced]] = True
    used = used[made[used]]  # what no layer produces (positions, padding alone) always stays
    number[used] = np.arange(len(used))
    component = number[raw]
    component[0] = -1
    for index, slot in enumerate(slots):
        slots[index] = Slot(slot.value, slot.axes, component[slot.units])
    frozen: list[str | None] = [None] * len(used)
    for array, why in labels.frozen:
        for unit in np.unique(component[array]):
            if unit >= 0 and frozen[unit] is None:
                frozen[unit] = why
    return Units(len(used), frozen, slots, component)


def _slots(labels: Labels, raw: np.ndarray) -> tuple[np.ndarray, list[Slot]]:
    """Every labelled plane of every value (units still raw labels), and raw components in order of occurrence."""
    slots: list[Slot] = []
    order: list[np.ndarray] = []
    for value in labels.graph.values:
        for plane in labels.of(value):
            array = plane.numpy()
            slots.append(Slot(value, varying(plane), array))
            flat = array.reshape(-1)
            order.append(raw[flat[flat > 0]])
    if not order:
        return np.zeros(0, dtype=np.int64), slots
    everything = np.concatenate(order)
    values, first = np.unique(everything, return_index=True)
    return values[np.argsort(first)], slots


# Blocks


@dataclass(frozen=True, slots=True)
class _Demand:
    """Distinct rows of units, of which each must keep as many; they run along ``axis`` of the block's plane."""

    block: Blocks
    rows: np.ndarray
    axis: int


def _settle(labels: Labels, units: Units, blocks: list[Blocks]) -> bool:
    """Divide units into cells; where a demand cannot be counted, unite channels and return True."""
    demands: list[_Demand] = []
    changed = False
    seen: set[tuple[bytes, tuple[int, ...], int]] = set()
    for block in blocks:
        plane = units.of_label[block.plane.numpy()]
        key = (plane.tobytes(), plane.shape, block.pinned)
        if key in seen:
            continue
        seen.add(key)
        rows, axis = _rows(plane)
        if rows is None or (axis == 0 and not block.pinned):
            continue
        distinct = _distinct_rows(rows)
        if axis < block.pinned or (len(distinct) > 1 and (rows < 0).any()):
            if any(units.frozen[unit] is None for unit in np.unique(rows[rows >= 0])):
                labels.freeze(block.plane, f"only whole blocks of {block.op} could be removed")
                changed = True
        elif len(distinct) > 1 and _are_disjoint(distinct):
            demands.append(_Demand(block, distinct, axis))
        elif len(distinct) > 1:
            labels.tie(block.plane, range(axis))
            changed = True
    return changed or _make_cells(labels, units, demands)


def _rows(units: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Units as rows along the innermost axis on which they differ, and that axis; None if they nowhere do."""
    while units.ndim > 1 and bool((units == units[..., :1]).all()):
        units = units[..., 0]
    if units.ndim == 1 and bool((units == units[:1]).all()):
        return None, 0
    return units.reshape(-1, units.shape[-1]), units.ndim - 1


def _distinct_rows(rows: np.ndarray) -> np.ndarray:
    """The different rows of a block matrix (a batch of heads repeats them)."""
    first: dict[bytes, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.tobytes(), index)
    return rows[list(first.values())]


def _are_disjoint(rows: np.ndarray) -> bool:
    """Whether no unit occurs in two rows."""
    return sum(len(np.unique(row)) for row in rows) == len(np.unique(rows))


def _make_cells(labels: Labels, units: Units, demands: list[_Demand]) -> bool:
    """Cells by kind and row; returns True when ties were added instead."""
    families, cells_of = _families(units, demands)
    link = _Links(int(families.max(initial=-1)) + 1)
    unbalanced = [demand for demand in demands if not _balanced(demand.rows, families, link)]
    for demand in unbalanced:
        labels.tie(demand.block.plane, range(demand.axis))
    if unbalanced:
        return True
    order = np.argsort(cells_of, kind="stable")
    borders = np.flatnonzero(np.diff(cells_of[order])) + 1
    cells = [
        Cell(link.root(int(families[members[0]])), tuple(members.tolist()))
        for members in (np.split(order, borders) if len(order) else [])
    ]
    if _cells_are_uneven(labels, cells, demands, units.frozen):
        return True
    units.cells = cells
    return False


def _families(units: Units, demands: list[_Demand]) -> tuple[np.ndarray, np.ndarray]:
    """The family of every unit (its kind, and in which demands it stands) and its cell (in which rows, too)."""
    empty = np.zeros(0, dtype=np.int64)
    member = np.concatenate([empty, *(demand.rows.reshape(-1) for demand in demands)])
    which = np.concatenate([empty, *(np.full(demand.rows.size, i) for i, demand in enumerate(demands))])
    row = np.concatenate([empty, *(np.repeat(np.arange(len(d.rows)), d.rows.shape[1]) for d in demands)])
    kinds = _kinds(units)
    everyone = np.arange(units.count)
    base = (np.concatenate([everyone, member]), np.concatenate([np.full(units.count, -1), which]))
    families = _signatures(units.count, *base, np.concatenate([kinds, np.zeros_like(member)]))
    return families, _signatures(units.count, *base, np.concatenate([kinds, row]))


def _kinds(units: Units) -> np.ndarray:
    """A number per unit, equal for units alike: the same number of elements in every slot, and equally frozen."""
    reasons = {why: index for index, why in enumerate(dict.fromkeys(units.frozen))}
    columns = [(np.arange(units.count), np.full(units.count, -1), np.array([reasons[why] for why in units.frozen]))]
    seen: set[bytes] = set()
    for index, slot in enumerate(units.slots):
        content = slot.units.tobytes()
        if content not in seen:
            seen.add(content)
            counts = np.bincount(slot.units.reshape(-1) + 1)[1:]
            found = np.flatnonzero(counts)
            columns.append((found, np.full(len(found), index), counts[found]))
    member, which, times = (np.concatenate([column[i] for column in columns]) for i in range(3))
    return _signatures(units.count, member, which, times)


def _signatures(count: int, member: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """A number per unit, equal for units with the same rows of ``columns``; numbered by first occurrence."""
    order = np.lexsort((*reversed(columns), member))
    table = np.stack([column[order] for column in columns], axis=1).astype(np.int64)
    starts = np.searchsorted(member[order], np.arange(count + 1))
    first = np.flatnonzero(_differs_from_last(member[order], table, np.diff(starts)))
    content, width = table.tobytes(), table.itemsize * len(columns)
    ends = (starts[first + 1] * width).tolist()
    numbers: dict[bytes, int] = {}
    found = [
        numbers.setdefault(content[start:end], len(numbers))
        for start, end in zip((starts[first] * width).tolist(), ends, strict=True)
    ]
    return np.repeat(np.array(found, dtype=np.int64), np.diff(np.append(first, count)))


def _differs_from_last(member: np.ndarray, table: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which units have other rows than the unit before them (neighbours are mostly alike); the first one does."""
    other = np.append(True, lengths[1:] != lengths[:-1])[: len(lengths)]
    comparable = np.flatnonzero(~other[member])
    differ = (table[comparable] != table[comparable - lengths[member[comparable]]]).any(axis=1)
    other[member[comparable[differ]]] = True
    return other


def _balanced(rows: np.ndarray, families: np.ndarray, link: _Links) -> bool:
    """Whether every row holds families of the same sizes in the same order; such families are linked."""
    kinds = families[rows]
    if bool((kinds == kinds[:1]).all()):
        return True
    profiles = []
    for row in kinds:
        found, first, counts = np.unique(row, return_index=True, return_counts=True)
        order = np.argsort(first)
        profiles.append([(int(found[i]), int(counts[i])) for i in order])
    counts_of = [[count for _, count in profile] for profile in profiles]
    if any(counts != counts_of[0] for counts in counts_of[1:]):
        return False
    for profile in profiles[1:]:
        for (a, _), (b, _) in zip(profiles[0], profile, strict=True):
            link.join(a, b)
    return True


def _cells_are_uneven(
    labels: Labels, cells: list[Cell], demands: list[_Demand], frozen: list[str | None]
) -> bool:
    """Cells of one family must be equally large, and larger than one unit where a row is; else channels are tied. Of
    what is frozen one unit will do: it stays.
    """
    sizes: dict[int, set[int]] = {}
    count: dict[int, int] = {}
    for cell in cells:
        sizes.setdefault(cell.family, set()).add(len(cell.units))
        count[cell.family] = count.get(cell.family, 0) + 1
    bad = {unit for cell in cells if len(sizes[cell.family]) > 1 for unit in cell.units}
    single = {u for c in cells if sizes[c.family] == {1} and count[c.family] > 1 for u in c.units if frozen[u] is None}
    uneven = [demand for demand in demands if not bad.isdisjoint(demand.rows.reshape(-1).tolist())]
    for demand in uneven:
        labels.tie(demand.block.plane, range(demand.axis))
    return bool(uneven) or (bool(single) and _tie_rows(labels, single, demands))


def _tie_rows(labels: Labels, single: set[int], demands: list[_Demand]) -> bool:
    """Two views that cut the same channels crosswise (a shuffle) leave cells of one unit. There whole rows go together:
    the shorter ones, and not those that must stay.
    """
    fixed = [demand for demand in demands if demand.block.pinned >= demand.axis > 0]
    tied = False
    for demand in sorted(demands, key=lambda d: (_lies_within(d, fixed), d.rows.shape[1])):
        inside = demand.rows.reshape(-1).tolist()
        if not single.isdisjoint(inside):
            labels.tie(demand.block.plane, range(demand.axis, demand.block.plane.dim()))
            single = single.difference(inside)
            tied = True
    return tied


def _lies_within(demand: _Demand, fixed: list[_Demand]) -> bool:
    """Whether a row of a demand lies within one row that must stay."""
    for other in fixed:
        row_of = {unit: row for row, units in enumerate(other.rows.tolist()) for unit in units}
        for row in demand.rows.tolist():
            places = {row_of.get(unit) for unit in row}
            if len(places) == 1 and None not in places:
                return True
    return False


class _Links:
    """Union of family numbers."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            item = self._parent[item]
        return item

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)
