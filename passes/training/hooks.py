"""Hooks into a training run: they see the weights and gradients at each iteration, and may change
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Hook", "TrainingRun"]


@dataclass
class TrainingRun:
    """A training run as its hooks see it.

    Attributes:
        module: the network itself, unwrapped, on the device. Its parameters carry the names of the
            graph's weights.
        optimiser: the optimiser; its learning rates are set anew before each iteration.
        device: where the network is.
        seed: of the run. A hook that draws does so from a generator of its own, seeded with this
            and `iteration`: so every process draws the same, and a resumed run draws what the
            interrupted one would have.
        rank: this process among `world`, from 0.
        world: how many processes train together.
        steps: optimiser steps the recipe has in all.
        iteration: optimiser steps done, from 0: in `after_step` the step that was just made counts.
        epoch: from 1.
    """

    module: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    seed: int
    rank: int
    world: int
    steps: int
    iteration: int = 0
    epoch: int = 1


class Hook:
    """Does nothing; subclasses override what they need. Methods are called in the order of the
    hooks given.

    Under several processes every hook runs in every process and must do the same there; gradients
    in `before_step` are already those of the whole batch.
    """

    def start(self, run: TrainingRun) -> None:
        """Act once, before the first iteration; on resume before weights and states are loaded."""

    def before_forward(self, run: TrainingRun) -> None:
        """Act before the first forward pass of an iteration; gradients are cleared."""

    def before_backward(self, run: TrainingRun) -> None:
        """Act between forward and backward of the first part of an iteration's batch."""

    def before_step(self, run: TrainingRun) -> None:
        """Act on gradients that are complete, accumulated and unscaled, not yet clipped: penalties
        are added here."""

    def after_step(self, run: TrainingRun) -> None:
        """Act after the optimiser has moved the weights: masks are re-applied here."""

    def finished(self) -> bool:
        """Return whether training ends; asked after each iteration."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to go on from here: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
