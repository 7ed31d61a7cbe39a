"""The prepared passes of one network, as a search asks for them: it need not know of buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar
from weakref import ref

import torch
from torch import Tensor

from pruneopt.ir.graph import Graph
from pruneopt.passes.lowering.backends import Backend
from pruneopt.passes.lowering.cuda_graphs import CudaGraphs, LaunchRecorder
from pruneopt.passes.lowering.lower_evaluation import LoweredEvaluation, lower_evaluation
from pruneopt.passes.lowering.lower_statistics import LoweredStatistics, lower_statistics
from pruneopt.passes.lowering.prepared import image_bytes
from pruneopt.passes.lowering.run_evaluation import PreparedEvaluation
from pruneopt.passes.lowering.run_statistics import BatchStatistics, PreparedStatistics

__all__ = ["LoweredNetworkCache", "recorder"]

Weights = Mapping[str, Tensor]
T = TypeVar("T")


def recorder(device: torch.device) -> LaunchRecorder | None:
    """Return what records launches on a device: CUDA graphs on a GPU, nothing elsewhere."""
    return CudaGraphs(device) if device.type == "cuda" else None


class _PerGraph(Generic[T]):
    """All that was made of each graph, kept while that graph lives. By identity: graphs can change,
    so they have no hash."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[ref[Graph], T]] = {}

    def of(self, graph: Graph, make: Callable[[Graph], T]) -> T:
        """Return what ``make`` gives for the graph, made once."""
        key, made = id(graph), self._made
        if key not in made:
            made[key] = ref(graph, lambda _: made.pop(key, None)), make(graph)
        return made[key][1]


class LoweredNetworkCache:
    """Both passes of a network's candidates, each laid out once and each candidate's graph lowered
    once.

    Args:
        graph: the network, of which all candidates are cut; it has one input, of images.
        folded: the same without batch norms.
        together: candidates that come at once, at most.
        backend: what runs the fused operations.
        memory: bytes that the activations of the statistics pass may take.
        capture: what records launches; None starts each by itself.

    Raises:
        UserError: no batch norm over images learns.
    """

    def __init__(
        self,
        graph: Graph,
        folded: Graph,
        together: int,
        backend: Backend,
        memory: int,
        capture: LaunchRecorder | None = None,
    ) -> None:
        self._lowered: _PerGraph[LoweredStatistics] = _PerGraph()
        self._evaluated: _PerGraph[LoweredEvaluation] = _PerGraph()
        room = self._statistics_of(graph)
        self._images = max(1, memory // (together * image_bytes(room.graph, backend)))
        self._statistics = PreparedStatistics([room] * together, backend, capture)
        self._evaluation = PreparedEvaluation(
            [self._evaluation_of(folded)] * together, backend, capture
        )

    def __str__(self) -> str:
        """Return how launches were started last, in a few words; empty before any were."""
        told = {
            "statistics": self._statistics.launches.told,
            "scores": self._evaluation.launches.told,
        }
        return ", ".join(f"{name} by {how}" for name, how in told.items() if how)

    def _statistics_of(self, graph: Graph) -> LoweredStatistics:
        return self._lowered.of(graph, lower_statistics)

    def _evaluation_of(self, folded: Graph) -> LoweredEvaluation:
        return self._evaluated.of(folded, lower_evaluation)

    def statistics(
        self, graphs: Sequence[Graph], weights: Sequence[Weights], batches: Sequence[Tensor]
    ) -> list[list[list[BatchStatistics]]]:
        """Return what every candidate gives on every batch at every batch norm:
        ``result[candidate][batch][norm]``."""
        self._statistics.load([self._statistics_of(graph) for graph in graphs], weights)
        found: list[list[list[BatchStatistics]]] = [[] for _ in graphs]
        for part in self._parts(batches):
            for own, more in zip(found, self._statistics.run(part), strict=True):
                own += more
        return found

    def _parts(self, batches: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        """Yield the batches, as many at a time as there is memory for."""
        largest = max((len(batch) for batch in batches), default=1)
        count = max(1, self._images // largest)
        for first in range(0, len(batches), count):
            yield batches[first : first + count]

    def networks(
        self, folded: Sequence[Graph], weights: Sequence[Weights]
    ) -> Callable[[Tensor], list[Any]]:
        """Run candidates in evaluation mode, from graphs without batch norms: the outputs of each
        for the same inputs.

        What was given before for other candidates must not be called any more.
        """
        self._evaluation.load([self._evaluation_of(graph) for graph in folded], weights)
        return self._evaluation.run
