"""How large the tiles of each kernel are: a table by output width, depth and architecture.

The entries are those that compile without spilling registers and within shared memory; the compile
check (`tests/kernels/test_compile.py`) builds them. None has been tuned on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pruneopt.errors import UserError

__all__ = [
    "DTYPES",
    "Precision",
    "Tile",
    "conv_tile",
    "depthwise_tile",
    "elementwise_tile",
    "stem_tile",
]

Precision = Literal["ieee", "tf32"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTERPRETER = 0

_SMALL_MEMORY = (86, 89, 120)
"""Architectures with 99 KiB of shared memory instead of 163 or 227."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A program's share of the work.

    Attributes:
        rows: output pixels.
        columns: output channels.
        depth: input channels of one step.
        warps: of 32 threads.
        stages: loads in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for value in (self.rows, self.columns, self.depth, self.warps):
            if value < 1 or value & (value - 1):
                raise UserError(
                    f"{self} is impossible: rows, columns, depth and warps are powers of two"
                )


def _bucket(width: int, largest: int) -> int:
    """Return the power of two from 16 to `largest` that covers a width."""
    size = 16
    while size < min(width, largest):
        size *= 2
    return size


def conv_tile(
    n_out: int,
    n_in: int,
    dtype: torch.dtype,
    architecture: int,
    precision: Precision = "ieee",
    groups: int = 1,
) -> Tile:
    """Return the tile of `conv` for the widest candidate of a launch.

    Args:
        n_out: output channels.
        n_in: input channels.
        dtype: of the stored activations.
        architecture: as `launch.architecture` gives it.
        precision: of float32 products.
        groups: of the convolution; more than one shortens what a program can share.
    """
    if architecture == INTERPRETER:
        return Tile(32, 32, 32, 1, 1)
    n_out, n_in = n_out // groups, n_in // groups
    if dtype != torch.float32:
        return _half(n_out, n_in, architecture, groups)
    if precision == "tf32":
        rows, columns = 128 if groups == 1 else 64, _bucket(n_out, 64)
        small = architecture in _SMALL_MEMORY
        return Tile(
            rows, columns, _bucket(n_in, 32), 4 if small or columns <= 32 else 8, 2 if small else 3
        )
    return Tile(64, _bucket(n_out, 64), 16, 4, 2)


def _half(n_out: int, n_in: int, architecture: int, groups: int) -> Tile:
    """Tiles for 16-bit activations."""
    small = architecture in _SMALL_MEMORY
    depth = _bucket(n_in, 64)
    if groups > 1:
        return Tile(64, _bucket(n_out, 32), min(depth, 32), 4, 2)
    if n_out > 64:
        return Tile(128, 128, depth, 8, 2 if small else 3)
    # Narrow outputs with 32 channels a step: with 64, four warps come close to the limit of 255
    # registers.
    return Tile(128, _bucket(n_out, 64), min(depth, 32), 4, 4)


def depthwise_tile(channels: int, architecture: int) -> Tile:
    """Return the tile of `dwconv`.

    Few rows, so that many programs keep loads in flight: it waits for memory, not for sums.
    """
    if architecture == INTERPRETER:
        return Tile(32, 32, 1, 1, 1)
    return Tile(32, _bucket(channels, 64), 1, 4, 2)


def stem_tile(n_out: int, architecture: int) -> Tile:
    """Return the tile of `stem`.

    Pixels are gathered one byte at a time, so there is nothing to keep in flight.
    """
    if architecture == INTERPRETER:
        return Tile(32, 32, 32, 1, 1)
    return Tile(64, _bucket(n_out, 64), 32, 4, 2)


def elementwise_tile(channels: int, architecture: int) -> Tile:
    """Return the tile of `add_act` and of the pooling in `head`."""
    if architecture == INTERPRETER:
        return Tile(32, 32, 1, 1, 1)
    return Tile(32, _bucket(channels, 64), 1, 4, 2)
