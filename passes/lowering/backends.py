"""What runs a lowered graph's fused operations: the Triton kernels, or the same in plain PyTorch."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from pruneopt.kernels import reference
from pruneopt.kernels.operands import Affine, Output, Partials, Prologue
from pruneopt.kernels.segments import Segments
from pruneopt.kernels.window import Window

__all__ = ["Backend", "ReferenceKernels", "TritonKernels"]


class Backend(Protocol):
    """The kernels; arguments are those of `pruneopt.kernels`.

    Attributes:
        name: for reports.
        dtype: of stored activations and weights.
        sums: of statistics, scales and shifts.
    """

    name: str
    dtype: torch.dtype
    sums: torch.dtype

    def tile_rows(self, n_out: int, n_in: int, groups: int) -> int:
        """Rows of a tile of `conv`, or of `dwconv` for ``groups=0``: partial statistics are laid out by them."""

    def conv(
        self,
        x: Tensor,
        weight: Tensor,
        y: Tensor,
        segments: Segments,
        window: Window,
        prologue: Prologue,
        epilogue: Partials | Output,
        groups: int,
    ) -> None:
        """A convolution; depthwise for ``groups=0``."""

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
    ) -> None: ...

    def add_act(self, x: Tensor, segments: Segments, pixels: int, prologue: Prologue) -> None: ...

    def mean_pixels(
        self, x: Tensor, y: Tensor, segments: Segments, pixels: int, *, prologue: Prologue | None = None
    ) -> None: ...

    def pack(self, weight: Tensor, keep_out: Tensor, keep_in: Tensor, packed: Tensor) -> None: ...


class ReferenceKernels:
    """`kernels.reference`: on any device, in float32 or float64."""

    name = "reference"
    finalize = staticmethod(reference.finalize)
    add_act = staticmethod(reference.add_act)
    mean_pixels = staticmethod(reference.mean_pixels)
    pack = staticmethod(reference.pack)

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.sums = torch.float64 if dtype == torch.float64 else torch.float32

    def tile_rows(self, n_out: int, n_in: int, groups: int) -> int:
        return 128

    def conv(
        self,
        x: Tensor,
        weight: Tensor,
        y: Tensor,
        segments: Segments,
        window: Window,
        prologue: Prologue,
        epilogue: Partials | Output,
        groups: int,
    ) -> None:
        if groups:
            reference.conv(x, weight, y, segments, window, prologue=prologue, epilogue=epilogue, groups=groups)
        else:
            reference.dwconv(x, weight, y, segments, window, prologue=prologue, epilogue=epilogue)


class TritonKernels:
    """The Triton kernels, on an NVIDIA GPU of compute capability 8.0 or later, or in Triton's interpreter.

    Args:
        device: of all tensors.
        dtype: of stored activations and weights.
        precision: of float32 products; None does as PyTorch's own convolutions do.

    Raises:
        UserError: there is no Triton, or a device that the kernels cannot run on.
    """

    name = "triton"
    sums = torch.float32

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        precision: Literal["ieee", "tf32"] | None = None,
    ) -> None:
        # Triton is imported where kernels run, and nowhere else.
        from pruneopt.kernels import convolution, elementwise, head, launch, statistics, tiles

        self.dtype = dtype
        self._architecture = launch.architecture(device)
        own: Literal["ieee", "tf32"] = "tf32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "ieee"
        self._precision = precision or own
        self._convolution, self._tiles = convolution, tiles
        self.finalize = statistics.finalize
        self.add_act = elementwise.add_act
        self.mean_pixels = head.mean_pixels
        self.pack = elementwise.pack

    def tile_rows(self, n_out: int, n_in: int, groups: int) -> int:
        if not groups:
            return self._tiles.depthwise_tile(n_out, self._architecture).rows
        return self._tiles.conv_tile(n_out, n_in, self.dtype, self._architecture, self._precision, groups).rows

    def conv(
        self,
        x: Tensor,
        weight: Tensor,
        y: Tensor,
        segments: Segments,
        window: Window,
        prologue: Prologue,
        epilogue: Partials | Output,
        groups: int,
    ) -> None:
        if groups:
            self._convolution.conv(
                x,
                weight,
                y,
                segments,
                window,
                prologue=prologue,
                epilogue=epilogue,
                groups=groups,
                precision=self._precision,
            )
        else:
            self._convolution.dwconv(x, weight, y, segments, window, prologue=prologue, epilogue=epilogue)
