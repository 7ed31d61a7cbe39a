"""A search put together on the command line: shown, run, killed, resumed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import entries_of, unfinished, wait_for

from pruneopt.passes.options.registry import part_names

Call = Callable[..., Any]
SMALL = "calibration-batches=1 batch-size=64 subval-limit=64 finetune-epochs=0"
EVOLUTION = (
    f"abn{{searcher=evolution{{population=4 iterations=3 parents=2}} ranking=reward "
    f"window=0.3 {SMALL}}}"
)


def words(out: Path) -> list[object]:
    network = ["compile", "zoo:digits_resnet", "--data", "digits"]
    return [*network, "--pass", EVOLUTION, "--budget", "50%FLOPs", "--out", out]


@pytest.mark.slow
def test_an_evolution_killed_and_resumed_gives_the_same(
    start: Callable[..., subprocess.Popen[str]], call: Call, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = call(*words(whole), "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("50%FLOPs met with ")
    report = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    candidates = report["search"]["candidates"]
    assert len(candidates) == 12
    assert len({tuple(item["widths"].values()) for item in candidates}) == 12
    assert report["search"]["winner"]["fitness"] == max(item["fitness"] for item in candidates)

    process = start(*words(killed))
    wait_for(killed / "search.jsonl", 5, process)
    process.kill()
    process.communicate()
    assert unfinished(killed) == ["search.jsonl"]
    done = call(*words(killed), "--quiet", "--resume")
    assert done.code == 0, done.err
    assert entries_of(killed / "search.jsonl") == entries_of(whole / "search.jsonl")
    for name in ("plan.json", "model.py", "weights.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_another_searcher_does_not_resume(call: Call, tmp_path: Path) -> None:
    base = [
        "compile",
        "zoo:digits_resnet",
        "--data",
        "digits",
        "--budget",
        "50%FLOPs",
        "--out",
        tmp_path / "o",
    ]
    done = call(*base, "--pass", f"abn{{candidates=1 {SMALL}}}", "--quiet")
    assert done.code == 0, done.err
    done = call(*base, "--pass", f"abn{{searcher=tpe{{candidates=1}} {SMALL}}}", "--resume")
    assert done.code == 2
    assert "belongs to another search (the options differ)" in done.sentence


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("abn{searcher=evolutoin}", 14, "there is no searcher 'evolutoin'"),
        ("abn{searcher=evolution{populaton=3}}", 24, "evolution has no option 'populaton'"),
        ("abn{searcher=evolution{population=0}}", 14, "evolution: population=0 must be at least 1"),
        ("abn{searcher=evolution max-ratio=0.5}", 24, "abn has no option 'max-ratio'"),
    ],
)
def test_mistakes_inside_a_part(call: Call, text: str, column: int, message: str) -> None:
    done = call(
        "compile", "zoo:digits_resnet", "--data", "digits", "--pass", text, "--budget", "50%FLOPs"
    )
    assert done.code == 2
    assert message in done.err
    assert f":1:{column}: error:" in done.err
    assert "Traceback" not in done.err


def test_passes_shows_the_parts_of_a_kind(call: Call) -> None:
    done = call("passes", "searcher")
    assert done.code == 0
    heads = [
        line.partition(":")[0]
        for line in done.out.splitlines()
        if line and not line.startswith(" ")
    ]
    assert heads == [f"{name} (searcher)" for name in part_names("searcher")]
    data = json.loads(call("passes", "evolution", "--json").out)
    assert [(item["name"], item["kind"]) for item in data] == [("evolution", "searcher")]
    options = {option["name"]: option["default"] for option in data[0]["options"]}
    assert (options["population"], options["iterations"], options["probability"]) == (50, 20, 0.1)


def test_a_name_of_several_kinds_shows_all(call: Call) -> None:
    heads = [
        line.partition(":")[0]
        for line in call("passes", "random").out.splitlines()
        if line[:1].isalpha()
    ]
    assert heads == ["random", "random (criterion)", "random (searcher)"]


def test_an_unknown_name_is_matched_with_parts_too(call: Call) -> None:
    done = call("passes", "evolutoin")
    assert done.code == 2
    assert "did you mean evolution" in done.sentence
