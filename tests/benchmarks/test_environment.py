"""What stands beside a measured row: rows keep what they were measured by when others are measured
later."""

import argparse
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_row_names_the_commit_and_that_files_differ_from_it(tmp_path: Path) -> None:
    from environment import commit

    fresh = commit.__wrapped__  # it is asked once in a process
    assert fresh(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "one.py"
    file.write_text("1\n")
    git(tmp_path, "add", "."), git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert fresh(tmp_path) == head[:12]
    (tmp_path / "notes").write_text("of nobody's concern\n")
    assert fresh(tmp_path) == head[:12]
    file.write_text("2\n")
    assert fresh(tmp_path) == f"{head[:12]}+changes"


def test_a_stamped_row_has_versions_processor_and_commit_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import environment

    monkeypatch.setattr(environment, "commit", lambda: "abc")
    row = {"seconds": 1.0}
    stamped = environment.stamped(row)
    assert row == {"seconds": 1.0}
    assert stamped["seconds"] == 1.0
    assert stamped["environment"]["commit"] == "abc"
    assert {"torch", "cpu", "cores", "python"} <= set(stamped["environment"])


def test_rows_of_another_part_keep_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import environment
    from latency_search import Rows

    rows = Rows(tmp_path / "found.json")
    for machine, seed in (("old", 0), ("new", 1), ("newer", 1)):
        monkeypatch.setattr(environment, "environment", lambda machine=machine: {"cpu": machine})
        rows.put("accuracy", environment.stamped({"network": "n", "seed": seed}), "network", "seed")
    assert [row["environment"]["cpu"] for row in rows.of("accuracy")] == ["old", "newer"]
    assert "environment" not in json.loads(rows.path.read_text())


def test_stages_that_a_sweep_leaves_out_keep_what_they_were_measured_by() -> None:
    from coverage import merged

    plan = dict.fromkeys(
        ("parameters", "ops", "groups", "flops", "target", "achieved_flops", "achieved_params"), 1
    )
    old = {"until": "apply", "seconds": {"verify": 1, "onnx": 2}, "onnx_error": 0.5, **plan}
    old["environment"] = {"cpu": "old"}
    new = {"until": "apply", "seconds": {"verify": 3}, "skipped": ["onnx"], **plan}
    new["environment"] = {"cpu": "new"}
    row = merged(old, new)
    assert row["onnx_error"] == 0.5
    assert row["environment"] == {"cpu": "new"}
    assert row["kept_from"] == {"onnx": {"cpu": "old"}}
    again = merged(row, {**new, "environment": {"cpu": "newest"}})
    assert again["kept_from"] == {"onnx": {"cpu": "old"}}


def test_a_bundle_that_is_there_keeps_what_it_was_made_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cifar10

    def compiled(command: list[str], check: bool) -> None:
        bundle = Path(command[command.index("--out") + 1])
        bundle.mkdir()
        (bundle / "report.json").write_text("{}")

    monkeypatch.setattr(subprocess, "run", compiled)
    options = argparse.Namespace(out=tmp_path, weights=tmp_path, data="none")
    for machine in ("first", "second"):
        monkeypatch.setattr(cifar10, "environment", lambda machine=machine: {"cpu": machine})
        found = cifar10.report("resnet20 l1", options)
        assert found["environment"] == {"cpu": "first"}


@pytest.mark.parametrize(
    "name", ["analysis", "evaluate", "latency", "latency_search", "methods", "coverage", "cifar10"]
)
def test_every_saved_row_says_what_it_was_measured_by(name: str) -> None:
    saved = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert "environment" not in saved
    rows = list(measured(name, saved))
    assert rows
    assert all({"cpu", "torch"} <= set(row["environment"]) for row in rows)


def measured(name: str, saved: dict[str, Any]) -> list[dict[str, Any]]:
    if name == "evaluate":
        networks = saved["networks"].values()
        return [row[way] for row in networks for way in "abcdefgh" if way in row]
    if name == "latency_search":
        arms = [arm for row in saved["accuracy"] for arm in row["arms"].values()]
        return [*saved["accuracy"], *arms, *saved["speedups"]]
    part = {"analysis": "networks", "coverage": "networks", "methods": "runs"}.get(name, "rows")
    rows = saved[part]
    return list(rows.values()) if isinstance(rows, dict) else rows


def test_programs_import_where_the_peer_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "torch_pruning", None)
    monkeypatch.delitem(importlib.import_module("sys").modules, "analysis", raising=False)
    analysis = importlib.import_module("analysis")
    row = analysis.measure_peer(None, lambda row: None)
    assert row == {"cpu": {}, "error": "not measured: torch-pruning is not installed"}
