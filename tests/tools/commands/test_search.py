"""Searching from the command line: what it reports, what an interrupt leaves, and what a killed
search resumes to."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import report_of, unfinished, wait_for

Call = Callable[..., Any]
SMALL = "calibration-batches=1 batch-size=64 subval-limit=64 finetune-epochs=0"
COUNT = 25


def words(example: str, out: Path, candidates: int = COUNT) -> list[object]:
    text = f"abn{{candidates={candidates} {SMALL}}}"
    return ["compile", example, "--pass", text, "--budget", "50%FLOPs", "--out", out]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, command: Call, example: str) -> Path:
    """A search that ran to its end."""
    out = tmp_path_factory.mktemp("searched") / "o"
    done = command(*words(example, out), "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("equivalent; 50%FLOPs met with ")
    return out


def test_the_report_holds_the_search(searched: Path) -> None:
    report = report_of(searched)
    assert len(report["search"]["candidates"]) == COUNT
    best = max(item["score"] for item in report["search"]["candidates"])
    assert report["search"]["winner"]["score"] == best
    assert [item["after"] for item in report["scores"]] == ["original", "slice", "recalibrate"]
    assert report["pruned"]["accuracy"] == report["scores"][-1]["score"]
    assert (searched / "search.jsonl").read_bytes().count(b"\n") >= COUNT + 1


def test_killed_and_resumed_it_gives_the_same(
    searched: Path,
    start: Callable[..., subprocess.Popen[str]],
    call: Call,
    example: str,
    tmp_path: Path,
) -> None:
    out = tmp_path / "o"
    process = start(*words(example, out))
    wait_for(out / "search.jsonl", 3, process)
    process.kill()
    process.communicate()
    assert unfinished(out) == ["search.jsonl"], "no part of a bundle"
    done = call(*words(example, out), "--quiet")
    assert done.code == 2
    assert "--resume continues its search" in done.sentence
    done = call(*words(example, out), "--quiet", "--resume")
    assert done.code == 0, done.err
    for name in ("plan.json", "model.py", "weights.safetensors"):
        assert (out / name).read_bytes() == (searched / name).read_bytes(), name
    assert not report_of(out)["interrupted"]


def test_resuming_another_search_is_refused(call: Call, searched: Path, example: str) -> None:
    before = (searched / "report.json").read_bytes()
    done = call(*words(example, searched), "--resume", "--seed", 5)
    assert done.code == 2
    assert "belongs to another run (seed 0 there, 5 here)" in done.sentence
    assert (searched / "report.json").read_bytes() == before


def test_blank_lines_and_comments_in_the_model_file_make_no_other_search(
    call: Call, searched: Path, example: str, tmp_path: Path
) -> None:
    out, copy = tmp_path / "o", tmp_path / Path(example).name
    shutil.copytree(searched, out)
    source = Path(example).read_text(encoding="utf-8")
    copy.write_text(source.replace("\n\n", "\n\n# A remark.\n\n\n"), encoding="utf-8")
    journal = (out / "search.jsonl").read_bytes()
    done = call(*words(str(copy), out), "--resume", "--quiet")
    assert done.code == 0, done.err
    assert (out / "search.jsonl").read_bytes() == journal, "nothing is judged again"
    assert (out / "plan.json").read_bytes() == (searched / "plan.json").read_bytes()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupted_it_delivers_the_best(
    start: Callable[..., subprocess.Popen[str]],
    example: str,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    out = tmp_path / "o"
    process = start(*words(example, out, candidates=100_000), "--finetune-epochs", 1000)
    wait_for(out / "search.jsonl", 2, process)
    process.send_signal(number)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"pruneopt: {number.name}: keeping what there is" in errors
    assert "Traceback" not in errors
    assert "interrupted, the best so far: equivalent; 50%FLOPs met with" in text
    report = report_of(out)
    assert report["interrupted"]
    assert 1 <= len(report["search"]["candidates"]) < 100_000
    best = max(item["score"] for item in report["search"]["candidates"])
    assert report["search"]["winner"]["score"] == best
    assert (out / "model.onnx").exists()
    assert (out / "search.jsonl").exists()
    assert "stopped" in (out / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_interrupted_while_training_it_delivers_what_was_proved(
    call: Call, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pruneopt.passes.transform.finetune.train_state", stop)
    done = call(
        "compile", example, "--budget", "50%FLOPs", "--finetune-epochs", 9, "--out", tmp_path / "o"
    )
    assert (done.code, done.err) == (130, "")
    report = report_of(tmp_path / "o")
    assert report["interrupted"]
    assert [item["after"] for item in report["scores"]] == ["original", "slice"]
    assert "note: interrupted: what was to follow the proof is left out" in done.out


def test_interrupted_before_there_is_anything(
    call: Call, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pruneopt.tools.commands.compile.captured", stop)
    done = call(*words(example, tmp_path / "o"))
    assert done.code == 130
    assert done.sentence.startswith("interrupted")
    assert not (tmp_path / "o").exists()
