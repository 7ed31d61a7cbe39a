"""One launch of a kernel as a value: what runs on a GPU is also what the compile check builds
without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.device.language import triton

__all__ = ["OLDEST_ARCHITECTURE", "Launch", "architecture", "check_tensors"]

OLDEST_ARCHITECTURE = 80
"""The first compute capability with bfloat16 matrix products and asynchronous copies, times ten."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its grid, arguments and compile-time constants.

    Attributes:
        kernel: a function under `triton.jit`.
        grid: programs along three axes.
        arguments: tensors, numbers, and None for what is absent (a compile-time fact, too).
        constants: the compile-time parameters.
        warps: warps of a program.
        stages: depth of the pipeline of loads.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Tensor | int | float | None]
    constants: Mapping[str, Any]
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's options; fused multiply-add is named because Triton's default for it
        changes."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def run(self) -> None:
        """Start the kernel on the current stream of its tensors' device.

        Raises:
            UserError: a device that cannot run it, or a grid that is too large.
        """
        if max(self.grid[1:]) > 65535:
            raise UserError(
                f"a grid of {self.grid} programs is too large: use fewer segments per launch"
            )
        device = next(
            value.device for value in self.arguments.values() if isinstance(value, Tensor)
        )
        if not interpreted(self.kernel):
            _check_device(device)
            with torch.cuda.device(device):
                self._start()
        elif device.type != "cpu":
            raise UserError(
                f"under TRITON_INTERPRET=1 the kernels take tensors on the CPU, not on {device}"
            )
        else:
            self._start()

    def _start(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


def interpreted(kernel: Any) -> bool:
    """Tell whether a kernel is interpreted: `TRITON_INTERPRET=1` decides at the first import."""
    return not isinstance(kernel, triton.JITFunction)


@triton.jit
def _nothing() -> None:
    pass


def architecture(device: torch.device) -> int:
    """Compute capability times ten; 0 in the interpreter.

    Raises:
        UserError: a device that the kernels cannot run on.
    """
    if interpreted(_nothing):
        return 0
    _check_device(device)
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _check_device(device: torch.device) -> None:
    if device.type != "cuda" or torch.version.cuda is None:
        raise UserError(
            f"the GPU kernels need an NVIDIA GPU, and these tensors are on {device}: move them "
            "there, or use "
            "pruneopt.kernels.reference, which computes the same anywhere"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < OLDEST_ARCHITECTURE:
        raise UserError(
            f"the GPU kernels need compute capability 8.0 or later, and {device} has "
            f"{major}.{minor}: use "
            "pruneopt.kernels.reference"
        )


def check_tensors(
    device: torch.device, tensors: Mapping[str, tuple[Tensor | None, tuple[torch.dtype, ...]]]
) -> None:
    """Operands are on the device of the segment table, contiguous, aligned, and of a dtype that is
    allowed.

    Raises:
        UserError: the first that is not.
    """
    for name, (tensor, dtypes) in tensors.items():
        if tensor is None:
            continue
        if tensor.device != device:
            raise UserError(
                f"{name} is on {tensor.device} but the segment table on {device}: move one of them"
            )
        if tensor.dtype not in dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise UserError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}, and must be {wanted}"
            )
        if not tensor.is_contiguous():
            raise UserError(
                f"{name} of shape {list(tensor.shape)} is not contiguous: call .contiguous() first"
            )
        if tensor.device.type != "meta" and tensor.data_ptr() % 16:
            raise UserError(
                f"{name} does not begin at a multiple of 16 bytes: slice its buffer at one, or "
                "clone it"
            )
