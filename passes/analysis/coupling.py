"""Channel groups: which channels must be removed together, and what their kept sets must obey.

A *unit* is the smallest set of channels that lives or dies together. Units that occur in the same slots form a *group*,
so that one width describes them. `couple` computes both from a graph alone: no network is named anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.module_paths import common_module
from pruneopt.ir.types import Location
from pruneopt.passes.analysis import (  # noqa: F401  register their rules
    label_attention,
    label_fourier,
    label_index,
    label_joins,
    label_layers,
    label_moves,
    label_products,
    label_recurrent,
    label_windows,
)
from pruneopt.passes.analysis.label_rules import apply_rule
from pruneopt.passes.analysis.labels import Labels, propagate
from pruneopt.passes.analysis.layers import LAYERS as LAYERS
from pruneopt.passes.analysis.layers import layer_weight
from pruneopt.passes.analysis.units import Slot, Units, find_units

__all__ = [
    "HEADS",
    "Coupling",
    "Group",
    "Member",
    "Plan",
    "SemanticNote",
    "UnknownOp",
    "check_kept",
    "couple",
]

HEADS = ("width", "count")
"""How attention shrinks, and how layers with groups do."""
Plan = Mapping[str, np.ndarray]
"""Group name -> sorted indices of the units that stay."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a group occurs in a weight: ``units[i]`` is the rank in the group (or -1) of channel i on ``axis``."""

    weight: Value
    axis: int
    units: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that are alike: their numbers in the whole coupling, and their ranks in the group block by block."""

    name: str
    units: np.ndarray
    blocks: tuple[np.ndarray, ...]
    frozen: str | None
    location: Location
    least: int = 1
    """The fewest units that a block keeps: two where one alone would be normalised to a constant."""

    @property
    def width(self) -> int:
        """How many units the group has."""
        return len(self.units)

    @property
    def step(self) -> int:
        """Widths are multiples of this: every block keeps the same number of units."""
        return len(self.blocks)

    @property
    def minimum(self) -> int:
        """The smallest width."""
        return self.least * self.step


@dataclass(frozen=True, slots=True)
class SemanticNote:
    """An op over removed channels whose result changes by construction (a statistic or a softmax runs over them)."""

    op: Op
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnknownOp:
    """An op without a rule; what it touches is frozen."""

    op: Op
    why: str


@dataclass(frozen=True, eq=False)
class Coupling:
    """The channel groups of a graph and where their units occur; compared by identity."""

    graph: Graph
    groups: tuple[Group, ...]
    slots: tuple[Slot, ...]
    unit_group: np.ndarray
    """Group number of every unit."""
    unit_rank: np.ndarray
    """Rank of every unit inside its group."""
    notes: tuple[SemanticNote, ...]
    unknown: tuple[UnknownOp, ...]

    @property
    def free(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.frozen is None)

    def group(self, name: str) -> Group:
        number = self._numbers.get(name)
        if number is None:
            raise UserError(f"there is no channel group {name!r}; `pruneopt inspect` lists them")
        return self.groups[number]

    def slots_of(self, value: Value) -> list[Slot]:
        """The labelled planes of a value."""
        return self._by_value.get(value, [])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {group.name: number for number, group in enumerate(self.groups)}

    @cached_property
    def _by_value(self) -> dict[Value, list[Slot]]:
        found: dict[Value, list[Slot]] = {}
        for slot in self.slots:
            found.setdefault(slot.value, []).append(slot)
        return found

    @cached_property
    def _groups_of(self) -> dict[Slot, frozenset[int]]:
        """The numbers of the groups that occur in the slots of weights."""
        known: dict[int, frozenset[int]] = {}
        for slot in self.slots:
            if slot.value.is_weight and id(slot.units) not in known:  # slots of the same labels share them
                known[id(slot.units)] = frozenset(groups_in(slot, self.unit_group))
        return {slot: known[id(slot.units)] for slot in self.slots if slot.value.is_weight}

    def full_plan(self) -> dict[str, np.ndarray]:
        """The plan that keeps everything."""
        return {group.name: np.arange(group.width) for group in self.groups}

    def kept_units(self, plan: Plan) -> np.ndarray:
        """A boolean per unit; groups that the plan does not name keep all. Raises `UserError` for a plan that breaks a
        constraint: unknown or frozen group, index out of range, unequal blocks, nothing kept.
        """
        kept = np.ones(len(self.unit_group), dtype=bool)
        for name, indices in plan.items():
            group = self.group(name)
            ranks = np.asarray(indices, dtype=np.int64)
            check_kept(group, ranks)
            mask = np.zeros(group.width, dtype=bool)
            mask[ranks] = True
            kept[group.units] = mask
        return kept

    def members(self, group: Group) -> list[Member]:
        """Every (weight, axis) slot of a group; a plane over several axes counts for its last one."""
        number = self._numbers[group.name]
        found: list[Member] = []
        for slot, groups in self._groups_of.items():
            if number in groups:
                mine = (slot.units >= 0) & (self.unit_group[slot.units] == number)
                found.append(Member(slot.value, slot.axes[-1], np.where(mine, self.unit_rank[slot.units], -1)))
        return found

    def producers(self, group: Group) -> list[Op]:
        """The layers whose output channels belong to the group, in graph order."""
        return self._layers_with(self._numbers[group.name], produced=True)

    def consumers(self, group: Group) -> list[Op]:
        """The layers that contract over the group's channels, in graph order."""
        return self._layers_with(self._numbers[group.name], produced=False)

    def _layers_with(self, number: int, produced: bool) -> list[Op]:
        """The layers that hold a group along the output axis of their weight, or along any other."""
        found = []
        for op in self.graph.ops:
            layer = layer_weight(op)
            if layer is None or not layer.value.is_weight or (not produced and layer.in_axis is None):
                continue
            slots = self.slots_of(layer.value)
            if any((layer.makes(slot.axes) == produced) and number in self._groups_of[slot] for slot in slots):
                found.append(op)
        return found


def groups_in(slot: Slot, unit_group: np.ndarray) -> list[int]:
    """The numbers of the groups that occur in a slot."""
    numbers = unit_group[slot.units[slot.units >= 0]]
    if len(numbers) and bool((numbers == numbers[0]).all()):
        return [int(numbers[0])]
    result: list[int] = np.unique(numbers).tolist()
    return result


def check_kept(group: Group, ranks: np.ndarray) -> None:
    """Raise `UserError` unless ``ranks`` is a kept set that the group's constraints allow."""
    if len(ranks) == 0:
        raise UserError(f"the plan removes every channel of group {group.name}; at least one must stay")
    stays = np.zeros(group.width, dtype=bool)
    if ranks.min() >= 0 and ranks.max() < group.width:
        stays[ranks] = True
    if stays.sum() != len(ranks):
        raise UserError(f"the plan names channels that group {group.name} (width {group.width}) does not have")
    if group.frozen is not None and len(ranks) != group.width:
        raise UserError(f"group {group.name} cannot be pruned: {group.frozen}")
    counts = {int(stays[block].sum()) for block in group.blocks}
    if len(counts) > 1:
        raise UserError(
            f"the plan keeps {sorted(counts)} channels in the blocks of group {group.name}; all must be equal"
        )
    if len(ranks) < group.minimum:
        raise UserError(
            f"the plan keeps {len(ranks)} channels of group {group.name}, over which a statistic is taken: at least "
            f"{group.minimum} must stay"
        )


def couple(graph: Graph, *, heads: str = "width", groups: str = "width") -> Coupling:
    """Find the channel groups of a graph.

    ``heads`` says how attention shrinks: by ``width``, where every head keeps equally many of its channels, or by
    ``count``, where whole heads go. ``groups`` says the same of grouped convolutions and group norms: with ``count``,
    the inputs and outputs of a group go together. `UserError` for anything else.
    """
    for name, way in (("heads", heads), ("groups", groups)):
        if way not in HEADS:
            raise UserError(f"{name} must be one of {', '.join(HEADS)}, not {way!r}")
    labels = propagate(graph, apply_rule, whole_heads=heads == "count", whole_groups=groups == "count")
    return _assemble(graph, labels, find_units(labels))


def _assemble(graph: Graph, labels: Labels, units: Units) -> Coupling:
    by_family: dict[int, list[np.ndarray]] = {}
    for cell in units.cells:
        by_family.setdefault(cell.family, []).append(cell.units)
    unit_group = np.empty(units.count, dtype=np.int64)
    unit_rank = np.empty(units.count, dtype=np.int64)
    drafts: list[tuple[np.ndarray, tuple[np.ndarray, ...], str | None]] = []
    for number, cells in enumerate(by_family.values()):
        # Ranks run block by block, so that blocks are equal runs of ranks.
        members = np.concatenate(sorted(cells, key=lambda cell: int(cell[0])))
        unit_group[members] = number
        unit_rank[members] = np.arange(len(members))
        blocks = tuple(np.arange(len(members)).reshape(len(cells), -1))
        frozen = units.frozen[members]
        frozen = frozen[frozen >= 0]
        drafts.append((members, blocks, units.reasons[frozen[0]] if len(frozen) else None))
    names = _Names(graph, units.slots, unit_group, len(drafts))
    pairs = _groups_in_pairs(labels, units, unit_group)
    groups = tuple(
        Group(names.names[i], members, blocks, frozen, names.locations[i], 2 if i in pairs else 1)
        for i, (members, blocks, frozen) in enumerate(drafts)
    )
    unknown = tuple(UnknownOp(item.op, item.why) for item in labels.unknown)
    notes = _semantic_notes(labels, units, groups, unit_group)
    return Coupling(graph, groups, tuple(units.slots), unit_group, unit_rank, notes, unknown)


def _groups_in_pairs(labels: Labels, units: Units, unit_group: np.ndarray) -> set[int]:
    """The numbers of the groups that keep two units of every block: a row of `Labels.pairs` holds nothing else."""
    cell_of = np.empty(units.count, dtype=np.int64)
    for number, cell in enumerate(units.cells if labels.pairs else ()):
        cell_of[cell.units] = number
    found = set()
    for plane in labels.pairs:
        for row in units.of_label[plane.numpy()]:
            times = np.unique(row, return_counts=True)[1]
            if len(times) > 1 and row.min() >= 0 and times.min() == 1 and len(np.unique(cell_of[row])) == 1:
                found.add(int(unit_group[row[0]]))
    return found


def _semantic_notes(
    labels: Labels, units: Units, groups: tuple[Group, ...], unit_group: np.ndarray
) -> tuple[SemanticNote, ...]:
    """The noted ops with the free groups over which they run."""
    found: dict[Op, set[str]] = {}
    active: np.ndarray | None = None
    for note in labels.notes:
        inside = np.unique(units.of_label[note.plane.numpy()])
        if note.of_weights:
            active = _units_of_activations(labels, units) if active is None else active
            inside = inside[np.isin(inside, active)]
        numbers = np.unique(unit_group[inside[inside >= 0]])
        found.setdefault(note.op, set()).update(groups[n].name for n in numbers if groups[n].frozen is None)
    return tuple(SemanticNote(op, tuple(sorted(names))) for op, names in found.items() if names)


def _units_of_activations(labels: Labels, units: Units) -> np.ndarray:
    """The units that occur in anything but weights and what is computed from them."""
    found = [np.unique(slot.units) for slot in units.slots if not labels.is_weight(slot.value)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


class _Names:
    """A readable, unique name per group: its producer's module, or the part that several producers have in common."""

    def __init__(self, graph: Graph, slots: list[Slot], unit_group: np.ndarray, count: int) -> None:
        self.names: list[str] = [""] * count
        self.locations: list[Location] = [Location()] * count
        modules: list[list[str]] = [[] for _ in range(count)]
        others: list[list[str]] = [[] for _ in range(count)]
        layers = [layer for layer in map(layer_weight, graph.ops) if layer is not None]
        made = {(layer.value, layer.out_axis) for layer in layers}
        known: dict[int, list[int]] = {}
        for slot in slots:
            if not slot.value.is_weight:
                continue
            target = modules if (slot.value, slot.axes[-1]) in made else others
            if id(slot.units) not in known:  # slots of the same labels share them
                known[id(slot.units)] = groups_in(slot, unit_group)
            for number in known[id(slot.units)]:
                target[number].append(slot.value.name)
        taken: set[str] = set()
        for number in range(count):
            base = _common_name(modules[number] or others[number] or ["channels"])
            if base in taken:
                base = (modules[number] or others[number] or ["channels"])[0].rpartition(".")[0] or base
            name, suffix = base, 1
            while name in taken:
                suffix += 1
                name = f"{base}.{suffix}"
            taken.add(name)
            self.names[number] = name
            self.locations[number] = _first_location(graph, modules[number] or others[number])


def _common_name(weights: list[str]) -> str:
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in weights))
    if len(modules) == 1:
        return modules[0]
    return common_module(modules) or modules[0]


def _first_location(graph: Graph, weights: list[str]) -> Location:
    for name in weights[:1]:
        users = graph.params[name].users
        if users:
            return users[0].loc
    return Location()
