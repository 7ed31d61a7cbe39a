"""compile in two processes that torchrun starts: one bundle, one report, the same network."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.commands import report_of

PIPELINE = (
    "couple,cost,abn{budget=50%FLOPs candidates=6 calibration-batches=1 batch-size=64 "
    "subval-limit=64},slice,verify"
)


def start(
    example: str, out: Path, *words: object, epochs: int = 2, last: str = ""
) -> subprocess.Popen[str]:
    pipeline = f"{PIPELINE},finetune{{epochs={epochs} batch-size=16 lr=0.05}}{last}"
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    line += [
        "-m",
        "pruneopt.tools.main",
        "compile",
        example,
        "--pipeline",
        pipeline,
        "--out",
        str(out),
        *map(str, words),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_one_process_speaks_for_all(example: str, tmp_path: Path) -> None:
    out = tmp_path / "o"
    process = start(example, out, "--json")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors == ""
    assert json.loads(printed) == report_of(out)
    log = report_of(out)["records"]["finetune"]
    # Both halves of every batch count.
    assert [epoch["samples"] for epoch in log["epochs"]] == [log["steps"] // 2 * 16] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o"]


@pytest.mark.slow
def test_killed_and_resumed(example: str, tmp_path: Path) -> None:
    """After the search, in training: the journal reaches all processes, the state of the training
    goes on."""
    whole, out = tmp_path / "whole", tmp_path / "cut"
    assert start(example, whole, epochs=8).wait(timeout=300) == 0
    process = start(example, out, epochs=8)
    state = out / "finetune.ckpt"
    while not (state.exists() and torch.load(state, weights_only=True)["epoch"] > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert not (out / "report.json").exists()
    process = start(example, out, "--resume", epochs=8)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    one, two = (
        safetensors.torch.load_file(folder / "weights.safetensors") for folder in (whole, out)
    )
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


@pytest.mark.slow
def test_an_error_ends_all(example: str, tmp_path: Path) -> None:
    process = start(example, tmp_path / "o", last=",finetune{epochs=1 batch-size=16 lr=1e30}")
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "\npruneopt: the training loss became infinite or NaN" in f"\n{errors}"
    assert "\npruneopt: process 1: the training loss became infinite or NaN" in f"\n{errors}"
    assert not (tmp_path / "o" / "report.json").exists()
