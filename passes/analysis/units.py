"""From labels to units: what lives or dies together, and blocks that must keep equal counts.

Units are the connected components of the labels. A view that splits channels over several axes (heads, groups, shuffles)
asks every block for the same number of kept channels. Where such demands cannot be met by counts alone (a transposed
view, blocks of different kinds), the channels at the same place of every block are united: always right, less free.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pruneopt.ir.graph import Value
from pruneopt.passes.analysis.label_moves import view_blocks
from pruneopt.passes.analysis.labels import Blocks, Labels
from pruneopt.passes.analysis.planes import varying

__all__ = ["Cell", "Slot", "Units", "find_units"]

MAX_ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Slot:
    """One labelled plane of a value, and the unit (or -1) of each of its elements."""

    value: Value
    axes: tuple[int, ...]
    units: np.ndarray


@dataclass(frozen=True, slots=True)
class Cell:
    """Units of one kind in one block: ``units`` of equal kind, of which every cell of the same ``family`` keeps as many."""

    family: int
    units: tuple[int, ...]


@dataclass
class Units:
    """All units: how many, why frozen (None: free), where they occur, and in which cell they are."""

    count: int
    frozen: list[str | None]
    slots: list[Slot]
    cells: list[Cell] = field(default_factory=list)


def find_units(labels: Labels) -> Units:
    """Units and cells; ties are added until every demand for equal counts can be met by counting."""
    blocks = [*labels.blocks, *view_blocks(labels)]
    for _ in range(MAX_ROUNDS):
        units, component = _components(labels)
        ties = _settle(labels, units, component, blocks)
        if not ties:
            return units
    for block in blocks:
        labels.freeze(block.rows, f"blocks of {block.op} could not be reconciled")
    units, component = _components(labels)
    if _settle(labels, units, component, []):
        raise AssertionError("cells without blocks ask for no ties")
    return units


def _components(labels: Labels) -> tuple[Units, np.ndarray]:
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
    for start, stop in labels.produced:
        made[raw[start:stop]] = True
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
    return Units(len(used), frozen, slots), component


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


def _settle(labels: Labels, units: Units, component: np.ndarray, blocks: list[Blocks]) -> bool:
    """Divide units into cells; where a demand cannot be counted, unite channels and return True."""
    demands = []
    changed = False
    for block in blocks:
        rows = _distinct_rows(component[block.rows.numpy()])
        if rows is None or rows.shape[0] < 2:
            continue
        verdict = _classify(rows)
        if verdict == "free":
            demands.append((block, rows))
        elif verdict == "overlap":
            _tie_columns(labels, block)
            changed = True
        elif verdict == "fixed" or not block.may_vanish:
            if any(units.frozen[unit] is None for unit in np.unique(rows[rows >= 0])):
                labels.freeze(block.rows, f"only whole blocks of {block.op} could be removed")
                changed = True
    return changed or _make_cells(labels, units, demands)


def _distinct_rows(rows: np.ndarray) -> np.ndarray | None:
    """The different rows of a block matrix (a batch of heads repeats them); None when there is one kind of row only."""
    _, first = np.unique(rows, axis=0, return_index=True)
    distinct = rows[np.sort(first)]
    return None if len(distinct) < 2 else distinct


def _classify(rows: np.ndarray) -> str:
    """``vanish``: each row is one unit; ``overlap``: rows share units; ``free``: all units are different; ``fixed``: some
    channels belong to no unit.
    """
    if (rows < 0).any():
        return "fixed"
    if (rows == rows[:, :1]).all():
        return "vanish"
    return "free" if len(np.unique(rows)) == rows.size else "overlap"


def _tie_columns(labels: Labels, block: Blocks) -> None:
    labels.tie(block.rows, [0])


def _make_cells(labels: Labels, units: Units, demands: list[tuple[Blocks, np.ndarray]]) -> bool:
    """Cells by kind and row; returns True when ties were added instead."""
    kind = _kinds(units)
    member: list[list[tuple[int, int]]] = [[] for _ in range(units.count)]
    for index, (_, rows) in enumerate(demands):
        for row, row_units in enumerate(rows):
            for unit in row_units:
                member[unit].append((index, row))
    family_of: dict[tuple[int, tuple[int, ...]], int] = {}
    families = np.empty(units.count, dtype=np.int64)
    cell_of: dict[tuple[int, tuple[tuple[int, int], ...]], list[int]] = {}
    for unit in range(units.count):
        where = tuple(member[unit])
        key = (int(kind[unit]), tuple(index for index, _ in where))
        families[unit] = family_of.setdefault(key, len(family_of))
        cell_of.setdefault((int(families[unit]), where), []).append(unit)
    link = _Links(len(family_of))
    unbalanced = [block for block, rows in demands if not _balanced(rows, families, link)]
    for block in unbalanced:
        _tie_columns(labels, block)
    if unbalanced:
        return True
    cells = [Cell(link.root(family), tuple(members)) for (family, _), members in cell_of.items()]
    if _cells_are_uneven(labels, cells, demands):
        return True
    units.cells = cells
    return False


def _balanced(rows: np.ndarray, families: np.ndarray, link: _Links) -> bool:
    """Whether every row holds families of the same sizes in the same order; such families are linked."""
    profiles = []
    for row in rows:
        found, counts = np.unique(families[row], return_counts=True)
        order = np.argsort([int(np.argmax(families[row] == f)) for f in found])
        profiles.append([(int(found[i]), int(counts[i])) for i in order])
    first = profiles[0]
    for profile in profiles[1:]:
        if [count for _, count in profile] != [count for _, count in first]:
            return False
    for profile in profiles[1:]:
        for (a, _), (b, _) in zip(first, profile, strict=True):
            link.join(a, b)
    return True


def _cells_are_uneven(labels: Labels, cells: list[Cell], demands: list[tuple[Blocks, np.ndarray]]) -> bool:
    """Cells of one family must be equally large, and larger than one unit where a row is; else channels are tied."""
    sizes: dict[int, set[int]] = {}
    count: dict[int, int] = {}
    for cell in cells:
        sizes.setdefault(cell.family, set()).add(len(cell.units))
        count[cell.family] = count.get(cell.family, 0) + 1
    bad = {unit for cell in cells if len(sizes[cell.family]) > 1 for unit in cell.units}
    single = {u for c in cells if sizes[c.family] == {1} and count[c.family] > 1 for u in c.units}
    uneven = [block for block, rows in demands if not bad.isdisjoint(rows.reshape(-1).tolist())]
    for block in uneven:
        _tie_columns(labels, block)
    if uneven:
        return True
    # Two views that cut the same channels crosswise (a shuffle) leave cells of one unit: the channels of the shorter
    # rows go together.
    tied = False
    for block, rows in sorted(demands, key=lambda demand: demand[1].shape[1]):
        inside = rows.reshape(-1).tolist()
        if not single.isdisjoint(inside):
            labels.tie(block.rows, [1])
            single -= set(inside)
            tied = True
    return tied


def _kinds(units: Units) -> np.ndarray:
    """A number per unit, equal for units alike: the same number of elements in every slot, and equally frozen."""
    reasons = {why: index for index, why in enumerate(dict.fromkeys(units.frozen))}
    keys: list[list[tuple[int, int]]] = [[(-1, reasons[why])] for why in units.frozen]
    for index, slot in enumerate(units.slots):
        found, counts = np.unique(slot.units, return_counts=True)
        for unit, times in zip(found.tolist(), counts.tolist(), strict=True):
            if unit >= 0:
                keys[unit].append((index, times))
    numbers: dict[tuple[tuple[int, int], ...], int] = {}
    return np.array([numbers.setdefault(tuple(key), len(numbers)) for key in keys], dtype=np.int64)


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


