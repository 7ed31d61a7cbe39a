"""How much each unit matters, by its weights: criteria that score every unit of every free group.

A unit is scored over everything that produces it: the output-axis slots of all layers whose channels it owns, added up
(not over one of them: channels that are removed together matter together). `leader` takes the first producing layer
only, as EagleEye does. Units that no layer produces (a raw parameter) are scored over the parameters they are.

Sources: l1 (Li et al. 2017; EagleEye), l2, bn-scale (Network Slimming), taylor (Molchanov et al. 2019, first order),
fpgm (He et al. 2019), random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.codegen import build_module
from pruneopt.ir.graph import Value
from pruneopt.models.workload import Workload, placed, set_mode
from pruneopt.passes.analysis.coupling import LAYERS, Coupling
from pruneopt.passes.analysis.units import Slot

__all__ = ["CRITERIA", "Criterion", "produced_slots", "score_units", "weight_gradients"]

Criterion = Literal["l1", "l2", "bn-scale", "taylor", "fpgm", "random"]
NORMS = ("batch_norm", "_native_batch_norm_legit", "native_batch_norm", "cudnn_batch_norm")


@dataclass(frozen=True, slots=True)
class _Sources:
    """What a criterion reads: weights by name, and for taylor the mean of |w * dloss/dw| over batches by name."""

    weights: Mapping[str, Tensor]
    saliency: Mapping[str, Tensor]

    def tensor(self, value: Value) -> Tensor:
        return self.weights[value.name].detach().double()


def score_units(
    coupling: Coupling,
    weights: Mapping[str, Tensor],
    criterion: str,
    *,
    normalise: bool = False,
    leader: bool = False,
    seed: int = 0,
    workload: Workload | None = None,
    batches: int = 8,
    batch_size: int = 64,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """A score per unit of every free group, float64 `[width]`; more means more worth keeping.

    Args:
        criterion: one of `CRITERIA`.
        normalise: divide by the group's mean, so that units of different groups can be compared.
        leader: score the first producing layer in graph order only (EagleEye's rule), not all of them.
        seed: for random.
        workload, batches, batch_size, device: for taylor: gradients over this many calibration batches.

    Raises:
        UserError: an unknown criterion, taylor without data, a free group without batch-norm scale for bn-scale, or
            weights (or gradients) that are not finite.
    """
    if criterion not in CRITERIA:
        raise UserError(f"there is no criterion {criterion!r}: use one of {', '.join(CRITERIA)}")
    if criterion == "random":
        total = np.random.default_rng(seed).random(len(coupling.unit_group))
    else:
        saliency: Mapping[str, Tensor] = {}
        if criterion == "taylor":
            if workload is None:
                raise UserError("the criterion taylor needs data: give --data, or a model file with data()")
            saliency = weight_gradients(coupling, weights, workload, batches, batch_size, device)
        total = _total(coupling, criterion, _Sources(weights, saliency), leader)
    scores = {group.name: total[group.units] for group in coupling.free}
    for name, score in scores.items():
        if not np.isfinite(score).all():
            raise UserError(f"the {criterion} scores of group {name} are not finite: its weights hold NaN or infinity")
    return {name: _normalised(score) for name, score in scores.items()} if normalise else scores


def _normalised(score: np.ndarray) -> np.ndarray:
    mean = score.mean()
    return score / mean if mean > 0 else score


def _total(coupling: Coupling, criterion: str, sources: _Sources, leader: bool) -> np.ndarray:
    """The score of every unit of the coupling, free or not."""
    measure = _MEASURES[criterion]
    slots = list(_norm_slots(coupling) if criterion == "bn-scale" else produced_slots(coupling))
    total, seen = _add_up(coupling, slots, sources, measure, leader)
    bare = [group for group in coupling.free if not seen[group.units].all()]
    if bare and criterion == "bn-scale":
        raise UserError(
            f"group {bare[0].name} has no batch-norm scale ({bare[0].location}): use another criterion, such as l1, or "
            f"--ignore {bare[0].name}"
        )
    if bare:
        unseen = np.zeros_like(seen)
        for group in bare:
            unseen[group.units] = ~seen[group.units]
        rest = [slot for slot in coupling.slots if slot.value.is_weight and slot.value.kind == "param"]
        more, _ = _add_up(coupling, rest, sources, measure, leader)
        total[unseen] = more[unseen]
    return np.sqrt(total) if criterion == "l2" else total


def _add_up(
    coupling: Coupling, slots: list[Slot], sources: _Sources, measure: Measure, leader: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores added up over slots, `[units]`, and which units occur in any."""
    count = len(coupling.unit_group)
    total, seen = np.zeros(count), np.zeros(count, dtype=bool)
    done: dict[tuple[Value, tuple[int, ...]], None] = {}
    for slot in slots:
        # A weight that several ops share counts once.
        if (slot.value, slot.axes) in done:
            continue
        done[slot.value, slot.axes] = None
        units = slot.units.reshape(-1)
        score = measure(sources, slot).cpu().numpy().reshape(-1)
        fresh = units >= 0
        if leader:
            fresh &= ~seen[units]
        total += np.bincount(units[fresh], score[fresh], minlength=count)
        seen[units[units >= 0]] = True
    return total, seen


# Slots


def produced_slots(coupling: Coupling) -> Iterator[Slot]:
    """The output-axis slots of the weights of layers, in graph order."""
    for op in coupling.graph.ops:
        if op.base in LAYERS:
            weight = op.value(0) if op.base == "embedding" else op.value(2 if op.base == "addmm" else 1)
            if weight is not None and weight.is_weight:
                flipped = "transpose" in op.base or op.base in ("embedding", "matmul", "mm", "bmm", "addmm")
                axis = len(weight.type.dims) - 1 if op.base in ("matmul", "bmm") else int(flipped)
                yield from (slot for slot in coupling.slots_of(weight) if slot.axes == (axis,))


def _norm_slots(coupling: Coupling) -> Iterator[Slot]:
    """The slots of the scales (gamma) of batch norms, in graph order."""
    for op in coupling.graph.ops:
        scale = op.value(1) if op.base in NORMS else None
        if scale is not None and scale.is_weight:
            yield from coupling.slots_of(scale)


# Criteria: a score per element of a slot's units, in the shape of `slot.units` without its axes of size 1


Measure = Callable[[_Sources, Slot], Tensor]


def _summed(tensor: Tensor, slot: Slot) -> Tensor:
    """A tensor of the weight's shape, summed over every axis along which the slot's units do not vary."""
    for axis, size in enumerate(slot.units.shape):
        if size == 1:
            tensor = tensor.sum(axis, keepdim=True)
    return tensor


def _l1(sources: _Sources, slot: Slot) -> Tensor:
    return _summed(sources.tensor(slot.value).abs(), slot)


def _l2(sources: _Sources, slot: Slot) -> Tensor:
    """Squares; the root is taken over the whole unit."""
    return _summed(sources.tensor(slot.value).square(), slot)


def _taylor(sources: _Sources, slot: Slot) -> Tensor:
    """What the loss would change if the weights were zero, to first order; weights without gradient count as zero."""
    tensor = sources.saliency.get(slot.value.name)
    return _summed(torch.zeros_like(sources.tensor(slot.value)) if tensor is None else tensor, slot)


def _fpgm(sources: _Sources, slot: Slot) -> Tensor:
    """The sum of a filter's distances to all filters of its layer: small near the geometric median."""
    weight = sources.tensor(slot.value)
    varying = [axis for axis, size in enumerate(slot.units.shape) if size > 1]
    others = [axis for axis in range(weight.dim()) if axis not in varying]
    filters = weight.permute(*varying, *others).reshape(slot.units.size, -1)
    # In parts: the full table of distances of a wide layer fills the memory.
    return torch.cat([torch.cdist(part, filters).sum(1) for part in filters.split(1024)])


_MEASURES: dict[str, Measure] = {"l1": _l1, "l2": _l2, "bn-scale": _l1, "taylor": _taylor, "fpgm": _fpgm}
CRITERIA = (*_MEASURES, "random")


def weight_gradients(
    coupling: Coupling,
    weights: Mapping[str, Tensor],
    workload: Workload,
    batches: int = 8,
    batch_size: int = 64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """The mean of |w * dloss/dw| over calibration batches for every parameter with a gradient; float64, on the CPU.

    The network runs in evaluation mode: batch norm uses its statistics, so that scores do not depend on the batch.

    Raises:
        UserError: data that does not fit the network.
    """
    if batches < 1:
        raise UserError(f"batches={batches} leaves nothing to take gradients on: use at least 1")
    module = build_module(coupling.graph, weights)
    summed: dict[str, Tensor] = {}
    count = 0
    with placed(module, device), torch.enable_grad():
        set_mode(module, training=False)
        named = [(n, p) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
        for inputs, targets in workload.calibration.batches(batch_size, device=device):
            module.zero_grad(set_to_none=True)
            workload.loss(workload.forward(module, inputs), targets).backward()
            for name, parameter in named:
                if parameter.grad is not None:
                    product = (parameter.detach() * parameter.grad).abs().double().cpu()
                    summed[name] = summed[name] + product if name in summed else product
            count += 1
            if count == batches:
                break
    return {name: total / count for name, total in summed.items()}
