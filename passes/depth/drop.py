"""Dropping residual branches from a graph, and the proof that nothing else changed.

The proof takes another route than the rewriting: the original graph runs in float64 with the
dropped branches multiplied by zero where they are added, and every value that the smaller graph
still computes must equal the value of that name. Weights are perturbed for it, so that a branch
that starts as zero, or two blocks that are alike, cannot hide a mistake; the delivered weights must
be the original's, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pruneopt.errors import VerificationError
from pruneopt.ir.compare import difference
from pruneopt.ir.graph import Graph, Op
from pruneopt.ir.interpreter import Interpreter
from pruneopt.passes.analysis.residual.branches import Branch
from pruneopt.passes.graph_rewrites.verify import EXACT, TINY, evaluate, perturbed, random_inputs

__all__ = ["DropProof", "drop_branches", "prove_dropped", "without"]

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class DropProof:
    """The proof: the largest error of an output, the largest output, and the number of values."""

    max_abs_error: float
    scale: float
    values: int


def drop_branches(graph: Graph, branches: Sequence[Branch]) -> Graph:
    """Return the graph without some of its branches, and sharing its weights."""
    new = graph.copy()
    twin = dict(zip(graph.ops, new.ops, strict=True))
    for branch in branches:
        add = twin[branch.add]
        skip = add.value(1 - branch.place)  # that of the copy, where a dropped block came before
        assert skip is not None
        new.replace_uses(add.result, skip)
    new.erase_dead()
    # Counters are read by nobody, and go with the layer that they count for.
    left = {name.rpartition(".")[0] for name in new.params if not name.endswith(COUNTER)}
    for name in [name for name in new.params if name.endswith(COUNTER)]:
        module = name.rpartition(".")[0]
        had = any(
            other.rpartition(".")[0] == module
            for other in graph.params
            if not other.endswith(COUNTER)
        )
        if had and module not in left:
            del new.params[name]
    gone = graph.params.keys() - new.params.keys()
    new.weights = {name: tensor for name, tensor in new.weights.items() if name not in gone}
    new.aliases = {alias: name for alias, name in new.aliases.items() if name not in gone}
    return new


def without(
    branches: Sequence[Branch], double: bool
) -> Callable[[Op, list[Any], Callable[[], Any]], Any]:
    """Return the override of an interpreter that adds zero times a branch."""
    places = {branch.add: branch.place for branch in branches}

    def override(op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        if op in places:
            # Not a product: zero times infinity is no number.
            operands[places[op]] = torch.zeros_like(operands[places[op]])
        if double:
            return evaluate(op, operands, True)
        return compute() if op not in places else operands[1 - places[op]] + operands[places[op]]

    return override


@torch.no_grad()
def prove_dropped(
    graph: Graph, branches: Sequence[Branch], dropped: Graph, *, seed: int = 0
) -> DropProof:
    """Prove, value by value, that ``dropped`` is ``graph`` with ``branches`` multiplied by zero.

    Raises:
        VerificationError: it is not; the message names the first op at which they part.
    """
    _check_weights(graph, dropped)
    weights, inputs = perturbed(graph, seed), random_inputs(graph, seed)
    small = {name: weights[name] for name in dropped.params}
    left = _Run(Interpreter(graph, without(branches, True)).steps(weights, *inputs))
    right = _Run(Interpreter(dropped, without((), True)).steps(small, *inputs))
    twins = {value.name: op for op in dropped.ops for value in op.results}
    compared = 0
    for op, results in left:
        if not any(value.name in twins for value in op.results):
            continue
        twin, mine = next(right, (None, ()))
        if twin is None or twin is not twins.get(op.results[0].name):
            raise _failed(f"its ops come in another order from {op} on")
        for full, tensor in zip(results, mine, strict=True):
            compared += 1
            _check_equal(full, tensor, str(op))
    if next(right, None) is not None:
        raise _failed("it computes something that the original does not")
    worst = scale = 0.0
    for full, tensor in zip(
        pytree.tree_leaves(left.outputs), pytree.tree_leaves(right.outputs), strict=True
    ):
        error, size = _check_equal(full, tensor, "the outputs")
        worst, scale = max(worst, error), max(scale, size)
    return DropProof(worst, scale, compared)


class _Run:
    """The steps of an interpreter, and its outputs when they are through."""

    def __init__(self, steps: Any) -> None:
        self.steps, self.outputs = steps, None

    def __iter__(self) -> _Run:
        return self

    def __next__(self) -> tuple[Op, Sequence[Any]]:
        try:
            step: tuple[Op, Sequence[Any]] = next(self.steps)
        except StopIteration as end:
            self.outputs = end.value
            raise StopIteration from None
        return step


def _check_equal(full: Any, tensor: Any, where: str) -> tuple[float, float]:
    if not isinstance(full, Tensor) or not full.numel():
        return 0.0, 0.0
    error, size = difference(full, tensor)
    if full.shape != tensor.shape or not error <= EXACT * size + TINY:
        raise _failed(f"it differs by {error:.3g} at {where}")
    return error, size


def _check_weights(graph: Graph, dropped: Graph) -> None:
    for name in dropped.params:
        before, after = graph.weights.get(name), dropped.weights.get(name)
        if before is not after and (
            before is None or after is None or not torch.equal(before, after)
        ):
            raise _failed(f"its weight {name} is another one")
    extra = [name for name in dropped.params if name not in graph.params]
    if extra:
        raise _failed(f"it has the weight {extra[0]}, which the original has not")


def _failed(why: str) -> VerificationError:
    return VerificationError(
        f"the network is not the original with the dropped branches multiplied by zero: {why}; "
        "nothing is delivered"
    )
