"""The lowered statistics pass of several candidates on all their batches at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.passes.analysis.norms import RunningNorm
from pruneopt.passes.lowering.backends import Backend
from pruneopt.passes.lowering.fused_ops import HANDLERS
from pruneopt.passes.lowering.run import Run
from pruneopt.passes.lowering.statistics import LoweredStatistics

__all__ = ["BatchStatistics", "run_statistics"]


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """What one batch gave at one batch norm: mean and biased variance `[C]`, of ``count`` values per channel each."""

    name: str
    mean: Tensor
    variance: Tensor
    count: int


@torch.no_grad()
def run_statistics(
    lowered: Sequence[LoweredStatistics],
    weights: Sequence[Mapping[str, Tensor]],
    batches: Sequence[Tensor],
    backend: Backend,
) -> list[list[list[BatchStatistics]]]:
    """The statistics of every candidate on every batch, at every batch norm in graph order.

    Args:
        lowered: of each candidate; they differ in widths alone.
        weights: of each candidate, by name, on the device of the batches.
        batches: inputs `[images, channels, height, width]` of networks with one input.
        backend: what runs the fused operations.

    Returns:
        ``result[candidate][batch][norm]``.
    """
    run = Run([item.graph for item in lowered], weights, batches, backend, HANDLERS)
    run.go()
    found: list[list[list[BatchStatistics]]] = [[[] for _ in batches] for _ in lowered]
    outputs = run.graphs[0].output_values
    for number, (mean, variance) in enumerate(zip(outputs[::2], outputs[1::2], strict=True)):
        for segment, candidate in enumerate(run.work.candidates):
            norm = lowered[candidate].norms[number]
            one, other = (run.part(value, segment) for value in (mean, variance))  # nothing writes there again
            item = BatchStatistics(norm.mean.name, one, other, run.work.images[segment] * _pixels(norm))
            found[candidate][run.batch_of[segment]].append(item)
    return found


def _pixels(norm: RunningNorm) -> int:
    return torch.Size(norm.source.type.shape(1)[2:]).numel()
