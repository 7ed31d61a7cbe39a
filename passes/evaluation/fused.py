"""Batch-norm statistics and scores on the fused kernels where a device has them; elsewhere as PyTorch computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pruneopt.errors import UserError
from pruneopt.ir.execute import Interpreter, last_uses
from pruneopt.ir.graph import Graph, Value
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.kernels.segments import padded
from pruneopt.passes.evaluation.merged import merge
from pruneopt.passes.evaluation.settings import Settings
from pruneopt.passes.evaluation.statistics import Statistics, statistic_norms, statistics_together
from pruneopt.passes.lowering.backends import Backend, ReferenceKernels, TritonKernels
from pruneopt.passes.lowering.evaluation import lower_evaluation
from pruneopt.passes.lowering.run_evaluation import run_evaluation
from pruneopt.passes.lowering.run_statistics import BatchStatistics, run_statistics
from pruneopt.passes.lowering.statistics import LoweredStatistics, lower_statistics

__all__ = ["Taken", "choose", "peak_bytes"]

HOST_MEMORY = 1 << 30
"""Bytes for the activations of one pass where the device does not tell what is free."""


@dataclass(frozen=True)
class Taken:
    """How networks are run.

    Attributes:
        backend: the kernels; None takes PyTorch's way.
        why: why there are no kernels where one might expect them; empty where nothing is to be said.
        precision: what PyTorch's way computes convolutions and products in; None leaves it as the weights have it.
    """

    backend: Backend | None = None
    why: str = ""
    precision: torch.dtype | None = None

    def __str__(self) -> str:
        if self.backend is not None:
            return f"fused kernels ({self.backend.name}) in {_name(self.backend.dtype)}"
        found = [f"no fused kernels: {self.why}"] if self.why else []
        return ", ".join(found if self.precision is None else [*found, f"in {_name(self.precision)}"])

    def statistics(
        self,
        graphs: Sequence[Graph],
        weights: Sequence[Mapping[str, Tensor]],
        batches: Iterable[Tensor],
        averaging: Averaging,
        *,
        whole: bool = False,
        into: Sequence[Statistics] | None = None,
    ) -> list[dict[str, Tensor]]:
        """`statistics_together`, by the kernels for networks whose batch norms are all over images."""
        lowered = [] if self.backend is None else [_lowered(graph) for graph in graphs]
        known = [item for item in lowered if item is not None]
        if self.backend is None or len(known) < len(graphs):
            parts = list(batches)
            with _autocast(self.precision, parts[0].device if parts else None):
                return statistics_together(graphs, weights, parts, averaging, whole=whole, into=into)
        into = [Statistics() for _ in graphs] if into is None else into
        for part in _passes(known, list(batches), self.backend):
            for item, found in zip(into, run_statistics(known, weights, part, self.backend), strict=True):
                _add(item, found)
        return [
            item.running(*own, averaging) for item, own in zip(into, zip(graphs, weights, strict=True), strict=True)
        ]

    def networks(
        self, folded: Sequence[Graph], weights: Sequence[Mapping[str, Tensor]]
    ) -> Callable[[Tensor], Sequence[Any]]:
        """Networks in evaluation mode, from graphs without batch norms: the outputs of each for the same inputs."""
        backend = self.backend
        if backend is None or len(folded[0].inputs) != 1 or folded[0].inputs[0].type.rank != 4:
            return self._interpreted(folded, weights)
        lowered = [lower_evaluation(graph) for graph in folded]
        return lambda inputs: run_evaluation(lowered, weights, inputs, backend)

    def _interpreted(
        self, folded: Sequence[Graph], weights: Sequence[Mapping[str, Tensor]]
    ) -> Callable[[Tensor], Sequence[Any]]:
        merged = merge(folded, weights)
        interpreter = Interpreter(merged.graph)

        def run(inputs: Tensor) -> Sequence[Any]:
            with _autocast(self.precision, inputs.device):
                outputs: Sequence[Any] = interpreter.run(merged.weights, inputs)
            return outputs if self.precision is None else tree_map_only(Tensor, _widened, outputs)

        return run


def choose(settings: Settings) -> Taken:
    """How networks are run with these settings."""
    precision = torch.bfloat16 if settings.precision == "bf16" else None
    plain = Taken(precision=precision)
    if settings.kernels == "off":
        return plain
    if settings.kernels == "auto" and torch.device(settings.device).type != "cuda":
        return plain
    if settings.averaging.kind == "population" or settings.whole:
        what = "whole" if settings.whole else f"statistics={settings.averaging.kind}"
        if settings.kernels == "reference":
            raise UserError(f"kernels=reference cannot take {what}: use kernels=off")
        return replace(plain, why=f"they do not take {what}")
    if settings.kernels == "reference":
        if precision is not None:
            raise UserError(f"kernels=reference computes in float32: leave precision={settings.precision} out")
        return Taken(ReferenceKernels())
    try:
        return Taken(TritonKernels(torch.device(settings.device), precision or torch.float32))
    except UserError as reason:
        return replace(plain, why=str(reason))


def _autocast(precision: torch.dtype | None, device: torch.device | None) -> AbstractContextManager[object]:
    return nullcontext() if precision is None or device is None else torch.autocast(device.type, precision)


def _widened(tensor: Tensor) -> Tensor:
    """Metrics expect single precision."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _add(into: Statistics, batches: Sequence[Sequence[BatchStatistics]]) -> None:
    """What the kernels found for one candidate, with unbiased variances."""
    for found in batches:
        for item in found:
            if item.count < 2:
                raise UserError(
                    f"batch-norm statistics cannot be taken of a single value per channel, at {item.name}: use larger "
                    "batches"
                )
            into.add(item.name, item.mean, item.variance * (item.count / (item.count - 1)), item.count)
        into.batches += 1


def _lowered(graph: Graph) -> LoweredStatistics | None:
    """The lowered pass of a network; None where a batch norm is not among what it measures."""
    norms = statistic_norms(graph)
    try:
        lowered = lower_statistics(graph)
    except UserError:
        return None
    return lowered if len(lowered.norms) == len(norms) and len(graph.inputs) == 1 else None


def _passes(
    lowered: Sequence[LoweredStatistics], batches: Sequence[Tensor], backend: Backend
) -> Iterable[Sequence[Tensor]]:
    """The batches, as many at a time as the device has memory for with all candidates."""
    if not batches:
        return
    device = batches[0].device
    memory = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else HOST_MEMORY
    image = sum(peak_bytes(item, backend.dtype.itemsize) for item in lowered)
    each = image * max(len(batch) for batch in batches)
    count = max(1, min(len(batches), memory // max(1, each)))
    for first in range(0, len(batches), count):
        yield batches[first : first + count]


def peak_bytes(lowered: LoweredStatistics, itemsize: int) -> int:
    """The most bytes that the activations of one image take at one time."""
    graph = lowered.graph
    dead = last_uses(graph)
    now = peak = sum(_bytes(value, itemsize) for value in graph.inputs)
    for op in graph.ops:
        now += sum(_bytes(value, itemsize) for value in op.results if value.users)
        peak = max(peak, now)
        now -= sum(_bytes(value, itemsize) for value in dead.get(op, ()) if value.users)
    return peak


def _bytes(value: Value, itemsize: int) -> int:
    dims = value.type.shape(1)
    if len(dims) < 2:
        return 0
    channels = padded(dims[1]) if len(dims) == 4 else dims[1]
    return itemsize * channels * torch.Size(dims[2:]).numel()
