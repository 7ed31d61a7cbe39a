"""Channel groups: which channels must be removed together, and what their kept sets must obey.

A *unit* is the smallest set of channels that lives or dies together. Units that occur in the same
slots form a *group*, so that one width describes them. `couple` computes both from a graph alone:
no network is named anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import Location
from pruneopt.passes.analysis.channels.layer_weight import LayerWeight
from pruneopt.passes.analysis.channels.units import Slot

__all__ = [
    "Coupling",
    "Group",
    "Member",
    "Plan",
    "SemanticNote",
    "UnknownOp",
    "check_kept",
    "groups_in",
]

Plan = Mapping[str, np.ndarray]
"""Group name -> sorted indices of the units that stay."""


@dataclass(frozen=True, slots=True)
class Member:
    """The places where a group occurs in a weight: ``units[i]`` is the rank in the group (or -1) of
    channel i on ``axis``."""

    weight: Value
    axis: int
    units: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that are alike: their numbers in the whole coupling, and their ranks in the group block
    by block."""

    name: str
    units: np.ndarray
    blocks: tuple[np.ndarray, ...]
    frozen: str | None
    location: Location
    least: int = 1
    """The fewest units that a block keeps: two where one alone would be normalised to a
    constant."""

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
    """An op over removed channels whose result changes by construction (a statistic or a softmax
    runs over them)."""

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
    layers: Mapping[Op, tuple[LayerWeight, ...]] = field(default_factory=dict)
    """The weights that every layer contracts its input with, in graph order."""

    @property
    def free(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.frozen is None)

    def group(self, name: str) -> Group:
        number = self._numbers.get(name)
        if number is None:
            raise UserError(f"there is no channel group {name!r}; `pruneopt inspect` lists them")
        return self.groups[number]

    def slots_of(self, value: Value) -> list[Slot]:
        """Return the labelled planes of a value."""
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
            if (
                slot.value.is_weight and id(slot.units) not in known
            ):  # slots of the same labels share them
                known[id(slot.units)] = frozenset(groups_in(slot, self.unit_group))
        return {slot: known[id(slot.units)] for slot in self.slots if slot.value.is_weight}

    def full_plan(self) -> dict[str, np.ndarray]:
        """Return the plan that keeps everything."""
        return {group.name: np.arange(group.width) for group in self.groups}

    def kept_units(self, plan: Plan) -> np.ndarray:
        """Return a boolean per unit; groups that the plan does not name keep all. Raise `UserError`
        for a plan that breaks a constraint: unknown or frozen group, index out of range, unequal
        blocks, nothing kept."""
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
        """Return every (weight, axis) slot of a group; a plane over several axes counts for its
        last one."""
        number = self._numbers[group.name]
        found: list[Member] = []
        for slot, groups in self._groups_of.items():
            if number in groups:
                mine = (slot.units >= 0) & (self.unit_group[slot.units] == number)
                found.append(
                    Member(
                        slot.value, slot.axes[-1], np.where(mine, self.unit_rank[slot.units], -1)
                    )
                )
        return found

    def producers(self, group: Group) -> list[Op]:
        """Return the layers whose output channels belong to the group, in graph order."""
        return self._layers_with(self._numbers[group.name], produced=True)

    def consumers(self, group: Group) -> list[Op]:
        """Return the layers that contract over the group's channels, in graph order."""
        return self._layers_with(self._numbers[group.name], produced=False)

    def _layers_with(self, number: int, produced: bool) -> list[Op]:
        """Return the layers with one weight (no recurrences) that hold a group along its output
        axis, or along any other."""
        return [
            op
            for op, layers in self.layers.items()
            if len(layers) == 1 and self._holds(layers[0], number, produced)
        ]

    def _holds(self, layer: LayerWeight, number: int, produced: bool) -> bool:
        if not layer.value.is_weight or (not produced and layer.in_axis is None):
            return False
        return any(
            (layer.makes(slot.axes) == produced) and number in self._groups_of[slot]
            for slot in self.slots_of(layer.value)
        )


def groups_in(slot: Slot, unit_group: np.ndarray) -> list[int]:
    """Return the numbers of the groups that occur in a slot."""
    numbers = unit_group[slot.units[slot.units >= 0]]
    if len(numbers) and bool((numbers == numbers[0]).all()):
        return [int(numbers[0])]
    result: list[int] = np.unique(numbers).tolist()
    return result


def check_kept(group: Group, ranks: np.ndarray) -> None:
    """Raise `UserError` unless ``ranks`` is a kept set that the group's constraints allow."""
    if len(ranks) == 0:
        raise UserError(
            f"the plan removes every channel of group {group.name}; at least one must stay"
        )
    stays = np.zeros(group.width, dtype=bool)
    if ranks.min() >= 0 and ranks.max() < group.width:
        stays[ranks] = True
    if stays.sum() != len(ranks):
        raise UserError(
            f"the plan names channels that group {group.name} (width {group.width}) does not have"
        )
    if group.frozen is not None and len(ranks) != group.width:
        raise UserError(f"group {group.name} cannot be pruned: {group.frozen}")
    counts = {int(stays[block].sum()) for block in group.blocks}
    if len(counts) > 1:
        raise UserError(
            f"the plan keeps {sorted(counts)} channels in the blocks of group {group.name}; all "
            "must be equal"
        )
    if len(ranks) < group.minimum:
        raise UserError(
            f"the plan keeps {len(ranks)} channels of group {group.name}, over which a statistic "
            "is taken: at least "
            f"{group.minimum} must stay"
        )
