"""Comparing networks for `pruneopt.testing`: what makes two of them different functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruneopt.errors import PruneoptError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.compare import difference
from pruneopt.ir.graph import Graph, Op
from pruneopt.ir.interpreter import Interpreter, batch_of
from pruneopt.ir.modes import in_mode
from pruneopt.ir.schema import DTYPES
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from pruneopt.passes.result import Result

__all__ = ["why_different", "why_not_pruned"]

Network = nn.Module | Graph
BATCH = 2
"""The batch size of random inputs; 1 and one more are tried beside it."""
TINY = 1e-12
"""Outputs below this are compared as if they were this large."""


def why_different(
    one: Network,
    other: Network,
    inputs: Sequence[Tensor] | Tensor | None = None,
    tolerance: float = 1e-4,
) -> str | None:
    """Return why two networks are not the same function, in a sentence; None if they are.

    See `pruneopt.testing.assert_same_function`.
    """
    graph = next((item for item in (one, other) if isinstance(item, Graph)), None)
    if inputs is None and graph is None:
        raise ValueError("two modules can only be compared on inputs: give some")
    if inputs is None:
        assert graph is not None
        given = random_inputs(graph)
    else:
        given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for at, rows in enumerate(_batches(graph, given)):
        try:
            expected = _outputs(one, rows)
        except Exception:
            if at == 0:
                raise
            continue  # the first network does not take this batch size
        shapes = ", ".join(str(list(tensor.shape)) for tensor in rows)
        try:
            found = _outputs(other, rows)
        except Exception as error:
            return f"{_name(other)} fails on inputs {shapes}: {type(error).__name__}: {error}"
        reason = _first_difference(expected, found, tolerance)
        if reason is not None:
            return f"{_name(one)} and {_name(other)} differ on inputs {shapes}: {reason}"
    return None


def random_inputs(graph: Graph, batch: int = BATCH) -> list[Tensor]:
    """Return normal numbers, or zeros and ones for inputs that are no floating numbers."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for value in graph.inputs:
        shape, dtype = value.type.shape(batch), DTYPES[value.type.dtype]
        if dtype.is_floating_point:
            found.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            found.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return found


def _batches(graph: Graph | None, inputs: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the inputs as they are, then at other batch sizes, where the networks may take them."""
    yield inputs
    if graph is not None:
        if graph.dynamic_batch:
            batch = batch_of(graph, inputs)
            yield from (_resized(graph, inputs, size) for size in (1, batch + 1))
        return
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in inputs}
    if len(sizes) == 1 and (rows := sizes.pop()):
        yield from ([_repeated(item, size) for item in inputs] for size in (1, rows + 1))


def _resized(graph: Graph, inputs: list[Tensor], batch: int) -> list[Tensor]:
    """Return the inputs at another batch size, whatever axes of them it stands in."""
    found = []
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        for axis, size in enumerate(value.type.shape(batch)):
            tensor = _repeated(tensor.movedim(axis, 0), size).movedim(0, axis)
        found.append(tensor)
    return found


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat([tensor] * -(-rows // tensor.shape[0]))[:rows]


@torch.no_grad()
def _outputs(network: Network, inputs: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Return a network's output tensors by where they stand in what it returns."""
    copies = [tensor.clone() for tensor in inputs]
    with torch.random.fork_rng(devices=[]):  # both networks draw the same numbers
        if isinstance(network, Graph):
            outputs: Any = Interpreter(network).run(network.weights, *copies)
        else:
            with in_mode(network):
                outputs = network(*copies)
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    return [(pytree.keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


def _first_difference(
    expected: list[tuple[str, Tensor]], found: list[tuple[str, Tensor]], tolerance: float
) -> str | None:
    if len(expected) != len(found):
        return f"{len(expected)} outputs against {len(found)}"
    for number, ((place, a), (_, b)) in enumerate(zip(expected, found, strict=True)):
        output = f"output {place or number}"
        if a.shape != b.shape:
            return f"{output} has the shape {list(a.shape)} against {list(b.shape)}"
        error, scale = difference(a, b)
        floating = a.is_floating_point() or a.is_complex()
        allowed = tolerance * max(scale, TINY) if floating else 0.0
        if not error <= allowed:
            return (
                f"{output} is off by {error:.3g}, where {allowed:.3g} is allowed "
                f"(its largest element is {scale:.3g})"
            )
    return None


def _name(network: Network) -> str:
    if isinstance(network, Graph):
        return f"the graph of {network.name}"
    return type(network).__name__


def why_not_pruned(original: Network, result: Result) -> str | None:
    """Return why a result is not the original with channels removed; None if it is.

    See `pruneopt.testing.assert_pruned`.
    """
    coupling, plan = result.coupling, result.plan
    if coupling is None or plan is None:
        return "the pipeline decided no plan: it needs couple, a pass that chooses channels, slice"
    whole = coupling.graph
    if not isinstance(original, Graph):
        original = capture(original, random_inputs(whole), dynamic_batch=whole.dynamic_batch)
    reason = _other_op(original, whole, sizes=True) or _other_op(whole, result.graph, sizes=False)
    if reason is not None:
        return reason
    if all(len(plan.get(group.name, group.units)) == group.width for group in coupling.groups):
        return "the plan keeps every channel: nothing was removed"
    try:
        verify_pruned(original, coupling, plan, result.graph)
    except PruneoptError as error:
        return str(error)
    return None


def _other_op(one: Graph, other: Graph, *, sizes: bool) -> str | None:
    """Return the first op in which two graphs differ; with ``sizes`` arguments must be equal."""
    for mine, theirs in zip_longest(one.ops, other.ops):
        if mine is None or theirs is None or _form(mine, sizes) != _form(theirs, sizes):
            return (
                f"the original has {mine or 'no op more'} where the result has {theirs or 'none'}"
            )
    return None


def _form(op: Op, sizes: bool) -> tuple[object, ...]:
    attrs = dict(op.attrs) if sizes else set(op.attrs)
    return op.target, [value.name for value in (*op.inputs, *op.results)], attrs
