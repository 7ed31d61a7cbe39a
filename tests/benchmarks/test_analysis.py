"""The benchmark of analysis: which figures are held against which."""

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def row(name: str, capture: float, couple: float, manager: float | None, peer: Any) -> Any:
    stages = dict.fromkeys(("cost", "score", "select", "slice", "build"), 0.1)
    cpu = {"capture": capture, "couple": couple, **stages}
    if manager is not None:
        cpu["documented"] = manager
    return {"network": f"zoo:{name}", "ours": {"cpu": cpu}, "peer": peer}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_peer_is_held_against_capture_stages_and_the_pass_manager() -> None:
    from analysis import table

    rows = [
        row("one", 0.3, 0.1, 4.0, {"cpu": {"analysis": 0.8, "whole": 1.8}}),
        row("two", 0.1, 0.1, None, {"cpu": {"analysis": 0.1, "whole": 1.4}}),
        row("three", 0.1, 0.1, 1.0, {"cpu": {}, "error": "it fell over"}),
    ]
    heads, _, one, two, three, total, _ = cells(table(rows))
    named = [dict(zip(heads, line, strict=True)) for line in (one, two, three)]
    assert named[0]["ratio"] == "8.0"
    assert named[0]["ratio with capture"] == "2.0"
    assert named[0]["ratio of stages"] == "2.0"
    assert named[0]["ratio of PassManager"] == "0.45"
    assert named[1]["ratio with capture"] == "0.50"
    assert named[1]["PassManager"] == named[1]["ratio of PassManager"] == ""
    assert named[2]["ratio"] == ""
    assert named[2]["peer's outcome"] == "it fell over"
    # Sums: 0.9 by 0.2, 0.9 by 0.6, 3.2 by 1.6 (0.9 and 0.7), 1.8 by 4.0.
    assert total[4:6] == ["4.5", "1.5"]
    assert total[9:11] == ["2.0", "0.45"]


def test_the_documented_way_is_timed_and_leaves_what_the_stages_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import analysis

    from pruneopt import load_model

    loaded: Any = load_model("zoo:resnet20")
    original = sum(p.numel() for p in loaded.module.parameters())
    found = analysis.measure_ours(loaded)
    assert found["params"] < 0.4 * original  # half of all widths leave a fourth of most layers
    assert found["cpu"]["documented"] > 0
    monkeypatch.setattr(analysis, "documented", lambda loaded: loaded.module)
    with pytest.raises(RuntimeError, match=f"PassManager left {original} parameters"):
        analysis.measure_ours(loaded)
