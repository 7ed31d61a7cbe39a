"""From labels to units: what lives or dies together, and blocks that must keep equal counts.

Units are the connected components of the labels. A view that splits channels over several axes
(heads, groups, shuffles) asks every block for the same number of kept channels. Where such demands
cannot be met by counts alone (a transposed view, blocks of different kinds), the channels at the
same place of every block are united: always right, less free.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pruneopt.errors import InternalError
from pruneopt.ir.graph import Value
from pruneopt.passes.analysis.channels.labels import Blocks, Labels
from pruneopt.passes.analysis.channels.planes import Plane, varying

__all__ = ["Cell", "Slot", "Units", "find_units"]

MAX_ROUNDS = 40
"""Every round unites channels, so there are fewer each time: networks need a few rounds, and what
is not settled by then is frozen."""


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
    units: np.ndarray
    """Ascending."""


@dataclass
class Units:
    """All units: how many, why frozen, where they occur, and in which cell they are."""

    count: int
    frozen: np.ndarray
    """For every unit its place in ``reasons``, or -1: free."""
    reasons: list[str]
    slots: list[Slot]
    of_label: np.ndarray
    """The unit (or -1) of every label."""
    cells: list[Cell] = field(default_factory=list)


def find_units(labels: Labels) -> Units:
    """Return units and cells; ties are added until every demand for equal counts can be met by
    counting."""
    blocks = [*labels.blocks, *view_blocks(labels)]
    for _ in range(MAX_ROUNDS):
        units = _components(labels)
        ties = _settle(labels, units, blocks)
        if not ties:
            return units
    for block in blocks:
        labels.freeze(block.plane, f"blocks of {block.op} could not be reconciled")
    # Nothing is asked of frozen channels, so their blocks need not be counted any more.
    units = _components(labels)
    if _settle(labels, units, []):
        raise InternalError("cells without blocks asked for ties")
    return units


def _components(labels: Labels) -> Units:
    """Return connected components, numbered by first occurrence in the graph so that the result is
    deterministic."""
    size = labels.count
    if labels.edges:
        a = np.concatenate([edge[0] for edge in labels.edges])
        b = np.concatenate([edge[1] for edge in labels.edges])
        matrix = coo_matrix((np.ones(len(a), dtype=bool), (a, b)), shape=(size, size))
        _, raw = connected_components(matrix, directed=False)
    else:
        raw = np.arange(size)
    component, count, slots = _numbered(labels, raw)
    frozen = np.full(count, -1)
    reasons: dict[str, int] = {}
    for array, why in labels.frozen:
        inside = component[array]
        inside = inside[inside >= 0]
        inside = inside[frozen[inside] < 0]
        if len(inside):
            frozen[inside] = reasons.setdefault(why, len(reasons))
    return Units(count, frozen, list(reasons), slots, component)


def _numbered(labels: Labels, raw: np.ndarray) -> tuple[np.ndarray, int, list[Slot]]:
    """Return the unit (or -1) of every label, the number of units, and every labelled plane of
    every value. Units are numbered in the order in which their components occur; what no layer
    produces (positions, padding alone) always stays."""
    made = np.zeros(raw.max(initial=0) + 1, dtype=bool)
    for produced in labels.produced:
        made[raw[produced]] = True
    made[raw[0]] = False  # label 0 is no channel, whatever it was united with
    number = np.full(len(made), -1)
    count = 0
    # Most values have a plane in common with others (a chain of pointwise ops): each is read once.
    planes: dict[_Key, np.ndarray] = {}
    found: list[tuple[Value, tuple[int, ...], _Key]] = []
    for value in labels.graph.values:
        for plane in labels.of(value):
            key = _key(plane)
            found.append((value, varying(plane), key))
            if key in planes:
                continue
            planes[key] = plane.numpy()
            parts = raw[planes[key].reshape(-1)]
            parts = parts[made[parts] & (number[parts] < 0)]
            if len(parts):
                first = np.sort(np.unique(parts, return_index=True)[1])
                number[parts[first]] = np.arange(count, count + len(first))
                count += len(first)
    component = number[raw]
    component[0] = -1
    units = {key: component[plane] for key, plane in planes.items()}
    return component, count, [Slot(value, axes, units[key]) for value, axes, key in found]


_Key = tuple[int, tuple[int, ...], tuple[int, ...]]


def _key(plane: Plane) -> _Key:
    """Return a key that is equal for views of the same labels in the same form, as long as they are
    alive."""
    return plane.data_ptr(), plane.shape, plane.stride()


# Blocks


def view_blocks(labels: Labels) -> list[Blocks]:
    """Return the blocks implied by values whose channels are spread over several axes."""
    found: list[Blocks] = []
    for op in labels.graph.ops:
        for value in op.results:
            for plane in labels.of(value):
                axes = varying(plane)
                if len(axes) > 1:
                    found.append(Blocks(plane.reshape([plane.shape[axis] for axis in axes]), op))
    return found


@dataclass(frozen=True, slots=True)
class _Demand:
    """Distinct rows of units, of which each must keep as many; they run along ``axis`` of the
    block's plane."""

    block: Blocks
    rows: np.ndarray
    axis: int


def _settle(labels: Labels, units: Units, blocks: list[Blocks]) -> bool:
    """Divide units into cells; where a demand cannot be counted, unite channels and return True."""
    demands: list[_Demand] = []
    changed = False
    seen: set[tuple[bytes, tuple[int, ...], int]] = set()
    views: set[tuple[_Key, int]] = set()
    for block in blocks:
        view = _key(block.plane), block.pinned
        if view in views:
            continue  # the same plane, asked for by another op
        views.add(view)
        plane = units.of_label[block.plane.numpy()]
        key = (plane.tobytes(), plane.shape, block.pinned)
        if key in seen:
            continue  # other labels, which are the same units by now
        seen.add(key)
        rows, axis = _rows(plane)
        if rows is None or (axis == 0 and not block.pinned):
            continue  # one unit, or one row: any number may stay
        distinct = _distinct_rows(rows)
        # Units that differ only along axes that must stay would go as whole blocks, and where some
        # places of a row hold no channel, rows cannot keep equally many.
        if axis < block.pinned or (len(distinct) > 1 and (rows < 0).any()):
            if (units.frozen[rows[rows >= 0]] < 0).any():
                labels.freeze(block.plane, f"only whole blocks of {block.op} could be removed")
                changed = True
        elif len(distinct) > 1 and _are_disjoint(distinct):
            demands.append(_Demand(block, distinct, axis))
        elif len(distinct) > 1:
            # A unit in two rows would be counted twice: the same place of every row goes instead.
            labels.tie(block.plane, range(axis))
            changed = True
    return changed or _make_cells(labels, units, demands)


def _rows(units: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Return units as rows along the innermost axis on which they differ, and that axis; None if
    they nowhere do."""
    # Axes along which nothing differs (the places that a channel owns after a flatten) go along.
    while units.ndim > 1 and bool((units == units[..., :1]).all()):
        units = units[..., 0]
    if units.ndim == 1 and bool((units == units[:1]).all()):
        return None, 0
    return units.reshape(-1, units.shape[-1]), units.ndim - 1


def _distinct_rows(rows: np.ndarray) -> np.ndarray:
    """Return the different rows of a block matrix (a batch of heads repeats them)."""
    if bool((rows == rows[:1]).all()):
        return rows[:1]
    first: dict[bytes, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.tobytes(), index)
    return rows[list(first.values())]


def _are_disjoint(rows: np.ndarray) -> bool:
    """Return whether no unit occurs in two rows."""
    ordered = np.sort(rows, axis=1)
    different = np.count_nonzero(np.bincount(rows.reshape(-1)))
    return len(rows) + int((ordered[:, 1:] != ordered[:, :-1]).sum()) == different


def _make_cells(labels: Labels, units: Units, demands: list[_Demand]) -> bool:
    """Make cells by kind and row; return True when ties were added instead."""
    families, cells_of = _families(units, demands)
    # Families of other kinds may answer to each other row by row (heads of queries and of keys).
    link = _Links(int(families.max(initial=-1)) + 1)
    unbalanced = [demand for demand in demands if not _balanced(demand.rows, families, link)]
    for demand in unbalanced:
        labels.tie(demand.block.plane, range(demand.axis))
    if unbalanced:
        return True
    order = np.argsort(cells_of, kind="stable")
    borders = np.flatnonzero(np.diff(cells_of[order])) + 1
    cells = [
        Cell(link.root(int(families[members[0]])), members)
        for members in (np.split(order, borders) if len(order) else [])
    ]
    if _cells_are_uneven(labels, cells, demands, units.frozen):
        return True
    units.cells = cells
    return False


def _families(units: Units, demands: list[_Demand]) -> tuple[np.ndarray, np.ndarray]:
    """Return the family of every unit (its kind, and in which demands it stands) and its cell (in
    which rows, too)."""
    kinds = _kinds(units)
    families = _Classes(kinds)
    named = [_occurring(demand.rows) for demand in demands]
    for inside, times in named:
        families.split(inside, times)
    cells = _Classes(families.of)
    row_of = np.empty(units.count, dtype=np.int64)
    for demand, (inside, _) in zip(demands, named, strict=True):
        row_of[demand.rows] = np.arange(len(demand.rows))[:, None]
        cells.split(inside, row_of[inside])
    return families.numbered(), cells.numbered()


def _kinds(units: Units) -> np.ndarray:
    """Return a number per unit, equal for units alike: the same number of elements in every slot,
    and equally frozen."""
    kinds = _Classes(units.frozen + 1)
    seen: set[bytes] = set()
    for array in {id(slot.units): slot.units for slot in units.slots}.values():
        content = array.tobytes()
        if content not in seen:
            seen.add(content)
            kinds.split(*_occurring(array))
    return kinds.numbered()


class _Classes:
    """Classes of units, split until all units of a class have the same marks."""

    def __init__(self, of: np.ndarray) -> None:
        self.of = of.copy()
        """The class of every unit."""
        self.sizes: list[int] = np.bincount(of).tolist()

    def split(self, units: np.ndarray, marks: np.ndarray) -> None:
        """Part units (each named once) with different marks, and from those of their classes that
        are not named."""
        if len(units) == 0:
            return
        low, span = int(marks.min()), int(marks.max()) - int(marks.min()) + 1
        # One number for class and mark, so that both are compared by one count.
        keys = self.of[units] * span + (marks - low)
        first = int(keys[0])
        if self.sizes[first // span] == len(units) and bool((keys == first).all()):
            return
        counts = np.bincount(keys)
        for key in np.flatnonzero(counts).tolist():
            # What fills its class keeps the number; only what leaves others behind gets a new one.
            old, count = key // span, int(counts[key])
            if count < self.sizes[old]:
                self.sizes[old] -= count
                self.of[units[keys == key]] = len(self.sizes)
                self.sizes.append(count)

    def numbered(self) -> np.ndarray:
        """Return the class of every unit, numbered by first occurrence."""
        _, first, inverse = np.unique(self.of, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[inverse.reshape(-1)]


def _occurring(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the units that occur in an array, and how often each does."""
    flat = array.reshape(-1)
    first = flat[0]
    # The labels of most layers are a run of units, each once: no need to count them.
    if first >= 0 and flat[-1] - first == len(flat) - 1 and bool((flat[1:] > flat[:-1]).all()):
        return flat, np.ones(1, dtype=np.int64)
    low = int(flat.min())
    counts = np.bincount(flat - low)
    found = np.flatnonzero(counts)[1 if low < 0 else 0 :]
    return found + low, counts[found]


def _balanced(rows: np.ndarray, families: np.ndarray, link: _Links) -> bool:
    """Link families that stand in every row in the same sizes and order; return whether all do."""
    kinds = families[rows]
    if bool((kinds == kinds[:1]).all()):
        return True
    profiles = [list(Counter(row).items()) for row in kinds.tolist()]
    counts_of = [[count for _, count in profile] for profile in profiles]
    if any(counts != counts_of[0] for counts in counts_of[1:]):
        return False
    for profile in profiles[1:]:
        for (a, _), (b, _) in zip(profiles[0], profile, strict=True):
            link.join(a, b)
    return True


def _cells_are_uneven(
    labels: Labels, cells: list[Cell], demands: list[_Demand], frozen: np.ndarray
) -> bool:
    """Tie channels where cells of one family are not equally large, or have one unit where a row
    has more; return whether that was so. Of what is frozen one unit will do: it stays."""
    sizes: dict[int, set[int]] = {}
    count: dict[int, int] = {}
    for cell in cells:
        sizes.setdefault(cell.family, set()).add(len(cell.units))
        count[cell.family] = count.get(cell.family, 0) + 1
    bad, single = np.zeros(len(frozen), dtype=bool), np.zeros(len(frozen), dtype=bool)
    for cell in cells:
        if len(sizes[cell.family]) > 1:
            bad[cell.units] = True
        elif len(cell.units) == 1 and count[cell.family] > 1:
            single[cell.units] = frozen[cell.units] < 0
    uneven = [demand for demand in demands if bad[demand.rows].any()] if bad.any() else []
    for demand in uneven:
        labels.tie(demand.block.plane, range(demand.axis))
    return bool(uneven) or (bool(single.any()) and _tie_rows(labels, single, demands))


def _tie_rows(labels: Labels, single: np.ndarray, demands: list[_Demand]) -> bool:
    """Tie whole rows where two views that cut the same channels crosswise (a shuffle) leave cells
    of one unit: the shorter rows, and not those that must stay."""
    # Last those inside a row that must stay (a group of a convolution): they leave it no choice.
    fixed = [demand for demand in demands if demand.block.pinned >= demand.axis > 0]
    tied = False
    for demand in sorted(demands, key=lambda d: (_lies_within(d, fixed), d.rows.shape[1])):
        if single[demand.rows].any():
            labels.tie(demand.block.plane, range(demand.axis, demand.block.plane.dim()))
            single[demand.rows] = False
            tied = True
    return tied


def _lies_within(demand: _Demand, fixed: list[_Demand]) -> bool:
    """Return whether a row of a demand lies within one row that must stay."""
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
