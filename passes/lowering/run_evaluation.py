"""The lowered evaluation pass of several candidates on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneopt.ir.graph import Value, map_structure
from pruneopt.passes.lowering.backends import Backend
from pruneopt.passes.lowering.evaluation import LoweredEvaluation
from pruneopt.passes.lowering.fused_ops import HANDLERS
from pruneopt.passes.lowering.run import Run

__all__ = ["run_evaluation"]


@torch.no_grad()
def run_evaluation(
    lowered: Sequence[LoweredEvaluation], weights: Sequence[Mapping[str, Tensor]], inputs: Tensor, backend: Backend
) -> list[Any]:
    """What every candidate gives for ``inputs`` in evaluation mode, in the structure the model returns it.

    Args:
        lowered: of each candidate, from folded graphs; they differ in widths alone.
        weights: of each folded graph, by name, on the device of the inputs.
        inputs: `[images, ...]` of networks with one input.
        backend: what runs the fused operations.
    """
    run = Run([item.graph for item in lowered], weights, [inputs], backend, HANDLERS)
    run.go()

    def output(candidate: int) -> Any:
        def of(value: Value) -> Any:
            return weights[candidate][value.name] if value.is_weight else run.part(value, candidate)

        return map_structure(of, run.graphs[0].outputs)

    return [output(candidate) for candidate in range(len(lowered))]
