"""Which residual branches matter least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.compare import tensor_leaves
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.passes.analysis.residual.branches import Branch
from pruneopt.passes.depth.drop import without
from pruneopt.passes.pipeline.state import State

__all__ = ["BATCH_SIZE", "change_of_output", "last_weight_norm"]

BATCH_SIZE = 64


def last_weight_norm(graph: Graph, branch: Branch) -> float:
    """Return the L1 norm per channel of the last parameter that a branch multiplies with: a norm's
    scale, a layer scale, or a layer's weight. `UserError` where it is not finite.
    """
    for op in reversed(branch.ops):
        read = [value for value in op.inputs if value.kind == "param"]
        if read:
            # A bias is never larger than what it goes with, and comes after it where they are
            # equal.
            value = max(read, key=lambda value: math.prod(value.type.shape()))
            weight = graph.weights[value.name].detach().double()
            norm = float(weight.abs().sum()) / max(1, weight.shape[0] if weight.dim() else 1)
            if not math.isfinite(norm):
                raise UserError(
                    f"the weights of {branch.name} hold NaN or infinity: nothing can be ranked by "
                    "them"
                )
            return norm
    return 0.0


@torch.no_grad()
def change_of_output(state: State, branches: Sequence[Branch], batches: int) -> dict[str, float]:
    """Return the relative change of the outputs on calibration data without each branch, by name.

    Raises:
        UserError: no data, or a network of several inputs.
    """
    graph = state.graph
    workload = state.need_workload("criterion=output")
    if len(graph.inputs) != 1:
        raise UserError(
            f"criterion=output feeds one input, and {graph.name} has {len(graph.inputs)}: rank by "
            "weight"
        )
    weights = {name: tensor.to(state.device) for name, tensor in graph.weights.items()}
    squares = dict.fromkeys((branch.name for branch in branches), 0.0)
    size = 0.0
    for number, (inputs, _) in enumerate(workload.calibration.batches(BATCH_SIZE)):
        if number == batches:
            break
        x = inputs.to(state.device)
        whole = _outputs(graph, (), weights, x)
        size += sum(float(tensor.double().square().sum()) for tensor in whole)
        for done, branch in enumerate(branches, 1):
            state.progress(f"without {branch.name}", done, len(branches))
            changed = _outputs(graph, (branch,), weights, x)
            pairs = zip(whole, changed, strict=True)
            squares[branch.name] += sum(float((a - b).double().square().sum()) for a, b in pairs)
    return {name: math.sqrt(value / max(size, 1e-300)) for name, value in squares.items()}


def _outputs(
    graph: Graph, dropped: Sequence[Branch], weights: Mapping[str, Tensor], x: Tensor
) -> list[Tensor]:
    outputs = Interpreter(graph, without(dropped, False)).run(weights, x)
    return [leaf for leaf in tensor_leaves(outputs) if leaf.is_floating_point()]
