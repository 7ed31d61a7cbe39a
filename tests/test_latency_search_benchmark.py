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


def test_a_search_by_time_is_held_against_the_rival_with_the_same_widths() -> None:
    from latency_search_accuracy import ARMS, BASE, FAIR, check_arms

    from pruneopt import UserError

    fair = [name for name, arm in ARMS.items() if arm.rival == FAIR]
    assert fair
    assert all(ARMS[name].round_to == ARMS[FAIR].round_to for name in fair)
    check_arms(ARMS)
    check_arms([BASE, FAIR])
    with pytest.raises(UserError, match=FAIR):
        check_arms([BASE, *fair])


def test_the_table_has_a_column_for_each_rival() -> None:
    from latency_search_report import RIVALS, tables

    def against(ratio: float) -> dict[str, Any]:
        return {"ratio": ratio, "low": ratio, "high": ratio, "noisy": None}

    odd, fair = RIVALS
    arm = {"flops_share": 0.5, "rounds": [], "test": 0.5}
    times = {
        "original": {"ms": 4.0, "against": {odd: against(0.5)}},
        odd: {"ms": 2.0, "against": {odd: against(1.0)}},
        fair: {"ms": 1.0, "against": {odd: against(2.0)}},
        "time": {"ms": 1.6, "against": {odd: against(1.25), fair: against(0.625)}},
    }
    row = {"network": "net", "seed": 0, "times": times}
    row["arms"] = dict.fromkeys((odd, fair, "time"), arm)
    table = tables([row], [])
    assert "| time | 50.0 % | 1.600 |  | 1.25 (1.25 to 1.25) | 0.62 (0.62 to 0.62) |" in table
    # Pairs with the second rival were not kept: the medians of the same turns, no interval.
    assert f"| {odd} | 50.0 % | 2.000 |  | 1.00 (1.00 to 1.00) | 0.50 |" in table
