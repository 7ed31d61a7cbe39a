"""The context of every repair: both networks, what was removed between them, and batches of inputs
without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import BatchSize
from pruneopt.models.workload import Split
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.sizes import gather_kept, kept_parts
from pruneopt.passes.analysis.cost.conventions import Convention
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import UNITS
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.graph_rewrites.slice import slice_weights
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.repair.layers import BiasTarget, Site, find_bias_target, make_bias, sites_of
from pruneopt.progress import Progress

__all__ = ["Batching", "Left", "RepairContext"]


@dataclass(frozen=True, slots=True)
class Left:
    """A layer that is not repaired, and why."""

    layer: str
    why: str


@dataclass(frozen=True)
class Batching:
    """Batches of a split's first images: as many as asked for (or there are), in batches of nearly
    equal size.

    A network captured at a fixed batch gets whole batches of that size.
    """

    split: Split
    size: int
    whole: bool
    device: str

    @classmethod
    def of(cls, split: Split, graph: Graph, images: int, batch_size: int, device: str) -> Batching:
        """Raise `UserError` for a network with several inputs, or too few images for a fixed
        batch."""
        if len(graph.inputs) != 1:
            raise UserError(
                f"repair feeds images to a network with one input; {graph.name} takes "
                f"{len(graph.inputs)}"
            )
        chosen = split.head(images)
        if graph.dynamic_batch:
            parts = -(-len(chosen) // batch_size)
            return cls(chosen, -(-len(chosen) // parts), False, device)
        fixed = graph.inputs[0].type.shape()[0]
        if len(chosen) < fixed:
            raise UserError(
                f"{graph.name} takes batches of {fixed} images, repair has {len(chosen)}: give "
                "more images"
            )
        return cls(chosen.head(len(chosen) // fixed * fixed), fixed, True, device)

    @property
    def images(self) -> int:
        return len(self.split)

    def __call__(self) -> Iterator[Tensor]:
        """Yield the same batches of inputs every time; the labels are dropped here."""
        for inputs, _ in self.split.batches(self.size, device=self.device, drop_last=self.whole):
            yield inputs


@dataclass
class RepairContext:
    """One repair's view of a state. ``cut`` is a copy to work on, with its weights on the device.

    Attributes:
        original, weights: the network before the cut, and its weights on the device.
        coupling, kept: what was removed: a boolean per unit.
        sites: every call of a layer.
        left: layers that are not repaired.
        added: by unit of cost, what new biases cost.
    """

    coupling: Coupling
    kept: np.ndarray
    weights: dict[str, Tensor]
    cut: Graph
    sites: list[Site]
    batches: Batching
    convention: Convention
    budgeted: frozenset[str]
    masked: frozenset[str]
    progress: Progress
    seed: int
    left: list[Left] = field(default_factory=list)
    added: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, state: State, batches: Batching) -> RepairContext:
        """Raise `UserError` for a graph whose ops are no longer those of the cut."""
        assert state.uncut is not None
        coupling, cut = state.need_coupling(), state.graph.copy()
        cut.weights = {name: tensor.to(batches.device) for name, tensor in cut.weights.items()}
        return cls(
            coupling=coupling,
            kept=coupling.kept_units(state.plan or {}),
            weights={
                name: tensor.to(batches.device) for name, tensor in state.uncut.weights.items()
            },
            cut=cut,
            sites=sites_of(coupling.graph, cut),
            batches=batches,
            convention=state.need_cost().convention,
            budgeted=frozenset(budget.unit for budget in state.budgets),
            masked=frozenset(state.masks or {}),
            progress=state.progress,
            seed=state.seed,
        )

    @property
    def original(self) -> Graph:
        return self.coupling.graph

    def removed(self, value: Value | None) -> list[Tensor]:
        """Return the planes of a value of the original on which something was removed, as masks of
        what stays."""
        if value is None:
            return []
        return [
            part
            for part in kept_parts(self.coupling.slots_of(value), self.kept)
            if not bool(part.all())
        ]

    def keep(self, value: Value, tensor: Tensor) -> Tensor:
        """Return the kept elements of a value of the original."""
        return gather_kept(tensor, self.coupling.slots_of(value), self.kept)

    def sliced(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return weights of the original, cut, without names that the original does not have."""
        known = {name: self.weights[name] for name in names if name in self.weights}
        return slice_weights(self.coupling, self.kept, known)

    def along_batch(self, value: Value | None) -> bool:
        """Return whether channels lie along an axis that holds the batch as well, where their
        places depend on its size."""
        slots = [] if value is None else self.coupling.slots_of(value)
        return any(
            isinstance(slot.value.type.dims[axis], BatchSize)
            for slot in slots
            for axis in slot.axes
        )

    def leave(self, layer: str, why: str) -> None:
        """Note a layer that is not repaired (once)."""
        item = Left(layer, why)
        if item not in self.left:
            self.left.append(item)

    def leave_others(self) -> None:
        """Note the layers that lost inputs and whose weight is no parameter, or is part of a
        product without an axis of inputs and one of outputs."""
        known = {site.old for site in self.sites}
        for op in self.original.ops:
            if (
                op not in known
                and _has_weight(op)
                and any(self.removed(v) for v in op.inputs if not v.is_weight)
            ):
                self.leave(
                    op.loc.module or str(op),
                    "its weight is computed, or in a product of another form",
                )

    def bias_target_of(self, site: Site) -> BiasTarget | str:
        """Return where a constant goes, with a bias made where there is none; a string where there
        can be none.

        A new bias must cost nothing in the units that a budget limits.
        """
        target = find_bias_target(self.cut, site)
        if isinstance(target, str) or target.kind != "new bias":
            return target
        mine = [other for other in self.sites if find_bias_target(self.cut, other) == target]
        trial = self.cut.copy()
        twin = dict(zip(self.cut.ops, trial.ops, strict=True))
        values = dict(zip(self.cut.params.values(), trial.params.values(), strict=True))
        make_bias(
            trial, [replace(item, op=twin[item.op], weight=values[item.weight]) for item in mine]
        )
        before, after = (_costs_of(graph, self.convention) for graph in (self.cut, trial))
        extra = {unit: after[unit] - before[unit] for unit in UNITS}
        if any(extra.get(unit, 1) for unit in self.budgeted):
            return "it has no bias, and a new one would count against the budget"
        self.added = {unit: self.added.get(unit, 0) + value for unit, value in extra.items()}
        return make_bias(self.cut, mine)


def _has_weight(op: Op) -> bool:
    layer = layer_weight(op)
    if layer is not None:
        return layer.in_axis is not None
    return has_trait(op, Trait.CONTRACTS_OPERANDS) and any(value.is_weight for value in op.inputs)


def _costs_of(graph: Graph, convention: Convention) -> dict[str, int]:
    """Return what a graph costs as it is."""
    nothing = np.empty(0, dtype=np.int64)
    model = CostModel(graph, Coupling(graph, (), (), nothing, nothing, (), ()), convention.name)
    return {unit: int(model.measure(unit, model.full)) for unit in UNITS}
