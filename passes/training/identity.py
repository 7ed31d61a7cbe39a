"""What tells one training run from another: a checkpoint is taken up only by the run that left it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.models.workload import Workload
from pruneopt.passes.training.hooks import Hook
from pruneopt.passes.training.parallel import Processes
from pruneopt.passes.training.recipe import Recipe

__all__ = ["fingerprint", "run_identity", "tensors_of"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, also those that a state dict leaves out; shared ones once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in tensors_of(module).items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    """What a checkpoint must agree on, in plain values; ``module`` as it is before training.

    Raises:
        UserError: the processes that train together do not agree on it.
    """
    # Where logs go changes no weight.
    settings = {key: value for key, value in dataclasses.asdict(recipe).items() if key != "tensorboard"}
    names = ",".join(name for name, flag in decayed.items() if flag)
    identity = {
        "optimiser": recipe.name,
        **settings,
        "seed": seed,
        "device": device.type,
        "processes": processes.world,
        "hooks": ", ".join(type(hook).__name__ for hook in hooks),
        "decayed weights": hashlib.sha256(names.encode()).hexdigest(),
        "data": str(workload.describe()),
        "initial weights": fingerprint(module),
        "teacher": "" if teacher is None else fingerprint(teacher),
    }
    for other in processes.gather(identity):
        for key in identity:
            if other.get(key) != identity[key]:
                raise UserError(
                    f"the processes disagree on what to train (its {key} {'differ' if key.endswith('s') else 'differs'}"
                    "): a stage before gave different results; train in one process"
                )
    return identity
