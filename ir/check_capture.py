"""Whether a captured graph does what the network does: both run on the example inputs.

Every later proof compares with the captured graph. What ties that graph to the user's own Python is this run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruneopt.errors import InternalError
from pruneopt.ir.execute import Interpreter
from pruneopt.ir.graph import Graph

__all__ = ["check_capture"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference relative to the largest output: PyTorch has faster kernels for whole modules, which round."""
HALF = 5e-2


def check_capture(model: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> str | None:
    """Compare a network, in evaluation mode, with its graph on ``inputs``; a note where that says nothing.

    Raises:
        InternalError: they differ, by more than the network differs from itself.
    """
    if any(tensor.is_meta for tensor in (*graph.weights.values(), *inputs)):
        return "the weights have no values: the graph was not compared with the network"
    own = _outputs(model, inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # random numbers are drawn alike
        ours = _leaves(Interpreter(graph).run(graph.weights, *inputs))
    if len(own) != len(ours) or any(a.shape != b.shape for a, b in zip(own, ours, strict=True)):
        raise InternalError(f"the graph of {graph.name} returns other outputs than the network: please report this")
    error = _error(own, ours)
    if error <= 1:
        return None
    if _error(own, _outputs(model, inputs)) > 1:
        return "the network gives other outputs each time it runs: the graph could not be compared with it"
    raise InternalError(
        f"the graph of {graph.name} does not compute what the network does on the example inputs: the outputs differ "
        f"by {error:.3g} times what rounding allows; please report this with the network"
    )


def _outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _leaves(model.eval()(*(item.clone() for item in inputs)))
    finally:
        for module, training in modes.items():
            module.training = training


def _leaves(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _error(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """The largest difference of any output, in units of its tolerance; what is not finite must be so at the same
    places.
    """
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        if a.numel() and not torch.equal(a, b):
            wide = torch.complex128 if a.is_complex() else torch.float64
            x, y = a.to(wide), b.to(wide)
            finite = torch.isfinite(x)
            if not torch.equal(finite, torch.isfinite(y)):
                return float("inf")
            x, y = x[finite], y[finite]
            scale = float(x.abs().max()) if x.numel() else 0.0
            allowed = TOLERANCE.get(a.dtype, HALF if a.is_floating_point() else 0.0) * max(scale, 1e-12)
            found = float((x - y).abs().max()) if x.numel() else 0.0
            worst = max(worst, found / allowed if allowed else float("inf") if found else 0.0)
    return worst
