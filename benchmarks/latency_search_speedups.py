"""What half of the FLOPs is worth in time, and which ops did not become faster: part two of
`latency_search.py`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from latency_search_timing import TARGET, Stand, pair

from pruneopt import capture, load_model
from pruneopt.extend import parse_pipeline
from pruneopt.passes.latency.sample import NodeTime

__all__ = ["NETWORKS", "WAYS", "speedups"]

NETWORKS = {
    "resnet18": "torchvision:resnet18",
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "vit_small": "timm:vit_small_patch16_224",
}
HALF_TIME = f"50%latency@{TARGET}"
WAYS: dict[str, tuple[str, int | str]] = {
    "FLOPs": ("50%FLOPs", 1),
    "FLOPs, multiples": ("50%FLOPs", "auto"),
    "time": (HALF_TIME, 1),
    "time, multiples": (HALF_TIME, "auto"),
}
"""Budget and ``--round-to``."""
BLOCKED = "_nchwc"
"""How onnxruntime's profiler names an op in the layout that has channels in blocks of a vector."""
LAYERS = ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")


def speedups(
    name: str, options: argparse.Namespace, done: Iterable[str]
) -> Iterable[dict[str, Any]]:
    """Yield the rows of a network that are not done yet."""
    ways = [way for way in options.ways if way not in set(done)]
    if not ways:
        return
    source = load_model(NETWORKS[name])
    stand = Stand(capture(source.module, source.example_inputs), options)
    known = stand.prepare() if any("@" in WAYS[way][0] for way in ways) else None
    for way in ways:
        budget, round_to = WAYS[way]
        timed = "@" in budget
        anchor = (
            (stand.full, 1e3 * stand.timed([stand.full]).measurement(0).seconds) if timed else None
        )
        (choose,) = parse_pipeline(f"l1{{round-to={round_to}}}")
        found = stand.cut(choose, budget, anchor=anchor)
        row: dict[str, Any] = {"network": name, "way": way, **found.row}
        if timed:
            row["measured_networks"] = known
        yield row if found.result is None else row | _compared(stand, row["widths"])


def _compared(stand: Stand, widths: list[int]) -> dict[str, Any]:
    """Time before and after in turns, and the ops; these alternate too, and the faster of two
    runs counts."""
    rounds = stand.timed([stand.full, widths])
    before, after = (round(1e3 * rounds.measurement(index).seconds, 3) for index in range(2))
    samples = [[stand.probe(np.array(row)) for row in (stand.full, widths)] for _ in range(2)]
    ops = [
        by_class(min(runs, key=lambda item: item.seconds).nodes)
        for runs in zip(*samples, strict=True)
    ]
    classes = {kind: [part.get(kind) for part in ops] for kind in sorted({*ops[0], *ops[1]})}
    return {"before_ms": before, "after_ms": after, "speedup": pair(rounds, 0, 1), "ops": classes}


def by_class(nodes: Iterable[NodeTime]) -> dict[str, dict[str, float]]:
    """Return milliseconds, millions of multiply-accumulates as run (padding included), megabytes
    and number of the ops of every class.
    """
    found: dict[str, dict[str, float]] = {}
    for node in nodes:
        item = found.setdefault(class_of(node), {"ms": 0.0, "mmacs": 0.0, "mb": 0.0, "ops": 0})
        item["ms"] += 1e3 * node.seconds
        item["mmacs"] += macs(node) / 1e6
        item["mb"] += node.moved / 1e6
        item["ops"] += 1
    return {
        kind: {name: round(value, 4) for name, value in item.items()}
        for kind, item in found.items()
    }


def class_of(node: NodeTime) -> str:
    """Return what kind of work an op is, and in which layout."""
    if node.kind.startswith("Reorder") or node.kind == "Transpose":
        return "reorders"
    if node.kind in ("Conv", "FusedConv"):
        depthwise = (
            len(node.shapes) > 1 and node.shapes[1][1:2] == (1,) and node.shapes[0][1:2] != (1,)
        )
        layout = "blocked" if BLOCKED in node.name else "plain"
        return f"{'depthwise convolutions' if depthwise else 'convolutions'}, {layout}"
    return "matrix products" if node.kind in LAYERS else "other ops"


def macs(node: NodeTime) -> float:
    """Return multiply-accumulates of an op by the shapes that it ran with; 0 for ops that are no
    layers."""
    if node.kind not in LAYERS or len(node.shapes) < 3:
        return 0.0
    inner = math.prod(node.shapes[1][1:]) if "Conv" in node.kind else node.shapes[0][-1]
    return float(math.prod(node.shapes[-1]) * inner)
