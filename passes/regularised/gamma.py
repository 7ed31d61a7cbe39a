"""The regulariser ``gamma-l1``: an L1 penalty on the scales of batch norms, as Network Slimming
trains (ICCV 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.naming import is_within
from pruneopt.passes.analysis.ops.batch_norm import BatchNorm, batch_norms
from pruneopt.passes.options.configured import option
from pruneopt.passes.regularised.regularised import Regulariser, RegulariserHook, RegulariserTask
from pruneopt.passes.training.hooks import TrainingRun

__all__ = ["GammaL1", "PenaltyReport", "checked_scale", "live_parameters"]


@dataclass(frozen=True, slots=True)
class PenaltyReport:
    """The reach of a penalty: its scale, the weights that it was on, and those that it skipped
    because they do not train."""

    scale: float
    reached: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class GammaL1(Regulariser):
    """``scale * sum |gamma|`` over the scales of every batch norm of the network, by its
    sub-gradient.

    ``scale * sign(gamma)``, with ``sign(0) = 0``, is added to the complete gradient before each
    step of the optimiser, whose momentum and learning rate then act on it. Scales that do not train
    are skipped and reported.
    """

    name: ClassVar[str] = "gamma-l1"
    summary: ClassVar[str] = "pull the scales of batch norms towards zero (Network Slimming)"

    scale: float = option(
        1e-4, "weight of the penalty; the paper takes 1e-4 for VGG, 1e-5 for ResNet and DenseNet"
    )
    ignore: tuple[str, ...] = option(
        (), "batch norms, or modules that contain them, without penalty"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_scale(self.scale)

    def hook(self, task: RegulariserTask) -> RegulariserHook:
        norms = batch_norms(task.coupling.graph)
        if not norms:
            raise UserError(
                f"{task.coupling.graph.name} has no batch norm with a scale to penalise: use "
                "regulariser=group-norm "
                "criterion=l2, which works on weights"
            )
        left = _without(norms, self.ignore)
        if not left:
            raise UserError(
                "gamma-l1 ignores every batch norm of the network: nothing is left to penalise"
            )
        return _GammaHook(self.scale, [norm.scale.name for norm in left])


class _GammaHook(RegulariserHook):
    def __init__(self, scale: float, names: Sequence[str]) -> None:
        self._scale, self._names = scale, names
        self._live: dict[str, nn.Parameter] = {}
        self._reached: set[str] = set()

    def start(self, run: TrainingRun) -> None:
        self._live = live_parameters(run.module, self._names)

    def before_step(self, run: TrainingRun) -> None:
        for name, parameter in self._live.items():
            if parameter.grad is not None:
                parameter.grad.add_(torch.sign(parameter.detach()), alpha=self._scale)
                self._reached.add(name)

    def state_dict(self) -> dict[str, Any]:
        return {"reached": sorted(self._reached)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._reached = set(state["reached"])

    def report(self) -> PenaltyReport:
        skipped = tuple(name for name in self._names if name not in self._reached)
        return PenaltyReport(self._scale, len(self._reached), skipped)


def live_parameters(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the named parameters of a module that train."""
    own = dict(module.named_parameters(remove_duplicate=False))
    return {name: own[name] for name in names if name in own and own[name].requires_grad}


def checked_scale(scale: float) -> None:
    """Raise `UserError` for a weight of a penalty that is not above 0."""
    if not 0 < scale < math.inf:
        raise UserError(f"scale={scale:g} must be above 0")


def _without(norms: Sequence[BatchNorm], ignore: Sequence[str]) -> list[BatchNorm]:
    """Return the batch norms that no name is for; `UserError` for a name that is for none."""
    left = list(norms)
    for name in ignore:
        if not any(is_within(norm.name, name) for norm in norms):
            guess = did_you_mean(name, [norm.name for norm in norms])
            raise UserError(
                f"gamma-l1{{ignore={name}}}: no batch norm is this module or inside it: {guess}"
            )
        left = [norm for norm in left if not is_within(norm.name, name)]
    return left
