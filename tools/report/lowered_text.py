"""The text of ``pruneopt inspect --lowered``: how a candidate is judged in fused operations, and
what no kernel does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pruneopt.ir.graph import Graph
from pruneopt.ir.text.json_form import graph_to_dict
from pruneopt.ir.text.printer import print_graph
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.lowering.lower_evaluation import LoweredEvaluation, lower_evaluation
from pruneopt.passes.lowering.lower_statistics import LoweredStatistics, lower_statistics
from pruneopt.passes.lowering.patterns import Unfused
from pruneopt.tools.report.text import times

__all__ = ["Lowered", "lowered_data", "lowered_lines"]

STATISTICS = "pruneopt.conv_statistics"
EVALUATION = "pruneopt.conv_output"


@dataclass(frozen=True, slots=True)
class Lowered:
    """Both passes in which a candidate is judged."""

    statistics: LoweredStatistics
    evaluation: LoweredEvaluation

    @classmethod
    def of(cls, graph: Graph) -> Lowered:
        """Return both passes of a network; `UserError` where no batch norm over images learns."""
        return cls(lower_statistics(graph), lower_evaluation(fold_batch_norms(graph).graph))


def lowered_lines(lowered: Lowered) -> Iterator[str]:
    """Yield each graph as text, a count, and the ops without a kernel: the same op with the same
    reason in one line."""
    statistics, evaluation = lowered.statistics, lowered.evaluation
    yield print_graph(statistics.graph).rstrip("\n")
    yield ""
    yield (
        f"statistics of {len(statistics.norms)} batch norms: "
        f"{times(_count(statistics.graph, STATISTICS))} a "
        f"convolution that finishes its input and measures its output; {_rest(statistics.unfused)}"
    )
    yield from _reasons(statistics.unfused)
    yield ""
    yield print_graph(evaluation.graph).rstrip("\n")
    yield ""
    yield (
        f"scores: {times(_count(evaluation.graph, EVALUATION))} a convolution with bias, sum and "
        "activation; "
        f"{_rest(evaluation.unfused)}"
    )
    yield from _reasons(evaluation.unfused)


def lowered_data(lowered: Lowered) -> dict[str, Any]:
    """Return the same as data."""
    statistics, evaluation = lowered.statistics, lowered.evaluation
    return {
        "graph": graph_to_dict(statistics.graph),
        "norms": [norm.mean.name.rpartition(".")[0] for norm in statistics.norms],
        "unfused": _reasons_data(statistics.unfused),
        "evaluation": {
            "graph": graph_to_dict(evaluation.graph),
            "unfused": _reasons_data(evaluation.unfused),
        },
    }


def _count(graph: Graph, base: str) -> int:
    return sum(op.base == base for op in graph.ops)


def _rest(unfused: Sequence[Unfused]) -> str:
    return f"{times(len(unfused))} an op as PyTorch has it"


def _reasons(unfused: Sequence[Unfused]) -> Iterator[str]:
    for (name, why), items in _alike(unfused).items():
        yield f"no kernel: {name}, {times(len(items))}, first at {items[0].op.loc}: {why}"


def _reasons_data(unfused: Sequence[Unfused]) -> list[dict[str, Any]]:
    return [
        {"op": name, "count": len(items), "first": str(items[0].op.loc), "why": why}
        for (name, why), items in _alike(unfused).items()
    ]


def _alike(unfused: Sequence[Unfused]) -> dict[tuple[str, str], list[Unfused]]:
    found: dict[tuple[str, str], list[Unfused]] = {}
    for item in unfused:
        found.setdefault((item.op.target.removesuffix(".default"), item.why), []).append(item)
    return found
