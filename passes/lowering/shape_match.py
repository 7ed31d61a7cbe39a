"""Graphs that differ in widths alone: which of their values are the same, and whether one has room
for another."""

from __future__ import annotations

from collections.abc import Iterator

from pruneopt.ir.graph import Graph, Op, Value

__all__ = ["depthwise", "matching_values", "same_calls", "why_not_reusable", "width_of"]


def same_calls(one: Graph, other: Graph) -> bool:
    """Return whether two candidates can run side by side."""
    return [op.target for op in one.ops] == [op.target for op in other.ops]


def matching_values(first: Graph, graph: Graph) -> dict[Value, Value]:
    """Return the inputs and results of a graph by those of another that makes the same calls."""
    return dict(zip(_values(first), _values(graph), strict=True))


def width_of(value: Value) -> int:
    """Return the channels: the second axis of an activation, the only one of a table."""
    shape = value.type.shape(1)
    return shape[1] if len(shape) > 1 else shape[0]


def depthwise(op: Op) -> bool:
    """Return whether a fused convolution has one output channel per input channel; one channel
    alone counts as such."""
    n_in, n_out = (width_of(value) for value in (op.needed(0), op.results[0]))
    return bool(op.attrs["groups"] == n_in == n_out)


def why_not_reusable(widest: Graph, graph: Graph) -> str | None:
    """Return why a candidate cannot run in the buffers of the widest; None where it can.

    It makes the same calls, and no value of it is wider. A convolution's number of groups is part
    of its kernel: it is the same, unless both are depthwise.
    """
    if not same_calls(widest, graph):
        return "it makes other calls"
    for wide, own in zip(_values(widest), _values(graph), strict=True):
        one, other = wide.type.shape(1), own.type.shape(1)
        fits = len(one) == len(other) and all(
            left >= right for left, right in zip(one, other, strict=True)
        )
        if not fits or (len(one) == 4 and one[2:] != other[2:]):
            return f"{own.name} is {list(other)}, and there is room for {list(one)}"
    for first, second in zip(widest.ops, graph.ops, strict=True):
        if first.base in ("pruneopt.conv_statistics", "pruneopt.conv_output"):
            given = first.attrs["groups"], second.attrs["groups"]
            if given[0] != given[1] and not (depthwise(first) and depthwise(second)):
                return f"a convolution has {given[1]} groups instead of {given[0]} ({second.loc})"
    return None


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for op in graph.ops:
        yield from op.results
