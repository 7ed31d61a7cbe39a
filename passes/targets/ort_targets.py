"""onnxruntime as a target: the ONNX file that our export writes, under an execution provider.

The symbolic batch of the file is fixed to the target's. A pool of threads stops spinning when a run
is over: sessions that are measured side by side must not take each other's cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.export.export import export_onnx
from pruneopt.passes.options.configured import option
from pruneopt.passes.targets.int8 import quantise_onnx
from pruneopt.passes.targets.ort_providers import (
    CPU,
    CUDA,
    SILENT,
    TENSORRT,
    preload_libraries,
    provider_trouble,
    quiet_onnxruntime,
)
from pruneopt.passes.targets.session import FLOATS, Session, fixed_inputs
from pruneopt.passes.targets.target import Calibration, Target
from pruneopt.passes.timing.clock import Clock
from pruneopt.passes.timing.cuda_clock import ColdWallClock

if TYPE_CHECKING:
    from pruneopt.ir.graph import Graph

__all__ = ["OrtCPU", "OrtCUDA", "OrtSession", "OrtTarget", "OrtTensorRT"]

BATCH = "batch"
"""What the export calls the symbolic batch."""


class OrtSession(Session):
    """An ONNX file under an execution provider."""

    def __init__(self, session: Any, inputs: Sequence[np.ndarray]) -> None:
        """``session`` is onnxruntime's; ``inputs`` those of one run, in the file's order."""
        self.session = session
        self._feed = {item.name: x for item, x in zip(session.get_inputs(), inputs, strict=True)}
        # Some errors of a provider come with the first run only.
        _checked(lambda: session.run(None, self._feed))

    def run(self) -> None:
        self.session.run(None, self._feed)

    def outputs(self) -> list[np.ndarray]:
        found = [np.asarray(item) for item in self.session.run(None, self._feed)]
        return [item.astype(np.float32) if item.dtype == np.float16 else item for item in found]

    def close(self) -> None:
        self.session, self._feed = None, {}


class BoundSession(OrtSession):
    """A file on a GPU, with inputs and outputs that stay there."""

    def __init__(self, session: Any, inputs: Sequence[np.ndarray], device: int) -> None:
        super().__init__(session, inputs)
        import onnxruntime

        self._device = torch.device("cuda", device)
        self._binding = session.io_binding()
        for name, x in self._feed.items():
            self._binding.bind_ortvalue_input(
                name, onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", device)
            )
        for item in session.get_outputs():
            self._binding.bind_output(item.name, "cuda", device)

    def run(self) -> None:
        self.session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def clock(self) -> Clock:
        """Return the clock: cold caches need PyTorch's CUDA, without it they stay warm."""
        return ColdWallClock(self._device) if torch.cuda.is_available() else super().clock()

    def close(self) -> None:
        super().close()
        self._binding = None


@dataclass(frozen=True)
class OrtTarget(Target):
    """onnxruntime under one of its execution providers."""

    provider: ClassVar[str]

    dtype: Literal["fp32", "fp16", "int8"] = option(
        "fp32", "precision; int8 is quantised with calibration inputs"
    )

    def unavailable(self) -> str | None:
        return provider_trouble(self.provider, self.device_index)

    @property
    def device_index(self) -> int:
        """Which GPU."""
        return 0

    def runtime(self) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}{self._place()}"

    def providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """Return what `onnxruntime.InferenceSession` takes as providers, the processor last."""
        return [CPU]

    def session_options(self) -> Any:
        """Return the `onnxruntime.SessionOptions` of this target, with every optimisation."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        options.inter_op_num_threads = 1
        # Threads that spin between runs would take time from the session that is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_free_dimension_override_by_name(BATCH, self.batch)
        return options

    def write(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        path: str | os.PathLike[str],
        *,
        calibration: Calibration | None = None,
    ) -> None:
        """Make the ONNX file that this target runs: the network in its precision.

        Raises:
            UserError: an op that ONNX cannot express, or int8 without calibration inputs.
        """
        if self.dtype == "int8" and not calibration:
            raise UserError(
                f"{self} needs calibration inputs, which the ranges of activations are taken from"
            )
        dtype = FLOATS.get(self.dtype, torch.float32)
        module = build_module(graph, weights).to(dtype)
        inputs = [
            x.to(dtype) if x.is_floating_point() else x for x in fixed_inputs(graph, self.batch)
        ]
        if self.dtype != "int8" or not calibration:
            export_onnx(module, inputs, path, dynamic_batch=graph.dynamic_batch)
            return
        with tempfile.TemporaryDirectory(prefix="pruneopt-") as folder:
            # onnxruntime quantises files.
            plain = Path(folder) / "model.onnx"
            export_onnx(module, inputs, plain, dynamic_batch=graph.dynamic_batch)
            quantise_onnx(plain, path, calibration, symmetric=self.provider == TENSORRT)

    def load(
        self, graph: Graph, weights: Mapping[str, Tensor], *, calibration: Calibration | None = None
    ) -> OrtSession:
        self.need()
        with tempfile.TemporaryDirectory(prefix="pruneopt-") as folder:
            path = Path(folder) / "model.onnx"
            self.write(graph, weights, path, calibration=calibration)
            return self.open(path, [_array(x, self.dtype) for x in fixed_inputs(graph, self.batch)])

    def open(self, path: str | os.PathLike[str], inputs: Sequence[np.ndarray]) -> OrtSession:
        """Return a file that lies there, ready to run on inputs of the target's batch.

        Raises:
            UserError: onnxruntime cannot load the file, or the provider does not take part.
        """
        import onnxruntime

        with quiet_onnxruntime():
            if self.provider != CPU:
                preload_libraries(onnxruntime)
            session = _checked(
                lambda: onnxruntime.InferenceSession(
                    os.fspath(path),
                    self.session_options(),
                    providers=self.providers(),
                    enable_fallback=0,
                )
            )
        if self.provider not in session.get_providers():
            raise UserError(
                f"onnxruntime did not take the provider of {self}: `pruneopt targets` says why"
            )
        return self._session(session, inputs)

    def _session(self, session: Any, inputs: Sequence[np.ndarray]) -> OrtSession:
        return OrtSession(session, inputs)

    def _place(self) -> str:
        """Return the device, behind the version of the runtime."""
        return ""


@dataclass(frozen=True)
class OrtCPU(OrtTarget):
    """onnxruntime on the processor."""

    name: ClassVar[str] = "ort-cpu"
    summary: ClassVar[str] = "onnxruntime on the processor"
    provider: ClassVar[str] = CPU

    threads: int = option(1, "threads within an operation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("threads", self.threads)

    def session_options(self) -> Any:
        options = super().session_options()
        options.intra_op_num_threads = self.threads
        return options


@dataclass(frozen=True)
class _OrtGPU(OrtTarget):
    """onnxruntime on an NVIDIA GPU."""

    device: int = option(0, "which GPU")

    @property
    def device_index(self) -> int:
        return self.device

    def _session(self, session: Any, inputs: Sequence[np.ndarray]) -> OrtSession:
        return BoundSession(session, inputs, self.device)

    def _cuda(self, **more: str) -> tuple[str, dict[str, str]]:
        return (CUDA, {"device_id": str(self.device), **more})

    def _place(self) -> str:
        usable = torch.cuda.is_available() and self.device < torch.cuda.device_count()
        return f" on {torch.cuda.get_device_name(self.device)}" if usable else ""


@dataclass(frozen=True)
class OrtCUDA(_OrtGPU):
    """onnxruntime's CUDA provider."""

    name: ClassVar[str] = "ort-cuda"
    summary: ClassVar[str] = "onnxruntime on an NVIDIA GPU"
    provider: ClassVar[str] = CUDA

    format: Literal["contiguous", "channels-last"] = option(
        "contiguous", "memory format of images inside the runtime"
    )

    def providers(self) -> list[str | tuple[str, dict[str, str]]]:
        return [self._cuda(prefer_nhwc=str(int(self.format == "channels-last"))), CPU]


@dataclass(frozen=True)
class OrtTensorRT(_OrtGPU):
    """onnxruntime's TensorRT provider; what TensorRT does not take runs on CUDA."""

    name: ClassVar[str] = "ort-tensorrt"
    summary: ClassVar[str] = "TensorRT by onnxruntime, on an NVIDIA GPU"
    provider: ClassVar[str] = TENSORRT

    def providers(self) -> list[str | tuple[str, dict[str, str]]]:
        options = {"device_id": str(self.device)}
        if self.dtype != "fp32":
            options[f"trt_{self.dtype}_enable"] = "1"
        # What TensorRT refuses would run on the processor, if CUDA did not stand between.
        return [(TENSORRT, options), self._cuda(), CPU]


def _array(x: Tensor, dtype: str) -> np.ndarray:
    array: np.ndarray = (
        x.to(FLOATS.get(dtype, torch.float32)) if x.is_floating_point() else x
    ).numpy()
    return array


def _checked(call: Any) -> Any:
    """Return what a call of onnxruntime gives; its errors as a sentence."""
    try:
        return call()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"onnxruntime cannot run this network: {reason[:300]}") from error
