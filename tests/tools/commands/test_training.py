"""Training from the command line: what a killed or interrupted run leaves, and what it resumes
to."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import unfinished

Call = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]
BUNDLE = ("plan.json", "model.py", "weights.safetensors")


def words(example: str, out: Path, epochs: int, *, last: int = 1) -> list[object]:
    """Two training runs after a cut."""
    tune = (
        f"finetune{{epochs={epochs} batch-size=16 lr=0.05}},finetune{{epochs={last} batch-size=16}}"
    )
    pipeline = f"couple,cost,l1{{budget=50%FLOPs}},slice,verify,{tune}"
    return ["compile", example, "--pipeline", pipeline, "--out", out, "--quiet"]


def wait_for(path: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    """Until a state holds so many epochs."""
    while True:
        assert process.poll() is None, process.communicate()
        if path.exists() and torch.load(path, weights_only=True)["epoch"] > epoch:
            return
        time.sleep(0.01)


def test_killed_and_resumed_it_gives_the_same(
    start: Start, call: Call, example: str, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "cut"
    done = call(*words(example, whole, 12))
    assert done.code == 0, done.err
    assert not list(whole.glob("*.ckpt"))
    process = start(*words(example, out, 12))
    wait_for(out / "finetune.ckpt", 2, process)
    process.kill()
    process.communicate()
    assert unfinished(out) == ["finetune.ckpt"]
    done = call(*words(example, out, 12))
    assert done.code == 2
    assert "--resume continues its training" in done.sentence
    done = call(*words(example, out, 9), "--resume")
    assert done.code == 2
    assert (
        "finetune.ckpt was left by another training run (epochs 12 there, 9 here)" in done.sentence
    )
    done = call(*words(example, out, 12), "--resume")
    assert done.code == 0, done.err
    for name in BUNDLE:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(
    start: Start, call: Call, example: str, tmp_path: Path
) -> None:
    """Killed in the second run, the first is taken from its state."""
    out = tmp_path / "o"
    process = start(*words(example, out, 1, last=500))
    wait_for(out / "finetune.2.ckpt", 1, process)
    process.kill()
    process.communicate()
    first, second = out / "finetune.ckpt", out / "finetune.2.ckpt"
    assert torch.load(first, weights_only=True)["finished"]
    assert not torch.load(second, weights_only=True)["finished"]
    written = first.stat().st_mtime_ns
    process = start(*words(example, out, 1, last=500), "--resume")
    wait_for(second, torch.load(second, weights_only=True)["epoch"], process)
    process.kill()
    process.communicate()
    assert first.stat().st_mtime_ns == written
    assert call(*words(example, out, 1), "--force").code == 0
    assert not list(out.glob("*.ckpt"))


@pytest.mark.slow
def test_interrupted_the_proved_network_is_delivered_and_training_can_go_on(
    start: Start, call: Call, example: str, tmp_path: Path
) -> None:
    out, line = tmp_path / "o", words(example, tmp_path / "o", 30)
    process = start(*line)
    wait_for(out / "finetune.ckpt", 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["interrupted"]
    assert "finetune" not in report["records"]
    reached = torch.load(out / "finetune.ckpt", weights_only=True)["iteration"]
    assert reached > 0
    done = call(*line, "--resume")
    assert done.code == 0, done.err
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert not report["interrupted"]
    assert [epoch["epoch"] for epoch in report["records"]["finetune"]["epochs"]]
    assert not list(out.glob("*.ckpt"))


def test_nothing_to_resume(call: Call, example: str, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    done = call(*words(example, tmp_path / "o", 1), "--resume")
    assert done.code == 2
    assert "holds no search.jsonl and no state of a training" in done.sentence


def test_what_a_killed_write_leaves_is_removed(call: Call, example: str, tmp_path: Path) -> None:
    out = tmp_path / "o"
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (".partial-abc", ".partial-mine"):
        (out / name).mkdir(parents=True)
        (out / name / "finetune.ckpt").write_bytes(b"half")
    owner = f"{dead.pid} {socket.gethostname()}\n"
    (out / ".partial-abc" / ".pruneopt").write_text(owner, encoding="utf-8")
    done = call(*words(example, out, 0), "--force")
    assert done.code == 0, done.err
    assert [path.name for path in out.glob(".partial*")] == [".partial-mine"], "not ours"


@pytest.mark.parametrize("option", ["--force", "--resume"])
def test_files_of_others_stay(call: Call, example: str, tmp_path: Path, option: str) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    done = call(*words(example, out, 1), option)
    assert done.code == (2 if option == "--resume" else 0), done.err
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_interrupted_before_the_proof_it_says_how_to_go_on(
    start: Start, call: Call, example: str, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    options = "slimming{budget=70%FLOPs recipe=sgd{epochs=400 batch-size=16}}"
    process = start("compile", example, "--pass", options, "--out", out, "--quiet")
    wait_for(out / "slimming.ckpt", 1, process)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert (process.returncode, text) == (130, "")
    assert errors.splitlines() == [
        "pruneopt: SIGINT: keeping what there is; again to stop at once",
        "pruneopt: interrupted: no bundle was written; --resume continues it",
    ]
    assert (out / "slimming.ckpt").exists()
