"""The GPU benchmark, rehearsed on the processor, and what keeps its results when a part fails."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.passes.lowering.lower_statistics import lower_statistics

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results" / "gpu.json"


def load(name: str) -> Any:
    """A file of the benchmark, whose folder is no package."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


def interpretable() -> str:
    """Why Triton's interpreter cannot run here; empty where it can."""
    path = ROOT / "tests" / "kernels" / "test_interpreter.py"
    spec = importlib.util.spec_from_file_location("interpreter_of_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reason: str = module.interpretable()
    return reason


def entries(value: Any, key: str) -> Iterator[Any]:
    """Everything that stands under a key, at any depth."""
    if isinstance(value, dict):
        yield from (item for name, item in value.items() if name == key)
        for item in value.values():
            yield from entries(item, key)


@pytest.mark.slow  # 35 to 50 s of a processor
@pytest.mark.timeout(900)
def test_every_part_is_rehearsed(tmp_path: Path) -> None:
    reason = interpretable()
    if reason:
        pytest.skip(reason)
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    out = tmp_path / "rehearsed.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu.py"),
        "--rehearse",
        "--minutes",
        "14",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=880
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found, gpu = json.loads(out.read_text()), load("gpu")
    assert found["rehearsal"] is True
    assert list(found["parts"]) == list(gpu.PARTS)
    assert [row["state"] for row in found["parts"].values()] == ["done"] * len(gpu.PARTS)
    assert list(entries(found, "error")) == []
    # Nothing may be left out but what the machine or the project does not have.
    for why in entries(found, "skipped"):
        if isinstance(why, str):
            assert why.startswith(
                ("not there", "a graph for each", "the package cudnn", "cuDNN's graph has no")
            )
    ways = {*load("gpu_ways").EAGER, "P1", "P2", "P3"}
    for name in gpu.NETWORKS:
        keeps = found["parts"][name]["keep"]
        assert set(keeps) == {"0.5", "0.75", "1.0"}
        for row in keeps.values():
            assert {way for way, item in row["ways"].items() if item.get("ms", 0) > 0} == ways
    off = [value for name in gpu.NETWORKS for value in entries(found["parts"][name], "off")]
    assert len(off) == 7 * len(gpu.NETWORKS)
    assert max(off) < 2e-3  # every way takes the same statistics, in half precision
    assert found["parts"]["repeat"]["networks"]["mobilenet_v2"]["bit equal"] is True
    assert found["parts"]["tests"]["tests"]["passed"] > 0
    for name in ("statistics", "throughout"):
        # One of ten images.
        assert found["parts"]["ranks"][name]["largest difference, points"] <= 10.0
    logits = list(entries(found["parts"]["validation"], "off"))
    assert len(logits) == 3
    assert max(logits) < 1e-2
    tuned = json.loads((tmp_path / "rehearsed_tiles.json").read_text())
    assert tuned["for"]["device"] == "interpreter"
    assert len(tuned["tiles"]) == len(found["parts"]["tuner"]["classes"]) >= 3
    assert all(len(row["tried"]) == 2 and not row["failed"] for row in tuned["tiles"].values())
    tables = out.with_suffix(".md").read_text()
    assert tables.count("a rehearsal: not judged") >= 10
    assert " met" not in tables
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == before


def test_a_rehearsal_writes_no_results() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "a rehearsal measures nothing" in done.stderr


# Guards


def parts_of(guard: Any, *names: str) -> list[Any]:
    def run(name: str, row: dict[str, Any]) -> None:
        row["value"] = name
        if name == "bad":
            raise ValueError("no such thing")
        if name == "absent":
            raise guard.Skipped("nothing to do")

    return [
        guard.Part(name, f"does {name}", 1, lambda row, name=name: run(name, row)) for name in names
    ]


def test_a_failing_part_leaves_the_others(tmp_path: Path) -> None:
    guard = load("gpu_guard")
    results = guard.Results(tmp_path / "out.json")
    code = guard.perform(
        parts_of(guard, "first", "bad", "absent", "last"), results, guard.Clock(60), lambda: True
    )
    assert code == 0
    found = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert {name: row["state"] for name, row in found.items()} == {
        "first": "done",
        "bad": "failed",
        "absent": "done",
        "last": "done",
    }
    assert found["bad"]["error"] == "ValueError: no such thing"
    assert found["bad"]["value"] == "bad"  # what was known before it failed
    assert found["absent"]["skipped"] == "nothing to do"


def test_a_part_is_not_begun_without_time(tmp_path: Path) -> None:
    guard = load("gpu_guard")
    results = guard.Results(tmp_path / "out.json")
    guard.perform(parts_of(guard, "first"), results, guard.Clock(0.5), lambda: True)
    row = json.loads((tmp_path / "out.json").read_text())["parts"]["first"]
    assert row["state"] == "not begun"
    assert "value" not in row


def test_a_broken_device_ends_the_process(tmp_path: Path) -> None:
    guard = load("gpu_guard")
    results = guard.Results(tmp_path / "out.json")
    parts = parts_of(guard, "first", "last")
    assert guard.perform(parts, results, guard.Clock(60), lambda: False) == guard.BROKEN
    assert list(results.parts) == ["first"]


CHILD = """
import os, sys, time
from pathlib import Path
from gpu_guard import Clock, Part, Results, perform

def run(name, row):
    if name == "dies":
        row["half"] = 1
        results.write()
        os._exit(9)
    if name == "hangs":
        time.sleep(600)

results = Results(Path(sys.argv[1]))
parts = [Part(name, "", 0, lambda row, name=name: run(name, row)) for name in sys.argv[2:]]
raise SystemExit(perform(parts, results, Clock(60), lambda: "breaks" not in results.parts))
"""


def test_a_process_that_ends_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = load("gpu_guard")
    monkeypatch.setattr(guard, "GRACE", 0.0)
    script, out = tmp_path / "child.py", tmp_path / "out.json"
    script.write_text(CHILD)
    started: list[list[str]] = []

    def command(names: list[str]) -> list[str]:
        started.append(list(names))
        return [sys.executable, str(script), str(out), *names]

    paths = os.pathsep.join([str(BENCHMARKS), str(ROOT / "src")])
    results = guard.Results(out)
    results.write()
    clock = guard.Clock(40)
    guard.supervise(
        ["one", "dies", "two"], results, clock, command, os.environ | {"PYTHONPATH": paths}
    )
    found = json.loads(out.read_text())["parts"]
    assert started == [["one", "dies", "two"], ["two"]]
    assert {name: row["state"] for name, row in found.items()} == {
        "one": "done",
        "dies": "failed",
        "two": "done",
    }
    assert found["dies"]["error"] == "its process ended with code 9"
    assert found["dies"]["half"] == 1


def test_a_process_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = load("gpu_guard")
    monkeypatch.setattr(guard, "GRACE", 0.0)
    script, out = tmp_path / "child.py", tmp_path / "out.json"
    script.write_text(CHILD)
    results = guard.Results(out)
    results.write()
    paths = os.pathsep.join([str(BENCHMARKS), str(ROOT / "src")])
    guard.supervise(
        ["one", "hangs", "two"],
        results,
        guard.Clock(8),
        lambda names: [sys.executable, str(script), str(out), *names],
        os.environ | {"PYTHONPATH": paths},
    )
    found = json.loads(out.read_text())["parts"]
    assert {name: row["state"] for name, row in found.items()} == {
        "one": "done",
        "hangs": "failed",
        "two": "not begun",
    }
    assert "was stopped" in found["hangs"]["error"]


# What is made of the figures


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (2.5, "moonshot met"),
        (2.0, "target met"),
        (1.7, "gate met"),
        (1.0, "gate missed"),
        (None, "not measured"),
    ],
)
def test_verdicts(value: float | None, told: str) -> None:
    made = load("gpu_report")
    goal = made.GOALS[0]
    assert (goal.gate, goal.target, goal.moonshot) == (1.6, 2.0, 2.4)
    assert made.verdict(goal, value, rehearsal=False) == told
    assert " met" not in made.verdict(goal, value, rehearsal=True)


def test_goals_read_the_interleaved_run() -> None:
    made = load("gpu_report")
    ways = {"B4": {"ms": 30.0}, "P1": {"ms": 12.0}, "B1": {"error": "out of memory"}}
    results = {
        "rehearsal": False,
        "parts": {"resnet50": {"batches": 1, "images": 2, "dtype": "", "keep": {"0.75": {}}}},
    }
    results["parts"]["resnet50"]["keep"]["0.75"] = {"ways": ways}  # type: ignore[index]
    assert made.GOALS[0].value(results) == 2.5
    text = made.report(results)
    assert "| statistics, ResNet-50, P1 by B4 | 2.5 | 1.6 | 2 | 2.4 | moonshot met |" in text
    assert "| ResNet-50, P1 by B1 |  | 3 | 3.8 | 4.5 | not measured |" in text
    assert "out of memory" in text


def test_what_pytest_says_is_counted_also_when_it_was_stopped() -> None:
    said = "\n".join(
        (
            "tests/kernels/a.py::test_one[fp32] PASSED                [ 25%]",
            "[gw1] [ 50%] PASSED tests/kernels/a.py::test_one[bf16] ",
            "[gw0] [ 75%] FAILED tests/kernels/a.py::test_two ",
            "tests/kernels/a.py::test_three ERROR",
            "tests/kernels/a.py::test_four",
            "FAILED tests/kernels/a.py::test_two - AssertionError: y is off",
        )
    )
    found = load("gpu_tests").counted(said)
    assert (found["passed"], found["failed"], found["not run for errors"], found["skipped"]) == (
        2,
        1,
        1,
        0,
    )
    assert found["which failed"] == ["tests/kernels/a.py::test_two"]


def test_bytes_and_operations_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    net.append(nn.BatchNorm2d(4))
    graph = capture(net.eval(), torch.zeros(2, 3, 5, 5))
    work_of = load("gpu_counts").work_of
    images, pixels = 10, 25
    x, a, b = (images * pixels * channels for channels in (3, 8, 4))
    # Convolutions read and write, batch norms read twice and write, an activation reads and writes.
    eager = (x + a + 216) + (3 * a + 4 * 8) + 2 * a + (a + b + 32 + 4) + (3 * b + 4 * 4)
    # Each convolution reads its input raw and writes its output raw; the rest is per channel.
    fused = (x + a + 216) + (a + b + 32)
    assert work_of(graph, images, 2).bytes == 2 * eager
    lowered = work_of(lower_statistics(graph).graph, images, 2)
    assert 0 <= lowered.bytes - 2 * fused <= 2 * 20 * 8
    assert (
        lowered.operations
        == work_of(graph, images, 2).operations
        == 2 * images * pixels * (216 + 32)
    )


def test_the_rules_for_scores() -> None:
    scores = load("gpu_scores")
    eager = torch.zeros(6, 1000, dtype=torch.float64)
    for number in range(6):
        eager[number, : 500 + 40 * number] = 1
    same = scores.agreement(eager, eager)
    assert scores.within(same)
    assert (same["spearman"], same["largest difference, points"], same["same five best"]) == (
        1.0,
        0.0,
        True,
    )
    other = eager.clone()
    other[0, :] = 1  # the worst becomes the best
    found = scores.agreement(eager, other)
    assert found["largest difference, points"] == pytest.approx(50.0)
    assert found["images judged otherwise"] == pytest.approx(500 / 6000, abs=1e-6)
    assert not found["same five best but for ties"]
    assert not scores.within(found)
