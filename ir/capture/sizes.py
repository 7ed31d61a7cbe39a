"""Sizes of inputs, beside the batch, that a graph has made constant without failing at others.

Types of a graph hold one size. What is generated from it runs at others, too, as long as no op
refuses them; where it would compute something else than the network, it has to refuse itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.ir.capture.check import Proof, alike, resized
from pruneopt.ir.graph import Graph, Op
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.types import BatchSize

__all__ = ["why_fixed"]

RESHAPES = frozenset(("view", "reshape", "flatten", "unflatten", "_unsafe_view"))


def why_fixed(proof: Proof, graph: Graph) -> str | None:
    """Return a note on why the graph holds at its own input sizes only.

    None where it refuses others by itself, or computes there what the network computes.
    """
    # One sample is enough: the batch was tried before.
    rows = resized(graph, proof.inputs, 1) if graph.dynamic_batch else proof.inputs
    for axes in _axes(graph):
        for given in (_doubled(rows, axes), _halved(rows, axes)):
            why = None if given is None else _why_not(proof, graph, given)
            if given is not None and why is not None:
                own, other = (_sizes(inputs, axes) for inputs in (proof.inputs, given))
                return f"the input size is fixed at {own}: at {other} {why}"
    return None


def _why_not(proof: Proof, graph: Graph, given: Sequence[Tensor]) -> str | None:
    other = _at_sizes(graph, given)
    ours = proof.attempt_graph(other, given)
    if isinstance(ours, Exception):
        return None  # and so does what is made of the graph
    own = proof.fresh(given)
    if isinstance(own, Exception):
        return "the network fails, and its graph does not"
    if not alike(own, ours):
        line = proof.first_line(other, given)
        return f"the network computes something else{f', at {line}' if line else ''}"
    op = _regrouped(graph, other, given)
    return None if op is None else f"{op} groups channels and positions in another way"


def _axes(graph: Graph) -> Iterator[list[list[int]]]:
    """Yield axes of all inputs that may change together: those of space, or those of a sequence."""
    free = [
        [
            axis
            for axis, dim in enumerate(value.type.dims)
            if axis and not isinstance(dim, BatchSize)
        ]
        for value in graph.inputs
    ]
    space = [axes[-2:] if len(axes) > 2 else [] for axes in free]
    if any(space):
        yield space
        return
    for place in (0, 1):
        chosen = [axes[place : place + 1] for axes in free]
        if any(chosen):
            yield chosen


def _doubled(inputs: Sequence[Tensor], axes: Sequence[Sequence[int]]) -> list[Tensor] | None:
    found = []
    for tensor, chosen in zip(inputs, axes, strict=True):
        for axis in chosen:
            tensor = torch.cat([tensor, tensor.flip(axis)], axis)
        found.append(tensor)
    return found


def _halved(inputs: Sequence[Tensor], axes: Sequence[Sequence[int]]) -> list[Tensor] | None:
    found = []
    for tensor, chosen in zip(inputs, axes, strict=True):
        for axis in chosen:
            if tensor.shape[axis] < 4:  # one place cannot be told from an axis of no size
                return None
            tensor = tensor.narrow(axis, 0, tensor.shape[axis] // 2)
        found.append(tensor.contiguous())
    return found


def _sizes(inputs: Sequence[Tensor], axes: Sequence[Sequence[int]]) -> str:
    tensor, chosen = next(item for item in zip(inputs, axes, strict=True) if item[1])
    return "x".join(str(tensor.shape[axis]) for axis in chosen)


def _at_sizes(graph: Graph, inputs: Sequence[Tensor]) -> Graph:
    """Return the graph with the sizes of these inputs, and its ops as they are."""
    other = graph.copy()
    for value, tensor in zip(other.inputs, inputs, strict=True):
        dims = [
            dim if isinstance(dim, BatchSize) else size
            for dim, size in zip(value.type.dims, tensor.shape, strict=True)
        ]
        other.set_type(value, replace(value.type, dims=tuple(dims)))
    return other


def _regrouped(graph: Graph, other: Graph, given: Sequence[Tensor]) -> Op | None:
    """Return a reshape that merges or splits other axes at the other sizes, or many to many.

    A plan says which places of its result belong to which channel, and would say it wrongly there.
    """
    shapes: dict[int, tuple[int, ...]] = {
        id(v): tuple(t.shape) for v, t in zip(other.inputs, given, strict=True)
    }
    if not any(op.base in RESHAPES for op in graph.ops):
        return None
    batch = given[0].shape[0] if graph.dynamic_batch else 1
    steps = Interpreter(other).steps(other.weights, *given)
    with torch.no_grad():
        for (op, results), mine in zip(steps, graph.ops, strict=True):
            for value, tensor in zip(op.results, results, strict=True):
                if isinstance(tensor, Tensor):
                    shapes[id(value)] = tuple(tensor.shape)
            source = op.value(0)
            if op.base not in RESHAPES or source is None or id(source) not in shapes:
                continue
            now = shapes[id(source)], shapes[id(op.result)]
            before = mine.needed(0).type.shape(batch), mine.result.type.shape(batch)
            groups = _groups(*now)
            mixed = any(len(a) > 1 and len(b) > 1 for a, b in groups) and now != before
            if groups != _groups(*before) or mixed:
                return mine
    return None


def _groups(one: Sequence[int], other: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return which axes of a reshape become which, as the smallest groups of equal size."""
    found = []
    left, right = list(enumerate(one)), list(enumerate(other))
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        x, y = a[0][1], b[0][1]
        while x != y and (left if x < y else right):
            if x < y:
                a.append(left.pop(0))
                x *= a[-1][1]
            else:
                b.append(right.pop(0))
                y *= b[-1][1]
        found.append(([axis for axis, _ in a], [axis for axis, _ in b]))
    return found
