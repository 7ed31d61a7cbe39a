"""Schemas, results and Network Slimming on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


def test_inspect_writes_a_schema(call: Call, tiny: Path, tmp_path: Path) -> None:
    assert call("inspect", tiny, "--groups", "--pns-schema", tmp_path / "s.json").code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == {
        "prefix": "",
        "channel_rounding": "none",
        "modules": [
            {"name": "conv1", "prev_bn": "", "next_bn": "norm1"},
            {"name": "conv2", "prev_bn": "norm1", "next_bn": "norm2"},
            {"name": "head", "prev_bn": "norm2", "next_bn": ""},
        ],
        "shortcuts": [],
        "depthwise_conv_adjacent_bn": [],
        "cats": [],
        "fixed_bn_ratio": [],
    }


def test_a_plan_becomes_a_result_and_is_compiled_from_it(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    out, again, result = tmp_path / "o", tmp_path / "again", tmp_path / "r.json"
    assert call("compile", tiny, "--budget", "50%FLOPs", "--out", out, "--quiet").code == 0
    assert (
        call("inspect", tiny, "--groups", "--plan", out / "plan.json", "--pns-result", result).code
        == 0
    )
    entries = json.loads(result.read_text())
    assert [entry["name"] for entry in entries] == ["norm1", "norm2", "conv1", "conv2", "head"]
    done = call("compile", tiny, "--pass", f"plan{{file={result}}}", "--out", again, "--json")
    report = json.loads(done.out)
    assert report["search"]["form"] == "pns result"
    first, second = (
        json.loads((folder / "plan.json").read_text())["groups"] for folder in (out, again)
    )
    assert second == first
    assert call("inspect", tiny, "--groups", "--plan", result).out == (
        call("inspect", tiny, "--groups", "--plan", out / "plan.json").out
    )


def test_a_result_needs_a_plan(call: Call, tiny: Path, tmp_path: Path) -> None:
    done = call("inspect", tiny, "--pns-result", tmp_path / "r.json")
    assert done.code == 2
    assert done.sentence == "--pns-result writes what a plan keeps: give it with --plan"


def test_slimming_from_the_command_line(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Sparse training, the cut, the proof, and what the floor kept as a note of the report."""
    text = (
        "slimming{ratio=0.9 regulariser=gamma-l1{scale=0.01} recipe=sgd{epochs=1 lr=0.1 "
        "batch-size=64}}"
    )
    words = [
        "--data",
        "digits?subval=300&calibration=100",
        "--min-channels",
        "4",
        "--out",
        tmp_path / "o",
        "--json",
    ]
    done = call("compile", tiny, "--pass", text, *words)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert "min-channels=4" in report["pass"]
    assert report["search"]["variant"] == "network slimming"
    assert report["search"]["rounds"][0]["regulariser"]["reached"] == 2
    kept = {group["name"]: group["kept"] for group in report["groups"] if group["frozen"] is None}
    assert min(kept.values()) == 4
    floors = [note for note in report["notes"] if "its floor keeps 4" in note]
    assert (
        len(floors) == sum(group["reason"] == "floor" for group in report["search"]["groups"]) > 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pass", "slimming{ratio=0.5}"], "slimming needs data"),
        (["--pass", "slimming", "--data", "digits"], "there is nothing to aim at"),
        (["--pass", "plan"], "plan needs the option 'file'"),
    ],
)
def test_what_is_missing_is_said(call: Call, tiny: Path, words: list[str], message: str) -> None:
    done = call("compile", tiny, *words)
    assert done.code == 2
    assert message in done.err
