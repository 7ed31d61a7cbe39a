"""The lowered evaluation pass of several candidates on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneopt.ir.graph import Value, map_structure
from pruneopt.passes.lowering.backends import Backend
from pruneopt.passes.lowering.cuda_graphs import LaunchRecorder
from pruneopt.passes.lowering.lower_evaluation import LoweredEvaluation
from pruneopt.passes.lowering.prepared import Prepared

__all__ = ["PreparedEvaluation", "run_evaluation"]


class PreparedEvaluation:
    """The evaluation pass, made once: one candidate after the other is loaded, and runs as often as
    asked.

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
        widest: Sequence[LoweredEvaluation],
        backend: Backend,
        capture: LaunchRecorder | None = None,
    ) -> None:
        self.launches = Prepared([item.graph for item in widest], backend, capture)
        self._weights: tuple[Mapping[str, Tensor], ...] = ()

    def load(
        self, lowered: Sequence[LoweredEvaluation], weights: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Take in candidates, at most as many as were laid out: folded graphs, weights by name."""
        self._weights = tuple(weights)
        self.launches.load([item.graph for item in lowered], weights)

    @torch.no_grad()
    def run(self, inputs: Tensor) -> list[Any]:
        """Return what every loaded candidate gives in evaluation mode, in the structure the model
        returns it.

        Args:
            inputs: `[images, ...]` of networks with one input.
        """
        program = self.launches.run([inputs])
        outputs = program.layout.widest[0].outputs
        parts = program.read(
            value for value in program.layout.widest[0].output_values if not value.is_weight
        )

        def output(candidate: int) -> Any:
            def of(value: Value) -> Any:
                return (
                    self._weights[candidate][value.name]
                    if value.is_weight
                    else parts[value][candidate]
                )

            return map_structure(of, outputs)

        return [output(candidate) for candidate in range(len(self._weights))]


def run_evaluation(
    lowered: Sequence[LoweredEvaluation],
    weights: Sequence[Mapping[str, Tensor]],
    inputs: Tensor,
    backend: Backend,
) -> list[Any]:
    """Return what candidates give that run once, each in room of its own width; as
    `PreparedEvaluation.run`."""
    prepared = PreparedEvaluation(lowered, backend)
    prepared.load(lowered, weights)
    return prepared.run(inputs)
