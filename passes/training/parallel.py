"""The processes that train together, as torchrun starts them, and Lightning Fabric for one of them.

Fabric takes seconds to import, so it is imported when training begins.
"""

from __future__ import annotations

import atexit
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from pruneopt.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Processes", "make_fabric", "quiet"]

PATIENCE = timedelta(days=1)
"""How long processes wait for each other: one may be searching while another is done."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that torchrun started; a single one otherwise.

    Attributes:
        rank: of this process, from 0.
        world: how many there are, on all machines.
        local_rank: of this process on its machine.
        local_world: how many are on this machine.
        launched: whether torchrun started them.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launched: bool = False

    @classmethod
    def here(cls) -> Processes:
        """Read from the environment; nothing is set up."""
        if not (dist.is_available() and dist.is_torchelastic_launched()):
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world, local_rank, local_world = (int(os.environ[name]) for name in names)
        return cls(rank, world, local_rank, local_world, launched=True)

    def device(self, wanted: str | torch.device) -> torch.device:
        """Return the device of this process: ``cuda`` means the GPU of its local rank.

        Raises:
            UserError: under torchrun another GPU is named, or there are fewer GPUs than processes.
        """
        place = torch.device(wanted)
        if place.type == "cuda" and self.launched:
            if place.index not in (None, self.local_rank):
                raise UserError(
                    f"under torchrun each process has a GPU of its own: say cuda instead of {place}"
                )
            count = torch.cuda.device_count()
            if self.local_world > count:
                raise UserError(
                    f"{self.local_world} processes cannot share {count} GPUs: start one for each "
                    "GPU"
                )
            place = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(place)
        return torch.empty(0, device=place).device

    def join(self) -> None:
        """Connect the processes, once; nothing to do for a single one."""
        if self.launched and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
            atexit.register(_leave)

    def share(self, value: Any) -> Any:
        """Return what process 0 holds, for all."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return what each process holds, by rank, for all."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; the tensor itself stays as it is."""
        if self.world == 1:
            return tensor
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    def spread(self, tensors: list[Tensor]) -> None:
        """Give all processes the tensors of process 0, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def make_fabric(device: torch.device, precision: str, processes: Processes) -> Fabric:
    """Return Fabric for this process: one device, or data parallel (DDP) under torchrun.

    Raises:
        UserError: a kind of device that it cannot train on.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.plugins.precision import MixedPrecision, Precision
    from lightning_fabric.strategies.ddp import DDPStrategy

    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"cannot train on the device {device}: use cpu or cuda")
    # Made here, because Fabric would replace 16-mixed on a CPU by another precision.
    plugin = Precision() if precision == "32-true" else MixedPrecision(precision, device.type)  # type: ignore[arg-type]
    if not processes.launched:
        devices: Any = [device.index or 0] if device.type != "cpu" else 1
        return Fabric(
            accelerator=device.type, devices=devices, plugins=[plugin, LightningEnvironment()]
        )
    fabric = Fabric(
        accelerator=device.type,
        devices=processes.local_world,
        num_nodes=processes.world // processes.local_world,
        # A part of a network that an iteration does not reach (a width's own batch norm) gets no
        # gradient.
        strategy=DDPStrategy(find_unused_parameters=True),
        plugins=[plugin, TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Fabric's and DDP's remarks on how they were set up."""
    before = {
        name: logging.getLogger(name).level
        for name in ("lightning_fabric", "torch.nn.parallel.distributed")
    }
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module=r"lightning_fabric\.|lightning_utilities\.|torch\.nn\.parallel"
        )
        try:
            for name in before:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
