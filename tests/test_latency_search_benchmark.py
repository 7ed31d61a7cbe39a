"""The benchmark of searches by time: how it sorts ops, and what it says of those that did not
become faster."""

from pathlib import Path
from typing import Any

import pytest

from pruneopt.passes.latency.sample import NodeTime

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def node(name: str, kind: str, *shapes: tuple[int, ...]) -> NodeTime:
    return NodeTime(name, kind, 0, 1e-3, shapes, 0)


@pytest.mark.parametrize(
    ("op", "kind", "macs"),
    [
        (
            node("node_1_nchwc", "Conv", (1, 16, 8, 8), (32, 16, 3, 3), (1, 32, 8, 8)),
            "convolutions, blocked",
            8 * 8 * 32 * 144,
        ),
        (
            node("node_2", "FusedConv", (1, 3, 8, 8), (5, 3, 1, 1), (1, 5, 8, 8)),
            "convolutions, plain",
            8 * 8 * 5 * 3,
        ),
        (
            node("node_3", "Conv", (1, 6, 8, 8), (6, 1, 3, 3), (1, 6, 8, 8)),
            "depthwise convolutions, plain",
            8 * 8 * 6 * 9,
        ),
        (
            node("node_4", "MatMul", (1, 197, 64), (64, 96), (1, 197, 96)),
            "matrix products",
            197 * 96 * 64,
        ),
        (node("reorder", "ReorderOutput", (1, 16, 8, 8), (1, 16, 8, 8)), "reorders", 0),
        (node("node_5", "Softmax", (1, 4, 9, 9), (1, 4, 9, 9)), "other ops", 0),
    ],
)
def test_an_op_is_sorted_by_kind_and_layout(op: NodeTime, kind: str, macs: int) -> None:
    from latency_search_speedups import by_class

    assert by_class([op, op]) == {
        kind: {"ms": 2.0, "mmacs": round(2 * macs / 1e6, 4), "mb": 0.0, "ops": 2}
    }


def row(ratio: float) -> dict[str, Any]:
    def item(ms: float, mmacs: float, mb: float) -> dict[str, float]:
        return {"ms": ms, "mmacs": mmacs, "mb": mb, "ops": 1}

    return {
        "network": "net",
        "way": "FLOPs",
        "flops_share": 0.5,
        "speedup": {"ratio": ratio, "low": ratio, "high": ratio, "noisy": None},
        "ops": {
            "convolutions, blocked": [item(10, 400, 1), item(5, 200, 1)],
            "convolutions, plain": [None, item(4, 40, 1)],
            "reorders": [item(1, 0, 2), item(2, 0, 4)],
        },
    }


def test_what_is_named_is_what_took_more_than_its_share() -> None:
    from latency_search_report import explained

    assert explained(row(1.0)) == (
        "net, FLOPs (5.50 ms too many): "
        "convolutions, plain 0 ops 0.00 ms to 1 ops 4.00 ms (40 to 10 GMAC/s, before in blocks); "
        "reorders 1 ops 1.00 ms to 1 ops 2.00 ms (2.0 to 2.0 GB/s)."
    )
    assert explained(row(2.0)) is None
