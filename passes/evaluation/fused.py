"""Batch-norm statistics and scores on the fused kernels where a device has them; elsewhere as PyTorch computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.execute import Interpreter, last_uses
from pruneopt.ir.graph import Graph, Value
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.kernels.segments import padded
from pruneopt.passes.evaluation.settings import Settings
from pruneopt.passes.evaluation.statistics import Statistics, fresh_statistics, statistic_norms
from pruneopt.passes.lowering.backends import Backend, ReferenceKernels, TritonKernels
from pruneopt.passes.lowering.evaluation import lower_evaluation
from pruneopt.passes.lowering.run_evaluation import run_evaluation
from pruneopt.passes.lowering.run_statistics import run_statistics
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
    """

    backend: Backend | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.backend is None:
            return f"no fused kernels: {self.why}" if self.why else ""
        return f"fused kernels ({self.backend.name}) in {str(self.backend.dtype).removeprefix('torch.')}"

    def statistics(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        batches: Iterable[Tensor],
        averaging: Averaging,
        *,
        whole: bool = False,
        into: Statistics | None = None,
    ) -> dict[str, Tensor]:
        """`fresh_statistics`, by the kernels for networks whose batch norms are all over images."""
        lowered = None if self.backend is None else _lowered(graph)
        if self.backend is None or lowered is None:
            return fresh_statistics(graph, weights, batches, averaging, whole=whole, into=into)
        into = Statistics() if into is None else into
        for part in _passes(lowered, list(batches), self.backend):
            for found in run_statistics([lowered], [weights], part, self.backend)[0]:
                for item in found:
                    if item.count < 2:
                        raise UserError(
                            f"batch-norm statistics cannot be taken of a single value per channel, at {item.name}: use "
                            "larger batches"
                        )
                    unbiased = item.variance * (item.count / (item.count - 1))
                    into.add(item.name, item.mean, unbiased, item.count)
                into.batches += 1
        return into.running(graph, weights, averaging)

    def network(self, folded: Graph) -> Callable[[Mapping[str, Tensor], Tensor], Any]:
        """A network in evaluation mode, from its graph without batch norms: a function of its weights and inputs."""
        backend = self.backend
        if backend is None or len(folded.inputs) != 1 or folded.inputs[0].type.rank != 4:
            return Interpreter(folded).run
        lowered = lower_evaluation(folded)
        return lambda weights, inputs: run_evaluation([lowered], [weights], inputs, backend)[0]


def choose(settings: Settings) -> Taken:
    """How networks are run with these settings."""
    if settings.kernels == "off":
        return Taken()
    if settings.kernels == "auto" and torch.device(settings.device).type != "cuda":
        return Taken()
    if settings.averaging.kind == "population" or settings.whole:
        what = "whole" if settings.whole else f"statistics={settings.averaging.kind}"
        if settings.kernels == "reference":
            raise UserError(f"kernels=reference cannot take {what}: use kernels=off")
        return Taken(None, f"they do not take {what}")
    if settings.kernels == "reference":
        return Taken(ReferenceKernels())
    try:
        return Taken(TritonKernels(torch.device(settings.device)))
    except UserError as reason:
        return Taken(None, str(reason))


def _lowered(graph: Graph) -> LoweredStatistics | None:
    """The lowered pass of a network; None where a batch norm is not among what it measures."""
    norms = statistic_norms(graph)
    try:
        lowered = lower_statistics(graph)
    except UserError:
        return None
    return lowered if len(lowered.norms) == len(norms) and len(graph.inputs) == 1 else None


def _passes(lowered: LoweredStatistics, batches: Sequence[Tensor], backend: Backend) -> Iterable[Sequence[Tensor]]:
    """The batches, as many at a time as the device has memory for."""
    if not batches:
        return
    device = batches[0].device
    memory = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else HOST_MEMORY
    each = peak_bytes(lowered, backend.dtype.itemsize) * max(len(batch) for batch in batches)
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
