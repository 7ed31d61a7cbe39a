"""Write the channel groups into a graph's types and header, so that coupling can be read in the
text."""

from __future__ import annotations

import hashlib

import numpy as np

from pruneopt.ir.graph import Graph
from pruneopt.ir.types import (
    Axis,
    ChannelDim,
    ChannelGroup,
    Dim,
    IndexedAxis,
    Part,
    SplitAxis,
    TensorType,
    ranges_of,
)
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.sizes import AxisShare, axis_shares

__all__ = ["annotate", "write_plan"]

MAX_PARTS = 8
"""An axis of more parts than this prints as an indexed axis."""


def annotate(coupling: Coupling) -> Graph:
    """Return a copy of the coupled graph whose header declares the groups and whose types name
    them."""
    graph = coupling.graph.copy()
    graph.declare_groups(ChannelGroup(g.name, g.width, g.frozen, g.step) for g in coupling.groups)
    for old, value in zip(coupling.graph.values, graph.values, strict=True):
        dims: list[Dim] = list(old.type.plain().dims)
        for share in axis_shares(coupling, old):
            if isinstance(
                dims[share.axis], int
            ):  # an axis that holds the batch as well stays an expression in it
                dims[share.axis] = _channel_dim(coupling, share)
        graph.set_type(value, TensorType(old.type.dtype, tuple(dims)))
    return graph


def write_plan(graph: Graph, plan: Plan) -> None:
    """Write what a plan keeps into the header of an annotated graph; nothing else in its text
    changes."""
    graph.decide({name: ranges_of(np.sort(indices).tolist()) for name, indices in plan.items()})


def _channel_dim(coupling: Coupling, share: AxisShare) -> ChannelDim:
    group = np.where(share.units >= 0, coupling.unit_group[share.units], -1)
    rank = np.where(share.units >= 0, coupling.unit_rank[share.units], 0)
    names = tuple(dict.fromkeys(coupling.groups[n].name for n in group if n >= 0))
    size = len(share.units) // share.divisor
    if share.divisor == 1:
        parts = _parts(coupling, group, rank)
        if parts is not None:
            return Axis(parts)
    elif len(names) == 1 and coupling.group(names[0]).width == len(share.units):
        return SplitAxis(names[0], share.divisor, size)
    order = np.stack([group, rank]).astype(np.int64).tobytes()
    return IndexedAxis(size, names, hashlib.sha256(order).hexdigest()[:8])


def _parts(coupling: Coupling, group: np.ndarray, rank: np.ndarray) -> tuple[Part, ...] | None:
    """Return the axis as runs of consecutive units, or None when there are too many."""
    parts: list[Part] = []
    position = 0
    while position < len(group):
        part = _run_from(coupling, group, rank, position)
        parts.append(part)
        position += part.size
        if len(parts) > MAX_PARTS:
            return None
    return tuple(parts)


def _run_from(coupling: Coupling, group: np.ndarray, rank: np.ndarray, start: int) -> Part:
    """Return the longest run of one group from a position: ranks go up by one, each repeated
    equally often."""
    number = int(group[start])
    stop = start
    while stop < len(group) and group[stop] == number:
        stop += 1
    if number < 0:
        return Part(None, stop - start)
    ranks = rank[start:stop]
    repeat = int(np.argmax(ranks != ranks[0])) if (ranks != ranks[0]).any() else len(ranks)
    wanted = ranks[0] + np.arange(len(ranks)) // repeat
    length = int(np.argmax(ranks != wanted)) if (ranks != wanted).any() else len(ranks)
    count = max(1, length // repeat)
    return Part(
        coupling.groups[number].name,
        count,
        int(ranks[0]),
        repeat if count * repeat <= length else 1,
    )
