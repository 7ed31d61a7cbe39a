"""A network that is ready on a target, and the inputs that it runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.schema import DTYPES
from pruneopt.ir.types import dim_size
from pruneopt.passes.timing.clock import Clock, WallClock

if TYPE_CHECKING:
    from pruneopt.ir.graph import Graph

__all__ = ["FLOATS", "Session", "fixed_inputs", "in_precision"]

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precisions of networks by their names in targets."""
SEED = 0


class Session(ABC):
    """A network on a target, with one fixed input of the target's batch."""

    @abstractmethod
    def run(self) -> None:
        """One inference of the batch, to completion."""

    @abstractmethod
    def outputs(self) -> list[np.ndarray]:
        """Return the network's outputs for the fixed input; fractions in single precision."""

    def step(self) -> None:
        """Do what `clock` times: `run`, or only its start where the device keeps time itself."""
        self.run()

    def clock(self) -> Clock:
        """Return how the time of a step is taken."""
        return WallClock()

    def close(self) -> None:  # noqa: B027  most sessions hold nothing but memory
        """Give up files and memory; the session cannot run any more."""


def fixed_inputs(graph: Graph, batch: int) -> list[Tensor]:
    """Return inputs of a graph at a batch size: fixed random numbers; zeros for codes and flags.

    Raises:
        UserError: the graph was captured at another, fixed batch.
    """
    dims = graph.inputs[0].type.dims if graph.inputs else ()
    if dims and not graph.dynamic_batch and dim_size(dims[0]) != batch:
        raise UserError(
            f"{graph.name} was captured at a fixed batch of {dim_size(dims[0])}, not of {batch}"
        )
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for value in graph.inputs:
        shape, dtype = value.type.shape(batch), DTYPES[value.type.dtype]
        random = (
            torch.randn(shape, generator=generator).to(dtype) if dtype.is_floating_point else None
        )
        found.append(torch.zeros(shape, dtype=dtype) if random is None else random)
    return found


def in_precision(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors with those of floating point in a precision, and others as they are."""
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
