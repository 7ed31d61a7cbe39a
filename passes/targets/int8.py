"""8-bit integers by onnxruntime's static quantisation.

Weights have a scale per output channel; the ranges of activations come from calibration.

Activations are unsigned and weights signed with 7 bits, so that products cannot overflow the 16-bit
sums of processors without VNNI (onnxruntime, *Quantize ONNX models*); TensorRT wants both signed
and symmetric.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.files import atomic_path
from pruneopt.ir.compare import array_of

__all__ = ["quantise_onnx"]


class _Reader:
    """Hands calibration inputs to onnxruntime one call at a time; None is the end."""

    def __init__(self, names: Sequence[str], calls: Sequence[Sequence[Tensor]]) -> None:
        self._calls: Iterator[dict[str, np.ndarray]] = (
            {name: array_of(x) for name, x in zip(names, call, strict=True)} for call in calls
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._calls, None)


def quantise_onnx(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    calibration: Sequence[Sequence[Tensor]],
    *,
    symmetric: bool = False,
) -> None:
    """Write the quantised form of an ONNX file, with weights below 2 GB, checked by `onnx.checker`.

    Args:
        source: a file in single precision.
        calibration: inputs of several calls; their smallest and largest activations are the ranges.
        symmetric: signed activations around zero and weights of 8 bits, as TensorRT takes them.

    Raises:
        UserError: inputs that are not those of the file, or a network that onnxruntime cannot
            quantise.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [item.name for item in onnx.load(source, load_external_data=False).graph.input]
    if not calibration or any(len(call) != len(names) for call in calibration):
        raise UserError(
            f"{os.fspath(source)} takes {len(names)} inputs: give calibration inputs of that many"
        )
    with (
        tempfile.TemporaryDirectory(prefix="pruneopt-") as folder,
        _silent(),
        atomic_path(Path(path)) as result,
    ):
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(Path(source), prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                result,
                _Reader(names, calibration),
                per_channel=True,
                reduce_range=not symmetric,
                activation_type=quantization.QuantType.QInt8
                if symmetric
                else quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"ActivationSymmetric": symmetric},
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"onnxruntime cannot quantise this network: {reason[:300]}") from error
        onnx.checker.check_model(os.fspath(result))


@contextmanager
def _silent() -> Iterator[None]:
    """Without the advice that onnxruntime's quantiser logs and prints."""
    before: Any = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
