"""Targets that this machine offers in the place of one that it does not have."""

from __future__ import annotations

from pruneopt.passes.targets.ort_targets import OrtCPU, OrtCUDA, OrtTensorRT
from pruneopt.passes.targets.target import Target

__all__ = ["or_processor"]


def or_processor(target: Target) -> tuple[Target, str | None]:
    """Return what runs in the place of an onnxruntime target on a GPU, and a line that says so.

    TensorRT falls back on CUDA, both on the processor. Other targets come back as they are.
    """
    reason = target.unavailable()
    if reason is None or not isinstance(target, OrtCUDA | OrtTensorRT):
        return target, None
    other: Target = OrtCPU(batch=target.batch, dtype=target.dtype)
    if isinstance(target, OrtTensorRT):
        cuda = OrtCUDA(batch=target.batch, dtype=target.dtype, device=target.device)
        other = cuda if cuda.unavailable() is None else other
    return other, f"{target} is not available: {reason}; {other} takes its place"
