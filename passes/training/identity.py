"""The identity of a training run: a checkpoint is taken up only by the run that left it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.digest import digest, weights_digest
from pruneopt.errors import UserError
from pruneopt.models.workload import Workload
from pruneopt.passes.training.hooks import Hook
from pruneopt.passes.training.parallel import Processes
from pruneopt.passes.training.recipe import Recipe

__all__ = ["run_identity", "tensors_of"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, also those that a state dict leaves out; shared
    ones once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def run_identity(
    module: nn.Module,
    workload: Workload,
    recipe: Recipe,
    *,
    hooks: Sequence[Hook],
    teacher: nn.Module | None,
    decayed: Mapping[str, bool],
    seed: int,
    device: torch.device,
    processes: Processes,
) -> dict[str, Any]:
    """Return what a checkpoint must agree on, in plain values; ``module`` as it is before training.

    Raises:
        UserError: the processes that train together do not agree on it.
    """
    # Where logs go changes no weight.
    settings = {
        key: value for key, value in dataclasses.asdict(recipe).items() if key != "tensorboard"
    }
    identity = {
        "optimiser": recipe.name,
        **settings,
        "seed": seed,
        "device": device.type,
        "processes": processes.world,
        "hooks": ", ".join(type(hook).__name__ for hook in hooks),
        "decayed weights": digest([name for name, flag in decayed.items() if flag]),
        "data": str(workload.describe()),
        "task": ", ".join(workload.task),
        "initial weights": weights_digest(tensors_of(module)),
        "teacher": "" if teacher is None else weights_digest(tensors_of(teacher)),
    }
    for other in processes.gather(identity):
        for key in identity:
            if other.get(key) != identity[key]:
                raise UserError(
                    f"the processes disagree on what to train (its {key} "
                    f"{'differ' if key.endswith('s') else 'differs'}"
                    "): a stage before gave different results; train in one process"
                )
    return identity
