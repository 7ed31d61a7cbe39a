"""Comparing a captured graph with the network itself: both run on the example inputs.

Every later proof compares with the captured graph. What ties that graph to the user's own Python is
this run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneopt.errors import InternalError
from pruneopt.ir.compare import difference, tensor_leaves
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.modes import in_mode

__all__ = ["check_capture"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference relative to the largest output: PyTorch has faster kernels for whole modules,
which round."""
HALF = 5e-2


def check_capture(model: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> str | None:
    """Compare a network, in evaluation mode, with its graph on ``inputs``.

    Returns a note where that says nothing.

    Raises:
        InternalError: they differ, by more than the network differs from itself.
    """
    if any(tensor.is_meta for tensor in (*graph.weights.values(), *inputs)):
        return "the weights have no values: the graph was not compared with the network"
    own = _outputs(model, inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # random numbers are drawn alike
        ours = tensor_leaves(Interpreter(graph).run(graph.weights, *inputs))
    if len(own) != len(ours) or any(a.shape != b.shape for a, b in zip(own, ours, strict=True)):
        raise InternalError(
            f"the graph of {graph.name} returns other outputs than the network: please report this"
        )
    error = _error(own, ours)
    if not error:
        return None
    if _error(own, _outputs(model, inputs)):
        return (
            "the network gives other outputs each time it runs: the graph could not be "
            "compared "
            "with it"
        )
    raise InternalError(
        f"the graph of {graph.name} does not compute what the network does on the example inputs: "
        "the outputs differ "
        f"by {error:.3g} times what rounding allows; please report this with the network"
    )


def _outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad(), in_mode(model):
        return tensor_leaves(model(*(item.clone() for item in inputs)))


def _error(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Return the largest difference of any output in units of what rounding allows.

    It is infinite where rounding allows none.
    """
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        error, scale = difference(a, b)
        real = a.real.dtype if a.is_complex() else a.dtype
        allowed = TOLERANCE.get(real, HALF) * max(scale, 1e-12) if real.is_floating_point else 0.0
        if not error <= allowed:
            worst = max(worst, error / allowed if allowed and not math.isnan(error) else math.inf)
    return worst
