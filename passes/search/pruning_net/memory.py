"""How much memory a training run takes before any activation, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pruneopt.passes.training.recipe import Recipe

__all__ = ["Footprint", "available_memory"]

FLOAT = 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory that training keeps all the time.

    Attributes:
        parameters: how many there are.
        state: numbers that the optimiser (and a moving average) holds for each.
    """

    parameters: int
    state: int

    @classmethod
    def of(cls, parameters: int, recipe: Recipe) -> Footprint:
        """Return the memory of so many parameters under a recipe; the optimiser is asked by one
        step on a single number."""
        probe = torch.nn.Parameter(torch.zeros(2))
        optimiser = recipe.optimiser([{"params": [probe], "weight_decay": 0.0}])
        probe.grad = torch.zeros(2)
        optimiser.step()
        held = [
            value for value in optimiser.state[probe].values() if isinstance(value, torch.Tensor)
        ]
        return cls(parameters, sum(value.shape == probe.shape for value in held) + (recipe.ema > 0))

    @property
    def bytes(self) -> int:
        """Parameters, gradients and the optimiser's state in single precision."""
        return FLOAT * self.parameters * (2 + self.state)


def available_memory(device: str) -> int | None:
    """Return the free bytes of a device; of the machine (and its memory limit, where one is set)
    for a CPU. None if unknown."""
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if place.type != "cpu":
        return None
    found = [size for size in (_machine(), _limit()) if size is not None]
    return min(found, default=None)


def _machine() -> int | None:
    """Return what Linux says can still be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(sizes[0]) if sizes else None


def _limit() -> int | None:
    """Return what a container's memory limit (control group version 2) leaves."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder / name for name in ("memory.max", "memory.current"))
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):
        return None
