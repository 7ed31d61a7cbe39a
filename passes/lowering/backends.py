"""Backends of a lowered graph's fused operations: Triton kernels, or the same in plain PyTorch.

A backend makes launches; a launch can run as often as its buffers are filled anew. What it works on
stands in the segment table on the device, so that the same launch serves other candidates when the
table is written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol

import torch
from torch import Tensor

from pruneopt.kernels import reference
from pruneopt.kernels.operands import Affine, Output, Partials, Prologue
from pruneopt.kernels.segments import Segments
from pruneopt.kernels.window import Window

if TYPE_CHECKING:  # Triton is imported where kernels run, and nowhere else
    from pruneopt.kernels.launch import Launch
    from pruneopt.kernels.tiles import Tile

__all__ = ["Backend", "Convolve", "ReferenceKernels", "Step", "TritonKernels"]

P = ParamSpec("P")
Step = Callable[[], None]
"""A launch that is ready to run."""


@dataclass(frozen=True, slots=True)
class Convolve:
    """The operands of a convolution, as `kernels.convolution.conv` describes them; depthwise for
    ``groups=0``."""

    x: Tensor
    weight: Tensor
    y: Tensor
    segments: Segments
    window: Window
    prologue: Prologue
    epilogue: Partials | Output
    groups: int


class Backend(Protocol):
    """The kernels, as launches; arguments are those of `pruneopt.kernels`.

    Attributes:
        name: for reports.
        dtype: of stored activations and weights.
        sums: of statistics, scales and shifts.
    """

    name: str
    dtype: torch.dtype
    sums: torch.dtype

    def tile_rows(self, n_out: int, n_in: int, window: Window, groups: int) -> int:
        """Return the rows of a tile of `conv`, or of `dwconv` for ``groups=0``: partial statistics
        are laid out by them."""

    def conv(self, operands: Convolve) -> Step:
        """Return the launch of a convolution."""

    def finalize(
        self,
        partials: Partials,
        mean: Tensor,
        variance: Tensor,
        segments: Segments,
        pixels: int,
        *,
        gamma: Tensor | None,
        beta: Tensor | None,
        affine: Affine | None,
        eps: float,
    ) -> Step: ...

    def add_act(self, x: Tensor, segments: Segments, pixels: int, prologue: Prologue) -> Step: ...

    def mean_pixels(
        self, x: Tensor, y: Tensor, segments: Segments, pixels: int, *, prologue: Prologue | None
    ) -> Step: ...


def _later(function: Callable[P, None]) -> Callable[P, Step]:
    """Return a launch of a function of `kernels.reference`: it reads the table when it runs."""
    plain: Callable[..., None] = function

    def prepared(*args: P.args, **kwargs: P.kwargs) -> Step:
        def run() -> None:
            plain(
                *(
                    Segments.read(item.table) if isinstance(item, Segments) else item
                    for item in args
                ),
                **kwargs,
            )

        return run

    return prepared


class ReferenceKernels:
    """`kernels.reference`: on any device, in float32 or float64."""

    name = "reference"
    finalize = staticmethod(_later(reference.finalize))
    add_act = staticmethod(_later(reference.add_act))
    mean_pixels = staticmethod(_later(reference.mean_pixels))

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.sums = torch.float64 if dtype == torch.float64 else torch.float32

    def tile_rows(self, n_out: int, n_in: int, window: Window, groups: int) -> int:
        return 128

    def conv(self, operands: Convolve) -> Step:
        o = operands
        around: dict[str, Any] = {"prologue": o.prologue, "epilogue": o.epilogue}
        if not o.groups:
            return _later(reference.dwconv)(o.x, o.weight, o.y, o.segments, o.window, **around)
        return _later(reference.conv)(
            o.x, o.weight, o.y, o.segments, o.window, **around, groups=o.groups
        )


def _launched(function: Callable[P, Launch]) -> Callable[P, Step]:
    """Return the launch that one of the ``..._launch`` functions makes, ready to run."""

    def prepared(*args: P.args, **kwargs: P.kwargs) -> Step:
        return function(*args, **kwargs).run

    return prepared


class TritonKernels:
    """The Triton kernels, on an NVIDIA GPU of compute capability 8.0 or later, or in Triton's
    interpreter.

    Args:
        device: of all tensors.
        dtype: of stored activations and weights.
        precision: of float32 products; None does as PyTorch's own convolutions do.
        tuned: a file of tuned tiles (`kernels.tuning`); None takes the one that the environment
            names, if any.

    Raises:
        UserError: there is no Triton, a device that the kernels cannot run on, or a file that is
            none of tiles.
    """

    name = "triton"
    sums = torch.float32

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        precision: Literal["ieee", "tf32"] | None = None,
        tuned: Path | None = None,
    ) -> None:
        from pruneopt.kernels import convolution, elementwise, head, launch, statistics, tuning

        self.dtype = dtype
        self._architecture = launch.architecture(device)
        own: Literal["ieee", "tf32"] = (
            "tf32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "ieee"
        )
        self._precision = precision or own
        self._convolution, self._problem = convolution, tuning.Problem
        self._tiles = tuning.tuned_tiles(device, tuned)
        self.finalize = _launched(statistics.finalize_launch)
        self.add_act = _launched(elementwise.add_act_launch)
        self.mean_pixels = _launched(head.mean_pixels_launch)

    def _tile(self, n_out: int, n_in: int, window: Window, groups: int) -> Tile:
        problem = self._problem.of(n_out, n_in, window, groups, self.dtype, self._precision)
        return self._tiles.get(problem) or problem.default(self._architecture)

    def tile_rows(self, n_out: int, n_in: int, window: Window, groups: int) -> int:
        return self._tile(n_out, n_in, window, groups).rows

    def conv(self, operands: Convolve) -> Step:
        o = operands
        tile = self._tile(
            o.segments.largest("n_out"), o.segments.largest("n_in"), o.window, o.groups
        )
        around: dict[str, Any] = {"prologue": o.prologue, "epilogue": o.epilogue, "tile": tile}
        if not o.groups:
            return self._convolution.dwconv_launch(
                o.x, o.weight, o.y, o.segments, o.window, **around
            ).run
        around |= {"groups": o.groups, "precision": self._precision}
        return self._convolution.conv_launch(o.x, o.weight, o.y, o.segments, o.window, **around).run
