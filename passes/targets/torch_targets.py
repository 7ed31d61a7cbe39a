"""PyTorch as a target: the generated module, on a processor or a GPU, eager or compiled.

Batch norms are folded into the layers before them, as before any deployment, and the module runs in
inference mode.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.compare import tensor_leaves
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.options.configured import option
from pruneopt.passes.targets.session import FLOATS, Session, fixed_inputs
from pruneopt.passes.targets.target import Calibration, Target
from pruneopt.passes.timing.clock import Clock
from pruneopt.passes.timing.cuda_clock import CudaClock

if TYPE_CHECKING:
    from pruneopt.ir.graph import Graph

__all__ = ["TorchCPU", "TorchCUDA", "TorchSession", "deployed_module"]

WARM_UP = 3
"""Runs on a side stream before a CUDA graph is captured, as PyTorch asks for."""


class TorchSession(Session):
    """A module on a device, with pinned threads while it runs."""

    def __init__(
        self, module: nn.Module, inputs: list[Tensor], threads: int | None, compiled: bool
    ) -> None:
        self.module, self.inputs, self._threads = module, inputs, threads
        self._call: Callable[..., Any] = (
            torch.compile(module, dynamic=False) if compiled else module
        )
        try:
            # what cannot run is said now, and compilation is no part of the first run
            self.outputs()
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{type(module).__name__} does not run in this precision and mode: {reason}"
            ) from error

    def run(self) -> None:
        self._forward()

    def outputs(self) -> list[np.ndarray]:
        return _arrays(self._forward())

    def close(self) -> None:
        self._call, self.inputs = _closed, []

    def _forward(self) -> Any:
        with _pinned(self._threads), torch.inference_mode():
            return self._call(*self.inputs)


class CudaSession(TorchSession):
    """The same on a GPU, where a run is over when the device says so."""

    def run(self) -> None:
        self.step()
        torch.cuda.synchronize(self.inputs[0].device)

    def step(self) -> None:
        self._forward()

    def clock(self) -> Clock:
        return CudaClock(self.inputs[0].device)


class GraphSession(CudaSession):
    """The launches of one run as a CUDA graph, which replays them without Python."""

    def __init__(self, module: nn.Module, inputs: list[Tensor]) -> None:
        super().__init__(module, inputs, None, False)
        stream = torch.cuda.Stream(inputs[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self._forward()

        def replay(*inputs: Tensor) -> Any:
            graph.replay()
            return results

        self._call = replay


@dataclass(frozen=True)
class TorchCPU(Target):
    """PyTorch on the processor."""

    name: ClassVar[str] = "torch-cpu"
    summary: ClassVar[str] = "PyTorch on the processor"

    threads: int = option(1, "threads within an operation")
    dtype: Literal["fp32", "fp16", "bf16"] = option("fp32", "precision of weights and inputs")
    format: Literal["contiguous", "channels-last"] = option(
        "contiguous", "memory format of images and of their weights"
    )
    mode: Literal["eager", "compiled"] = option("eager", "compiled: by torch.compile")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("threads", self.threads)

    def unavailable(self) -> str | None:
        return None if self.mode == "eager" else _no_compiler()

    def runtime(self) -> str:
        return f"torch {torch.__version__}"

    def load(
        self, graph: Graph, weights: Mapping[str, Tensor], *, calibration: Calibration | None = None
    ) -> Session:
        self.need()
        module, inputs = deployed_module(
            graph, weights, self.batch, self.dtype, self.format, torch.device("cpu")
        )
        return TorchSession(module, inputs, self.threads, self.mode == "compiled")


@dataclass(frozen=True)
class TorchCUDA(Target):
    """PyTorch on an NVIDIA GPU."""

    name: ClassVar[str] = "torch-cuda"
    summary: ClassVar[str] = "PyTorch on an NVIDIA GPU"

    dtype: Literal["fp32", "fp16", "bf16"] = option("fp32", "precision of weights and inputs")
    format: Literal["contiguous", "channels-last"] = option(
        "contiguous", "memory format of images and of their weights"
    )
    mode: Literal["eager", "compiled", "graph"] = option(
        "eager", "compiled: by torch.compile; graph: launches recorded as a CUDA graph"
    )
    device: int = option(0, "which GPU")

    def unavailable(self) -> str | None:
        if not torch.cuda.is_available():
            built = (
                ""
                if torch.version.cuda
                else f", and torch {torch.__version__} is built without CUDA"
            )
            return f"this machine has no CUDA device that PyTorch can use{built}"
        if not 0 <= self.device < torch.cuda.device_count():
            return (
                f"this machine has {torch.cuda.device_count()} CUDA devices, and "
                f"device={self.device} is none of them"
            )
        return None

    def runtime(self) -> str:
        return (
            f"torch {torch.__version__} with CUDA {torch.version.cuda} on "
            f"{torch.cuda.get_device_name(self.device)}"
        )

    def load(
        self, graph: Graph, weights: Mapping[str, Tensor], *, calibration: Calibration | None = None
    ) -> Session:
        self.need()
        place = torch.device("cuda", self.device)
        module, inputs = deployed_module(graph, weights, self.batch, self.dtype, self.format, place)
        with torch.cuda.device(place):
            if self.mode == "graph":
                return GraphSession(module, inputs)
            return CudaSession(module, inputs, None, self.mode == "compiled")


def deployed_module(
    graph: Graph,
    weights: Mapping[str, Tensor],
    batch: int,
    dtype: str,
    format: str,
    device: torch.device,
) -> tuple[nn.Module, list[Tensor]]:
    """Return module and inputs in a precision and format on a device, batch norms folded."""
    folded = fold_batch_norms(graph)
    kept = {name: tensor.detach() for name, tensor in weights.items()}
    with torch.no_grad():
        module = build_module(folded.graph, folded.weights(kept)).to(device, FLOATS[dtype])
    inputs = [
        x.to(device, FLOATS[dtype]) if x.is_floating_point() else x.to(device)
        for x in fixed_inputs(graph, batch)
    ]
    if format == "channels-last":
        module = module.to(memory_format=torch.channels_last)
        inputs = [
            x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs
        ]
    return module.requires_grad_(False), inputs


def _arrays(outputs: Any) -> list[np.ndarray]:
    found = [leaf.detach().cpu() for leaf in tensor_leaves(outputs)]
    return [(leaf.float() if leaf.is_floating_point() else leaf).numpy().copy() for leaf in found]


@contextmanager
def _pinned(threads: int | None) -> Iterator[None]:
    """Set a number of threads for a block; torch's own afterwards."""
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _no_compiler() -> str | None:
    """Return why torch.compile cannot make code for the processor; None where it can."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        return f"torch.compile needs a C++ compiler, and {name} is not installed"
    return None


def _closed(*inputs: Tensor) -> Any:
    raise UserError("this session was closed")
