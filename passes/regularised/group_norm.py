"""The regulariser ``group-norm``: a group lasso on the weights of each unit, for networks without
batch norm.

A variant of Network Slimming, not the paper's method: where there is no scale that a channel passes
through, the weights that make the channel take its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.units import Slot
from pruneopt.passes.analysis.importance.importance import produced_slots, summed
from pruneopt.passes.options.configured import option
from pruneopt.passes.regularised.gamma import PenaltyReport, checked_scale, live_parameters
from pruneopt.passes.regularised.regularised import Regulariser, RegulariserHook, RegulariserTask
from pruneopt.passes.training.hooks import TrainingRun

__all__ = ["GroupNorm"]


@dataclass(frozen=True)
class GroupNorm(Regulariser):
    """``scale * sum ||w_u||_2`` over the units u of all free groups, by its sub-gradient.

    ``w_u`` are all weights that make a unit, in whatever layers: what the criterion l2 ranks by.
    The sub-gradient is ``scale * w / ||w_u||``, and 0 where the norm is 0.
    """

    name: ClassVar[str] = "group-norm"
    summary: ClassVar[str] = (
        "pull the weights that make a channel towards zero together (group lasso)"
    )

    scale: float = option(1e-4, "weight of the penalty")

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_scale(self.scale)

    def hook(self, task: RegulariserTask) -> RegulariserHook:
        if not task.coupling.free:
            raise UserError(
                f"{task.coupling.graph.name} has no channel group that may be pruned: nothing to "
                "penalise"
            )
        return _GroupNormHook(self.scale, task.coupling)


class _GroupNormHook(RegulariserHook):
    def __init__(self, scale: float, coupling: Coupling) -> None:
        self._scale, self._count = scale, len(coupling.unit_group)
        self._places = list(_places(coupling))
        self._on: list[tuple[nn.Parameter, Slot, Tensor]] = []
        self._live: dict[str, nn.Parameter] = {}

    def start(self, run: TrainingRun) -> None:
        names = [slot.value.name for slot, _ in self._places]
        own = dict(run.module.named_parameters(remove_duplicate=False))
        self._live = live_parameters(run.module, names)
        self._on = [
            (own[slot.value.name], slot, torch.from_numpy(index).to(run.device))
            for slot, index in self._places
            if slot.value.name in own
        ]

    def before_step(self, run: TrainingRun) -> None:
        with torch.no_grad():
            factor = self._factors(run.device)
            for parameter, _, index in self._on:
                if parameter.requires_grad and parameter.grad is not None:
                    parameter.grad.add_(
                        parameter * factor[index].to(parameter.dtype), alpha=self._scale
                    )

    def _factors(self, device: torch.device) -> Tensor:
        """Return one over the norm of every unit, 0 where it is 0 `[units + 1]`; the last is for
        what is not penalised."""
        squares = torch.zeros(
            self._count + 1, device=device, dtype=torch.float64 if device.type == "cpu" else None
        )
        for parameter, slot, index in self._on:
            part = summed(parameter.square().to(squares.dtype), slot)
            squares.index_add_(0, index.reshape(-1), part.reshape(-1))
        factor = torch.where(squares > 0, squares.rsqrt(), torch.zeros_like(squares))
        factor[-1] = 0
        return factor

    def report(self) -> PenaltyReport:
        skipped = tuple(
            dict.fromkeys(
                slot.value.name for slot, _ in self._places if slot.value.name not in self._live
            )
        )
        return PenaltyReport(self._scale, len(self._live), skipped)


def _places(coupling: Coupling) -> Iterator[tuple[Slot, np.ndarray]]:
    """Yield where the units of free groups are made, each place of a weight once, with the unit at
    each (or ``units``: none).

    Units that no layer makes are at all places of parameters that hold them.
    """
    nobody = len(coupling.unit_group)
    wanted = np.zeros(nobody + 1, dtype=bool)
    for group in coupling.free:
        wanted[group.units] = True
    made = np.zeros(nobody + 1, dtype=bool)
    done = set()
    for slot in produced_slots(coupling):
        if (slot.value, slot.axes) not in done:
            done.add((slot.value, slot.axes))
            made[slot.units[slot.units >= 0]] = True
            if wanted[slot.units].any():
                yield slot, np.where(wanted[slot.units], slot.units, nobody)
    bare = wanted & ~made
    for slot in coupling.slots:
        if slot.value.is_weight and slot.value.kind == "param" and bare[slot.units].any():
            yield slot, np.where(bare[slot.units], slot.units, nobody)
