"""How much each unit matters: what a criterion is, and what criteria share.

A criterion scores every unit of every free group. Those that read weights score a unit over
everything that produces it: the output-axis slots of all layers whose channels it owns, added up
(not over one of them: channels that are removed together matter together). ``leader`` takes the
first producing layer only, as EagleEye does. Units that no layer produces (a raw parameter) are
scored over the parameters they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Value
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.units import Slot
from pruneopt.passes.analysis.ops.layers import layer_weights
from pruneopt.passes.options.configured import Part

__all__ = [
    "Criterion",
    "Given",
    "Measure",
    "SlotCriterion",
    "by_rows",
    "produced_slots",
    "score_units",
    "summed",
]

Measure = Callable[[Slot], Tensor]
PART = 2**16
"""Elements measured at a time: few enough for the cache."""


@dataclass(frozen=True)
class Given:
    """The inputs of a criterion: weights, and data where there are any.

    Attributes:
        coupling: of the network to score.
        weights: by name.
        leader: score the first producing layer only.
        seed: for what is random.
        workload: data and loss; None without data.
        batch_size, device: for criteria that run the network.
    """

    coupling: Coupling
    weights: Mapping[str, Tensor]
    leader: bool = False
    seed: int = 0
    workload: Workload | None = None
    batch_size: int = 64
    device: str = "cpu"

    def tensor(self, value: Value) -> Tensor:
        """Return a weight in float64; `UserError` for one on the `meta` device."""
        return self.weight(value).double()

    def weight(self, value: Value) -> Tensor:
        """Return a weight in its own dtype; `UserError` for one on the `meta` device."""
        tensor = self.weights[value.name].detach()
        if tensor.is_meta:
            raise UserError(
                f"{value.name} has no values (device meta), and scores need them: load the weights "
                "first"
            )
        return tensor

    def need_workload(self, what: str) -> Workload:
        """Return the workload; `UserError` that says ``what`` needs data."""
        if self.workload is None:
            raise UserError(
                f"the criterion {what} needs data: give --data, or a model file with data()"
            )
        return self.workload


@dataclass(frozen=True)
class Criterion(Part):
    """Scores units; larger means more worth keeping."""

    kind: ClassVar[str] = "criterion"
    data: ClassVar[bool] = False
    """Whether it needs a workload."""
    leads: ClassVar[bool] = True
    """Whether it can score by a group's first layer alone."""

    @abstractmethod
    def score(self, given: Given) -> np.ndarray:
        """Return a score for every unit of the coupling, free or not, float64 `[units]`."""


@dataclass(frozen=True)
class SlotCriterion(Criterion):
    """A criterion that is a sum over the places in weights where a unit is made."""

    def score(self, given: Given) -> np.ndarray:
        coupling = given.coupling
        measure = self.measuring(given)
        total, seen = _add_up(given, list(self.slots(coupling)), measure)
        bare = [group for group in coupling.free if not seen[group.units].all()]
        if bare:
            self.check_bare(coupling, bare[0].name)
            unseen = np.zeros_like(seen)
            for group in bare:
                unseen[group.units] = ~seen[group.units]
            rest = [
                slot
                for slot in coupling.slots
                if slot.value.is_weight and slot.value.kind == "param"
            ]
            more, _ = _add_up(given, rest, measure)
            total[unseen] = more[unseen]
        return self.combined(total)

    def slots(self, coupling: Coupling) -> Iterator[Slot]:
        """Return where units are scored."""
        return produced_slots(coupling)

    @abstractmethod
    def measuring(self, given: Given) -> Measure:
        """Return the score per element of a slot's units, in the shape of ``slot.units`` without
        its axes of size 1."""

    def combined(self, total: np.ndarray) -> np.ndarray:
        """Return what a unit's sum over its slots is worth."""
        return total

    def check_bare(self, coupling: Coupling, name: str) -> None:
        """Raise `UserError` if a group that no layer produces cannot be scored; by default its
        parameters are."""


def score_units(
    coupling: Coupling,
    weights: Mapping[str, Tensor],
    criterion: Criterion | str,
    *,
    normalise: bool = False,
    leader: bool = False,
    seed: int = 0,
    workload: Workload | None = None,
    batch_size: int = 64,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Return a score per unit of every free group, float64 `[width]`; more means more worth
    keeping.

    Args:
        criterion: a part, or its text (``l1``, ``taylor{batches=4}``).
        normalise: divide by the group's mean, so that units of different groups can be compared.
        leader: score the first producing layer in graph order only (EagleEye's rule), not all of
            them.
        seed, workload, batch_size, device: see `Given`.

    Raises:
        UserError: an unknown criterion, one that lacks what it needs, or scores that are not
            finite.
    """
    found = _as_criterion(criterion)
    if leader and not found.leads:
        raise UserError(
            f"{found.name} scores have no leader: leave leader out, or choose another criterion"
        )
    total = found.score(Given(coupling, weights, leader, seed, workload, batch_size, device))
    scores = {group.name: total[group.units] for group in coupling.free}
    for name, score in scores.items():
        if not np.isfinite(score).all():
            raise UserError(
                f"the {found.name} scores of group {name} are not finite: its weights hold NaN or "
                "infinity"
            )
    return {name: _normalised(score) for name, score in scores.items()} if normalise else scores


def _as_criterion(given: Criterion | str) -> Criterion:
    if isinstance(given, Criterion):
        return given
    from pruneopt.passes.options.spec import parse_part

    found = parse_part(Criterion, given)
    assert isinstance(found, Criterion)
    return found


def _normalised(score: np.ndarray) -> np.ndarray:
    mean = score.mean()
    return score / mean if mean > 0 else score


def _add_up(given: Given, slots: list[Slot], measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """Return scores added up over slots, `[units]`, and which units occur in any."""
    count = len(given.coupling.unit_group)
    total, seen = np.zeros(count), np.zeros(count, dtype=bool)
    done: dict[tuple[Value, tuple[int, ...]], None] = {}
    for slot in slots:
        # A weight that several ops share counts once.
        if (slot.value, slot.axes) in done:
            continue
        done[slot.value, slot.axes] = None
        units = slot.units.reshape(-1)
        score = measure(slot).cpu().numpy().reshape(-1)
        first = units.min()
        if given.leader or first < 0:
            fresh = (units >= 0) & ~seen[units] if given.leader else units >= 0
            if not fresh.any():
                continue
            units, score = units[fresh], score[fresh]
            first = units.min()
        sums = np.bincount(units - first, score)
        total[first : first + len(sums)] += sums
        seen[units] = True
    return total, seen


# Slots


def produced_slots(coupling: Coupling) -> Iterator[Slot]:
    """Yield the output-axis slots of the weights of layers, in graph order."""
    for op in coupling.graph.ops:
        for layer in layer_weights(op):
            if layer.value.is_weight:
                yield from (
                    slot
                    for slot in coupling.slots_of(layer.value)
                    if slot.axes == (layer.out_axis,)
                )


def by_rows(tensor: Tensor, slot: Slot, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what ``measure`` makes of the weights of each of a slot's units: rows `[P, n]` ->
    `[P]` in float64, a part of them at a time: a large weight is never there in float64 as a whole.
    """
    varying = [axis for axis, size in enumerate(slot.units.shape) if size > 1]
    others = [axis for axis in range(tensor.dim()) if axis not in varying]
    rows = tensor.permute(*varying, *others).reshape(slot.units.size, -1)
    if rows.numel() <= PART:
        return measure(rows)
    return torch.cat([measure(part) for part in rows.split(max(1, PART // rows.shape[1]))])


def summed(tensor: Tensor, slot: Slot) -> Tensor:
    """Return a tensor of the weight's shape, summed over every axis along which the slot's units do
    not vary."""
    for axis, size in enumerate(slot.units.shape):
        if size == 1:
            tensor = tensor.sum(axis, keepdim=True)
    return tensor
