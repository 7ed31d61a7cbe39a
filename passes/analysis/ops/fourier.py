"""Fourier transforms and complex numbers."""

from __future__ import annotations

from collections.abc import Mapping

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.labels import Labels, numbers
from pruneopt.passes.analysis.channels.planes import varying
from pruneopt.passes.analysis.ops.definition import OpDefinition

__all__ = ["DEFINITIONS"]


def fourier(labels: Labels, op: Op) -> None:
    """Freeze channels that are transformed along; transforms over other axes leave them alone."""
    x = labels.operand(op, 0)
    axes = {dim % x.type.rank for dim in numbers(op, "dim")}
    for plane in labels.of(x):
        if axes & set(varying(plane)):
            labels.freeze(plane, f"transformed along channels by {op}")
    labels.set(op.result, [plane for plane in labels.of(x) if not axes & set(varying(plane))])


def pairs(labels: Labels, op: Op) -> None:
    """Pass labels of complex numbers to pairs along a last axis, and back; weights keep all that
    they hold."""
    x = op.value(0)
    planes = [] if x is None else list(labels.of(x))
    if op.role == "view_as_real":
        labels.set(op.result, [plane.unsqueeze(-1) for plane in planes])
        return
    inside = [plane for plane in planes if plane.shape[-1] > 1]
    for plane in inside:
        labels.freeze(plane, f"real and imaginary parts, {op}")
    labels.set(op.result, [plane.squeeze(-1) for plane in planes if plane.shape[-1] == 1])


DEFINITIONS: Mapping[str, OpDefinition] = {
    **dict.fromkeys(
        (
            *("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft"),
            *("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2"),
        ),
        OpDefinition(rule=fourier),
    ),
    **dict.fromkeys(("view_as_real", "view_as_complex"), OpDefinition(rule=pairs)),
}
