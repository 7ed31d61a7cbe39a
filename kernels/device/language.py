"""Triton, or one sentence that says it is missing."""

from __future__ import annotations

from pruneopt.errors import UserError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise UserError(
        "the GPU kernels need Triton, which cannot be imported here: it comes with PyTorch for "
        "Linux and NVIDIA GPUs, "
        "or by `pip install triton`"
    ) from error

__all__ = ["tl", "triton"]
