"""``pruneopt profile``, and compiling to a budget in milliseconds by the table it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruneopt.passes.analysis.cost.latency_table import load_table


def even(path: Path) -> None:
    """Replace what was measured by a nanosecond for each product of widths: the same on every
    machine."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for entry in data["layers"].values():
        entry["seconds"] = [[1e-9 * x * y for y in entry["outputs"]] for x in entry["inputs"]]
    path.write_text(json.dumps(data), encoding="utf-8")


def test_profile_then_compile(call: Callable[..., Any], tiny: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    done = call(
        "profile", tiny, "--out", table, "--points", 3, "--repeats", 1, "--batch", 2, "--threads", 1
    )
    assert done.code == 0, done.err
    assert "3 layers with 100.0 % of the FLOPs" in done.out
    assert "measured on cpu, 1 threads, batch 2" in done.out
    assert load_table(table).layers["conv2"].seconds.shape == (3, 3)

    even(table)
    pipeline = f"couple,cost{{latency={table}}},l1,slice,verify"
    # The original takes 1 * 8 + 8 * 12 + 12 * 10 nanoseconds.
    done = call(
        "compile",
        tiny,
        "--pipeline",
        pipeline,
        "--budget",
        "100ns",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["original"]["latency"] == 224
    kept = {group["name"]: group["kept"] for group in report["groups"]}
    assert (
        report["pruned"]["latency"]
        == kept["conv1"] + kept["conv1"] * kept["conv2"] + 10 * kept["conv2"]
        <= 100
    )
    assert report["budgets"][0]["met"] is True
    assert "latency by table" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    done = call(
        "compile", tiny, "--pipeline", pipeline, "--budget", "1ns", "--out", tmp_path / "none"
    )
    assert done.code == 3
    assert "cannot be made smaller than 1.2e-05 ms" in done.sentence


def test_reports_without_a_table_do_not_speak_of_latency(
    call: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    done = call("compile", tiny, "--budget", "50%FLOPs", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    for name in ("report.json", "report.html"):
        assert "latency by table" not in (tmp_path / "out" / name).read_text(encoding="utf-8")
    assert (
        "latency"
        not in json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))[
            "original"
        ]
    )
    assert "latency" not in done.out


def test_a_budget_in_time_without_a_table_says_how_to_get_one(
    call: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    done = call("compile", tiny, "--budget", "4ms", "--out", tmp_path / "out")
    assert done.code == 2
    assert "needs a latency table" in done.sentence
    assert "pruneopt profile MODEL --out table.json" in done.sentence


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--points", "1"], "points=1 must be at least 2"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--out", "/no/such/folder/table.json"], "cannot write /no/such/folder/table.json"),
    ],
)
def test_refused(
    call: Callable[..., Any], tiny: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    done = call("profile", tiny, "--out", tmp_path / "table.json", "--repeats", "1", *words)
    assert done.code == 2
    assert message in done.sentence
    assert not (tmp_path / "table.json").exists()
