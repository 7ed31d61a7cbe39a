"""The lowered statistics pass of several candidates on all their batches at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.passes.analysis.ops.batch_norm import RunningNorm
from pruneopt.passes.lowering.backends import Backend
from pruneopt.passes.lowering.cuda_graphs import LaunchRecorder
from pruneopt.passes.lowering.lower_statistics import LoweredStatistics
from pruneopt.passes.lowering.prepared import Prepared

__all__ = ["BatchStatistics", "PreparedStatistics", "run_statistics"]


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """The statistics of one batch at one batch norm: mean and biased variance `[C]`, of ``count``
    values per channel each."""

    name: str
    mean: Tensor
    variance: Tensor
    count: int


class PreparedStatistics:
    """The statistics pass, made once: one candidate after the other is loaded, and runs on batches
    as often as asked.

    Args:
        widest: of every candidate that runs at the same time, the widest that comes: the whole
            network's, say.
        backend: what runs the fused operations.
        capture: what records launches (`capture.CudaGraphs`); None starts each by itself.

    Attributes:
        launches: what is laid out, and how its launches were started.
    """

    def __init__(
        self,
        widest: Sequence[LoweredStatistics],
        backend: Backend,
        capture: LaunchRecorder | None = None,
    ) -> None:
        self.launches = Prepared([item.graph for item in widest], backend, capture)
        self._lowered: tuple[LoweredStatistics, ...] = ()

    def load(
        self, lowered: Sequence[LoweredStatistics], weights: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Take in candidates, at most as many as were laid out: lowered passes, weights by name."""
        self._lowered = tuple(lowered)
        self.launches.load([item.graph for item in lowered], weights)

    @torch.no_grad()
    def run(self, batches: Sequence[Tensor]) -> list[list[list[BatchStatistics]]]:
        """Return the statistics of the loaded candidates on every batch, at every batch norm in
        graph order.

        Args:
            batches: inputs `[images, channels, height, width]` of networks with one input.

        Returns:
            ``result[candidate][batch][norm]``.
        """
        program = self.launches.run(batches)
        outputs = program.layout.widest[0].output_values
        parts = program.read(outputs)
        found: list[list[list[BatchStatistics]]] = [[[] for _ in batches] for _ in self._lowered]
        for number, (mean, variance) in enumerate(zip(outputs[::2], outputs[1::2], strict=True)):
            for segment in program.layout.busy:
                candidate, batch = (
                    program.layout.candidates[segment],
                    program.layout.batch_of[segment],
                )
                norm = self._lowered[candidate].norms[number]
                one, other = (parts[value][segment] for value in (mean, variance))
                item = BatchStatistics(
                    norm.mean.name, one, other, len(batches[batch]) * _pixels(norm)
                )
                found[candidate][batch].append(item)
        return found


def run_statistics(
    lowered: Sequence[LoweredStatistics],
    weights: Sequence[Mapping[str, Tensor]],
    batches: Sequence[Tensor],
    backend: Backend,
) -> list[list[list[BatchStatistics]]]:
    """Return the statistics of candidates that run once, each in room of its own width; as
    `PreparedStatistics.run`."""
    prepared = PreparedStatistics(lowered, backend)
    prepared.load(lowered, weights)
    return prepared.run(batches)


def _pixels(norm: RunningNorm) -> int:
    return torch.Size(norm.source.type.shape(1)[2:]).numel()
