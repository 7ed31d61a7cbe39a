"""The criteria that come with pruneopt.

Sources: l1 (Li et al. 2017; EagleEye), l2, bn-scale (Network Slimming), taylor (Molchanov et al.
2019, first order), fpgm (He et al. 2019), random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.models.workload import Workload, placed, set_mode
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.units import Slot
from pruneopt.passes.analysis.importance.importance import (
    Criterion,
    Given,
    Measure,
    SlotCriterion,
    by_rows,
    summed,
)
from pruneopt.passes.analysis.ops.batch_norm import batch_norms
from pruneopt.passes.options.configured import option

__all__ = ["FPGM", "L1Norm", "L2Norm", "NormScale", "RandomScore", "Taylor", "weight_gradients"]


@dataclass(frozen=True)
class L1Norm(SlotCriterion):
    """The sum of absolute weights (Li et al. 2017)."""

    name: ClassVar[str] = "l1"
    summary: ClassVar[str] = "the sum of the absolute weights that make a channel"

    def measuring(self, given: Given) -> Measure:
        return lambda slot: by_rows(given.weight(slot.value), slot, _absolute_sums)


def _absolute_sums(rows: Tensor) -> Tensor:
    return rows.abs().sum(1, dtype=torch.float64)


@dataclass(frozen=True)
class L2Norm(SlotCriterion):
    """The Euclidean norm; the root is taken over the whole unit."""

    name: ClassVar[str] = "l2"
    summary: ClassVar[str] = "the Euclidean norm of the weights that make a channel"

    def measuring(self, given: Given) -> Measure:
        return lambda slot: by_rows(
            given.weight(slot.value), slot, lambda rows: rows.double().square().sum(1)
        )

    def combined(self, total: np.ndarray) -> np.ndarray:
        root: np.ndarray = np.sqrt(total)
        return root


@dataclass(frozen=True)
class NormScale(SlotCriterion):
    """The absolute scales (gamma) of batch norms (Liu et al. 2017)."""

    name: ClassVar[str] = "bn-scale"
    summary: ClassVar[str] = "the absolute scales of a channel's batch norms (Network Slimming)"

    def slots(self, coupling: Coupling) -> Iterator[Slot]:
        return (
            slot for norm in batch_norms(coupling.graph) for slot in coupling.slots_of(norm.scale)
        )

    def measuring(self, given: Given) -> Measure:
        return lambda slot: summed(given.tensor(slot.value).abs(), slot)

    def check_bare(self, coupling: Coupling, name: str) -> None:
        raise UserError(
            f"group {name} has no batch-norm scale ({coupling.group(name).location}): use another "
            "criterion, such as "
            f"l1, or --ignore {name}"
        )


@dataclass(frozen=True)
class Taylor(SlotCriterion):
    """The change of the loss if the weights were zero, to first order (Molchanov et al. 2019)."""

    name: ClassVar[str] = "taylor"
    summary: ClassVar[str] = "first-order change of the loss on calibration images"
    data: ClassVar[bool] = True

    batches: int = option(8, "calibration batches to take gradients on")

    def measuring(self, given: Given) -> Measure:
        workload = given.need_workload(self.name)
        saliency = weight_gradients(
            given.coupling, given.weights, workload, self.batches, given.batch_size, given.device
        )

        def measure(slot: Slot) -> Tensor:
            # Weights without gradient count as zero.
            tensor = saliency.get(slot.value.name)
            return summed(
                torch.zeros_like(given.tensor(slot.value)) if tensor is None else tensor, slot
            )

        return measure


@dataclass(frozen=True)
class FPGM(SlotCriterion):
    """The sum of a filter's distances to all filters of its layer: small near the geometric median
    (He et al. 2019)."""

    name: ClassVar[str] = "fpgm"
    summary: ClassVar[str] = "distance of a filter to all others of its layer (geometric median)"

    def measuring(self, given: Given) -> Measure:
        def measure(slot: Slot) -> Tensor:
            weight = given.tensor(slot.value)
            varying = [axis for axis, size in enumerate(slot.units.shape) if size > 1]
            others = [axis for axis in range(weight.dim()) if axis not in varying]
            filters = weight.permute(*varying, *others).reshape(slot.units.size, -1)
            # In parts: the full table of distances of a wide layer fills the memory.
            return torch.cat([torch.cdist(part, filters).sum(1) for part in filters.split(1024)])

        return measure


@dataclass(frozen=True)
class RandomScore(Criterion):
    """Uniform random numbers, by the seed."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random numbers, repeatable by the seed"
    leads: ClassVar[bool] = False

    def score(self, given: Given) -> np.ndarray:
        return np.random.default_rng(given.seed).random(len(given.coupling.unit_group))


def weight_gradients(
    coupling: Coupling,
    weights: Mapping[str, Tensor],
    workload: Workload,
    batches: int = 8,
    batch_size: int = 64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Return the mean of |w * dloss/dw| over calibration batches for every parameter with a
    gradient; float64, on the CPU.

    The network runs in evaluation mode: batch norm uses its statistics, so that scores do not
    depend on the batch.

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
        named = [
            (n, p) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad
        ]
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
