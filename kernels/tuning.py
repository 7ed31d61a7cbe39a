"""Tiles that were measured on a device, in a file; the table of `kernels.tiles` stays the default.

The file is for one device, one compute capability and one version of Triton; for others it is
ignored, with a warning. It is found by the environment variable ``PRUNEOPT_TUNED_TILES``, or given
to `TritonKernels`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pruneopt.errors import UserError
from pruneopt.files import write_json
from pruneopt.kernels.tiles import INTERPRETER, Precision, Tile, conv_tile, depthwise_tile
from pruneopt.kernels.window import Window
from pruneopt.reading import read_record

__all__ = [
    "VARIABLE",
    "Problem",
    "TunedTiles",
    "choose",
    "configurations",
    "device_key",
    "save",
    "tuned_tiles",
]

VARIABLE = "PRUNEOPT_TUNED_TILES"
FORMAT = 1
WORTH = 0.97
"""A tile takes the place of the default where it needs at most this share of the default's time:
less is noise."""


def _power(width: int) -> int:
    """Return the power of two from 16 on that covers a width."""
    return max(16, 1 << (width - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Problem:
    """A class of convolutions that share a tile.

    Attributes:
        n_out, n_in: channels of one group, rounded up to powers of two; of a depthwise convolution
            both are all.
        taps, stride: of the window; the stride is the vertical one.
        groups: 0 for depthwise, 1, or 2 for any number from two on.
        dtype: of the stored activations.
        precision: of float32 products; of others it says nothing.
    """

    n_out: int
    n_in: int
    taps: int
    stride: int
    groups: int
    dtype: torch.dtype
    precision: Precision = "ieee"

    @classmethod
    def of(
        cls,
        n_out: int,
        n_in: int,
        window: Window,
        groups: int,
        dtype: torch.dtype,
        precision: Precision = "ieee",
    ) -> Problem:
        """Return the class of a convolution; ``groups=0`` is a depthwise one."""
        share = max(1, groups)
        own: Precision = precision if dtype == torch.float32 and groups else "ieee"
        widths = _power(-(-n_out // share)), _power(-(-n_in // share))
        return cls(*widths, window.taps, window.stride[0], min(groups, 2), dtype, own)

    def __str__(self) -> str:
        kind = ("depthwise", "conv", "grouped conv")[self.groups]
        dtype = str(self.dtype).removeprefix("torch.")
        words = (
            f"{kind} {self.n_in} to {self.n_out}, {self.taps} taps, stride {self.stride}, {dtype}"
        )
        return words + (f" {self.precision}" if self.dtype == torch.float32 and self.groups else "")

    def default(self, architecture: int) -> Tile:
        """Return the tile of the table in `kernels.tiles`."""
        if not self.groups:
            return depthwise_tile(self.n_out, architecture)
        n_out, n_in = self.groups * self.n_out, self.groups * self.n_in
        return conv_tile(n_out, n_in, self.dtype, architecture, self.precision, self.groups)


def configurations(problem: Problem, architecture: int) -> tuple[Tile, ...]:
    """Return the tiles that are tried, the default first.

    One that a device cannot run drops out when it is tried.
    """
    default = problem.default(architecture)
    columns = default.columns
    if architecture == INTERPRETER:
        others = [Tile(16, columns, default.depth, 1, 1)]
    elif not problem.groups:
        narrow = min(32, columns)
        small = (
            (16, columns, 4),
            (64, columns, 4),
            (64, columns, 8),
            (32, narrow, 2),
            (64, narrow, 4),
        )
        others = [Tile(rows, width, 1, warps, 2) for rows, width, warps in small]
    elif problem.dtype == torch.float32:
        depth = default.depth
        sizes = ((64, columns, 4), (128, columns, 8), (64, max(16, columns // 2), 4))
        others = [
            Tile(rows, width, depth, warps, stages)
            for rows, width, warps in sizes
            for stages in (2, 3)
        ]
    else:
        deep = min(64, problem.n_in)
        others = [
            *(Tile(64, columns, min(32, deep), 4, stages) for stages in (3, 4)),
            *(Tile(128, columns, min(32, deep), warps, 4) for warps in (4, 8)),
            Tile(128, max(16, columns // 2), deep, 4, 3),
            Tile(128, columns, deep, 8, 3),
            Tile(256, min(64, columns), deep, 8, 3),
        ]
    return tuple(dict.fromkeys((default, *others)))


@dataclass(slots=True)
class Choice:
    """The fastest tile found for a problem, and the seconds that every tile took which ran."""

    tile: Tile
    seconds: dict[Tile, float] = field(default_factory=dict)
    failed: dict[Tile, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return it as it stands in the file, in microseconds."""
        tried = [
            {**asdict(tile), "microseconds": round(1e6 * took, 3)}
            for tile, took in self.seconds.items()
        ]
        failed = [{**asdict(tile), "why": why} for tile, why in self.failed.items()]
        return {"tile": asdict(self.tile), "tried": tried, "failed": failed}


def choose(problem: Problem, architecture: int, measure: Callable[[Tile], float]) -> Choice:
    """Return the fastest tile of a problem.

    Args:
        problem: what it is for.
        architecture: as `launch.architecture` gives it.
        measure: seconds that a tile takes; what it raises puts the tile out.

    Raises:
        UserError: the default does not run.
    """
    default, *others = configurations(problem, architecture)
    choice = Choice(default)
    for tile in (default, *others):
        try:
            choice.seconds[tile] = measure(tile)
        except Exception as error:
            choice.failed[tile] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if default in choice.failed:
        raise UserError(f"the default tile of {problem} does not run: {choice.failed[default]}")
    best = min(choice.seconds, key=lambda tile: choice.seconds[tile])
    if choice.seconds[best] <= WORTH * choice.seconds[default]:
        choice.tile = best
    return choice


def device_key(device: torch.device) -> dict[str, str]:
    """Return the key of a device: tiles tuned for one are not used on another."""
    from pruneopt.kernels.device.language import triton

    key = {"device": "interpreter", "capability": "", "triton": str(triton.__version__)}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        key |= {"device": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}"}
    return key


def save(path: Path, key: Mapping[str, str], choices: Mapping[Problem, Choice]) -> None:
    """Write a file of tuned tiles; it is there whole or not at all."""
    rows = {str(problem): choice.row() for problem, choice in choices.items()}
    write_json(path, {"format": FORMAT, "for": dict(key), "tiles": rows})


@dataclass(frozen=True)
class TunedTiles:
    """Tiles by problem; none for most."""

    tiles: Mapping[str, Tile] = field(default_factory=dict)

    def get(self, problem: Problem) -> Tile | None:
        """Return the tile that was measured to be fastest; None where nothing was measured."""
        return self.tiles.get(str(problem))


def tuned_tiles(device: torch.device, path: Path | None = None) -> TunedTiles:
    """Return the tiles of a file, by default the one that the environment names.

    A warning tells why a file is ignored.
    """
    named = path or os.environ.get(VARIABLE)
    if not named:
        return TunedTiles()
    try:
        return TunedTiles(_read(Path(named), device_key(device)))
    except UserError as why:
        warnings.warn(f"tuned tiles are ignored: {why}", RuntimeWarning, stacklevel=2)
        return TunedTiles()


def _read(path: Path, key: Mapping[str, str]) -> dict[str, Tile]:
    try:
        found: Any = read_record(path, "file of tuned tiles", Any)
        made_for, rows = found["for"], found["tiles"]
        if found["format"] != FORMAT:
            raise UserError(f"{path} has format {found['format']} instead of {FORMAT}: tune again")
        tiles = {problem: Tile(**row["tile"]) for problem, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no file of tuned tiles ({type(error).__name__}: {error})"
        ) from error
    for name, now in key.items():
        if made_for.get(name) != now:
            raise UserError(
                f"{path} is for {name} {made_for.get(name)!r}, and this is {now!r}: tune again"
            )
    return tiles
