"""Find the channel groups of a graph: labels by the rules of ops, units by what labels unite,
groups of units alike."""

from __future__ import annotations

import numpy as np

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.module_paths import common_module
from pruneopt.ir.types import Location
from pruneopt.passes.analysis.channels.groups import (
    Coupling,
    Group,
    SemanticNote,
    UnknownOp,
    groups_in,
)
from pruneopt.passes.analysis.channels.labels import Labels, propagate
from pruneopt.passes.analysis.channels.units import Slot, Units, find_units
from pruneopt.passes.analysis.ops.layers import layer_weights
from pruneopt.passes.analysis.ops.table import apply_rule

__all__ = ["HEADS", "couple"]

HEADS = ("width", "count")
"""How attention shrinks, and how layers with groups do."""


def couple(graph: Graph, *, heads: str = "width", groups: str = "width") -> Coupling:
    """Find the channel groups of a graph.

    ``heads`` says how attention shrinks: by ``width``, where every head keeps equally many of its
    channels, or by ``count``, where whole heads go. ``groups`` says the same of grouped
    convolutions and group norms: with ``count``, the inputs and outputs of a group go together.
    `UserError` for anything else.
    """
    for name, way in (("heads", heads), ("groups", groups)):
        if way not in HEADS:
            raise UserError(f"{name} must be one of {', '.join(HEADS)}, not {way!r}")
    labels = propagate(
        graph, apply_rule, whole_heads=heads == "count", whole_groups=groups == "count"
    )
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
    layers = {op: found for op in graph.ops if (found := layer_weights(op))}
    made = {(found[0].value, found[0].out_axis) for found in layers.values() if len(found) == 1}
    names = _Names(graph, units.slots, unit_group, len(drafts), made)
    pairs = _groups_in_pairs(labels, units, unit_group)
    groups = tuple(
        Group(names.names[i], members, blocks, frozen, names.locations[i], 2 if i in pairs else 1)
        for i, (members, blocks, frozen) in enumerate(drafts)
    )
    unknown = tuple(UnknownOp(item.op, item.why) for item in labels.unknown)
    notes = _semantic_notes(labels, units, groups, unit_group)
    slots = tuple(units.slots)
    return Coupling(graph, groups, slots, unit_group, unit_rank, notes, unknown, layers)


def _groups_in_pairs(labels: Labels, units: Units, unit_group: np.ndarray) -> set[int]:
    """Return the numbers of the groups that keep two units of every block: a row of `Labels.pairs`
    holds nothing else."""
    cell_of = np.empty(units.count, dtype=np.int64)
    for number, cell in enumerate(units.cells if labels.pairs else ()):
        cell_of[cell.units] = number
    found = set()
    for plane in labels.pairs:
        for row in units.of_label[plane.numpy()]:
            times = np.unique(row, return_counts=True)[1]
            if (
                len(times) > 1
                and row.min() >= 0
                and times.min() == 1
                and len(np.unique(cell_of[row])) == 1
            ):
                found.add(int(unit_group[row[0]]))
    return found


def _semantic_notes(
    labels: Labels, units: Units, groups: tuple[Group, ...], unit_group: np.ndarray
) -> tuple[SemanticNote, ...]:
    """Return the noted ops with the free groups over which they run."""
    found: dict[Op, set[str]] = {}
    active: np.ndarray | None = None
    for note in labels.notes:
        inside = np.unique(units.of_label[note.plane.numpy()])
        if note.of_weights:
            active = _units_of_activations(labels, units) if active is None else active
            inside = inside[np.isin(inside, active)]
        numbers = np.unique(unit_group[inside[inside >= 0]])
        found.setdefault(note.op, set()).update(
            groups[n].name for n in numbers if groups[n].frozen is None
        )
    return tuple(SemanticNote(op, tuple(sorted(names))) for op, names in found.items() if names)


def _units_of_activations(labels: Labels, units: Units) -> np.ndarray:
    """Return the units that occur in anything but weights and what is computed from them."""
    found = [np.unique(slot.units) for slot in units.slots if not labels.is_weight(slot.value)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


class _Names:
    """A readable, unique name per group: its producer's module, or the part that several producers
    have in common."""

    def __init__(
        self,
        graph: Graph,
        slots: list[Slot],
        unit_group: np.ndarray,
        count: int,
        made: set[tuple[Value, int]],
    ) -> None:
        """Name the groups; ``made``: the weights of layers, each with the axis of its output
        channels."""
        self.names: list[str] = [""] * count
        self.locations: list[Location] = [Location()] * count
        modules: list[list[str]] = [[] for _ in range(count)]
        others: list[list[str]] = [[] for _ in range(count)]
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
                base = (modules[number] or others[number] or ["channels"])[0].rpartition(".")[
                    0
                ] or base
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
