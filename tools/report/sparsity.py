"""Masks in a bundle and in the reports: how many weights are zero, and that this makes nothing
faster by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pruneopt.ir.graph import Graph
from pruneopt.passes.selection.masks import MASKS, sparsity
from pruneopt.passes.selection.semi_structured import TwoOfFour
from pruneopt.tools.report.text import amount, percent

__all__ = ["sparsity_data", "sparsity_lines", "sparsity_notes", "sparsity_rows"]


def sparsity_data(graph: Graph, masks: Mapping[str, Tensor], params: int) -> dict[str, Any]:
    """What masks come to in a delivered graph of ``params`` parameters: overall, and by layer."""
    found = sparsity(graph, masks)
    return {
        "weights": found.weights,
        "zeros": found.zeros,
        "share": found.share,
        "nonzero_params": params - found.zeros,
        "layers": [
            {"name": item.name, "weights": item.weights, "zeros": item.zeros}
            for item in found.layers
        ],
    }


def sparsity_notes(records: Mapping[str, object]) -> Iterator[str]:
    """What 2:4 sparsity left out, and what it takes to profit from it."""
    for record in records.values():
        if isinstance(record, TwoOfFour):
            for left in record.left:
                yield f"2:4 sparsity left {left}"
            yield (
                "2:4 sparsity is delivered as masks; on an NVIDIA GPU of compute capability 8.0 or "
                "newer "
                "pruneopt.passes.selection.semi_structured.to_semi_structured(module) makes linear "
                "layers use it"
            )


def sparsity_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The sparsity, for the terminal; nothing without masks."""
    found = report.get("sparsity")
    if found:
        yield (
            f"Sparsity: {percent(found['share'], 2)} of the {amount(found['weights'], 'params')} "
            "of convolutions and "
            f"linear layers are zero ({amount(found['nonzero_params'], 'params')} are not, in "
            f"all); {MASKS} says which."
        )
        yield "Zeros change no shape: sizes, FLOPs and memory are those of the dense network."


def sparsity_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Layer, weights and zeros; nothing without masks."""
    for item in (report.get("sparsity") or {"layers": []})["layers"]:
        yield item["name"], item["weights"], item["zeros"]
