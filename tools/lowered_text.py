"""What ``pruneopt inspect --lowered`` says: the statistics pass in fused operations, and what no kernel does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pruneopt.ir.data import graph_to_dict
from pruneopt.ir.printer import print_graph
from pruneopt.passes.lowering.statistics import LoweredStatistics, Unfused
from pruneopt.tools.text import times

__all__ = ["lowered_data", "lowered_lines"]

CONVOLUTION = "pruneopt.conv_statistics"


def lowered_lines(lowered: LoweredStatistics) -> Iterator[str]:
    """The graph as text, a count, and the ops without a kernel: the same op with the same reason in one line."""
    yield print_graph(lowered.graph).rstrip("\n")
    yield ""
    fused = sum(op.base == CONVOLUTION for op in lowered.graph.ops)
    yield (
        f"statistics of {len(lowered.norms)} batch norms: {times(fused)} a convolution that finishes its input and "
        f"measures its output; {times(len(lowered.unfused))} an op as PyTorch has it"
    )
    for (name, why), items in _alike(lowered).items():
        yield f"no kernel: {name}, {times(len(items))}, first at {items[0].op.loc}: {why}"


def lowered_data(lowered: LoweredStatistics) -> dict[str, Any]:
    """The same as data."""
    return {
        "graph": graph_to_dict(lowered.graph),
        "norms": [norm.mean.name.rpartition(".")[0] for norm in lowered.norms],
        "unfused": [
            {"op": name, "count": len(items), "first": str(items[0].op.loc), "why": why}
            for (name, why), items in _alike(lowered).items()
        ],
    }


def _alike(lowered: LoweredStatistics) -> dict[tuple[str, str], list[Unfused]]:
    found: dict[tuple[str, str], list[Unfused]] = {}
    for item in lowered.unfused:
        found.setdefault((item.op.target.removesuffix(".default"), item.why), []).append(item)
    return found
