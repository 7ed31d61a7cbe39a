"""``pruneopt latency``, ``profile --target``, and compiling to a budget on a target; no time itself
is asserted."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


def test_measure_show_merge_compile(call: Call, tiny: Path, tmp_path: Path) -> None:
    times, out = tmp_path / "times.db", tmp_path / "out"
    done = call(
        "latency", "measure", tiny, "--target", "torch-cpu", "--minutes", 0.1, "--db", times
    )
    assert done.code == 0, done.err
    assert "on torch-cpu (torch" in done.out
    assert call("latency", "merge", times, times, "--out", tmp_path / "all.db").code == 0
    shown = call("latency", "show", tmp_path / "all.db").out
    assert shown == call("latency", "show", times).out
    assert "torch-cpu" in shown

    budgets = ("--budget", "1000s@torch-cpu", "--budget", "60%FLOPs")
    done = call(
        "compile",
        tiny,
        *budgets,
        "--latency-db",
        times,
        "--latency-minutes",
        0,
        "--out",
        out,
        "--json",
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    (found,) = report["latency"]["targets"]
    assert found["target"] == "torch-cpu"
    assert (
        min(
            found[name] for name in ("predicted", "predicted_before", "measured", "measured_before")
        )
        > 0
    )
    time = next(item for item in report["budgets"] if item["unit"] == "latency@torch-cpu")
    assert (time["achieved"], time["original"]) == (
        1e9 * found["measured"],
        1e9 * found["measured_before"],
    )
    assert time["met"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Time on targets" in page
    assert "torch-cpu predicted" in page


def test_a_budget_that_nothing_reaches_names_the_smallest(
    call: Call, tiny: Path, tmp_path: Path
) -> None:
    done = call(
        "compile",
        tiny,
        "--budget",
        "1ns@torch-cpu",
        "--latency-minutes",
        0.1,
        "--out",
        tmp_path / "out",
    )
    assert done.code == 3
    assert "the budget '1ns@torch-cpu' is out of reach" in done.sentence
    assert "ms@torch-cpu" in done.sentence


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--budget", "50%FLOPs", "--latency-minutes", 1),
            "--latency-minutes is for budgets that name a target",
        ),
        (("--budget", "4ms@ort-cpu{dtype=int8}"), "times on ort-cpu{dtype=int8} are not predicted"),
        (("--budget", "50%FLOPs@ort-cpu"), "names a target, which only a time has"),
    ],
)
def test_what_is_refused(
    call: Call, tiny: Path, tmp_path: Path, words: tuple[Any, ...], says: str
) -> None:
    done = call("compile", tiny, *words, "--out", tmp_path / "out")
    assert done.code == 2
    assert says in done.sentence
    assert not (tmp_path / "out").exists()


def test_profile_on_a_target(call: Call, tiny: Path, tmp_path: Path) -> None:
    picture = tmp_path / "roofline.svg"
    done = call("profile", tiny, "--target", "ort-cpu", "--picture", picture)
    assert done.code == 0, done.err
    assert {"conv1", "conv2"} <= {line.split()[0] for line in done.out.splitlines() if line}
    spots = [
        item for item in ElementTree.parse(picture).getroot().iter() if item.tag.endswith("circle")
    ]
    assert len(spots) >= 3, "one for each layer"
    data = json.loads(call("profile", tiny, "--target", "torch-cpu", "--json").out)
    assert sum(op["share"] for op in data["ops"]) == pytest.approx(1)
    both = call("profile", tiny, "--target", "ort-cpu", "--out", tmp_path / "t.json")
    assert both.code == 2
    done = call("profile", tiny, "--out", tmp_path / "t.json", "--picture", picture)
    assert "--picture and --json show the profile on a target" in done.sentence


def test_single_weights_have_no_widths_to_round(call: Call, tiny: Path, tmp_path: Path) -> None:
    words = (
        "compile",
        tiny,
        "--pass",
        "l1{granularity=weight}",
        "--latency-minutes",
        0.1,
        "--out",
        tmp_path / "out",
    )
    done = call(*words, "--budget", "1000s@torch-cpu")
    assert done.code == 2
    assert "cannot be met by single weights" in done.err
