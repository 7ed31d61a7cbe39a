"""MetaPruning from the command line: one command from the search to the trained winner, and what
stopping it leaves."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import report_of

Call = Callable[..., Any]
PASS = (
    "metapruning{{searcher=evolution{{population=3 iterations=1}} "
    "evaluator=pruning-net{{epochs=2}} epochs={epochs} "
    "window=0.1 calibration-batches=2 subval-limit=50}}"
)


def words(out: Path, epochs: int) -> list[object]:
    model = [
        "compile",
        "zoo:digits_resnet?width=0.5",
        "--data",
        "digits",
        "--budget",
        "50%FLOPs",
        "--out",
        out,
    ]
    return [*model, "--pass", PASS.format(epochs=epochs)]


@pytest.mark.slow
def test_the_winner_comes_trained(call: Call, tmp_path: Path) -> None:
    done = call(*words(tmp_path / "o", 12))
    assert (done.code, done.err) == (0, "")
    assert "accuracy from scratch" in done.out
    assert (
        "note: PruningNet: 1.432 M parameters, 17.19 MB with gradients and the optimiser's state"
        in done.out
    )
    assert "with stored batch-norm statistics means nothing" in done.out
    assert (
        "note: trained from new weights: the proof is about the structure that was cut" in done.out
    )
    report = report_of(tmp_path / "o")
    assert report["pipeline"].split(",")[-1].startswith("scratch{")
    assert [item["after"] for item in report["scores"]] == ["original", "slice", "scratch"]
    assert report["pruned"]["accuracy"] > 0.5
    assert report["budgets"][0]["met"]
    assert len(report["search"]["candidates"]) == 3
    assert (
        report["records"]["pruning-net"]["bytes"]
        == 12 * report["records"]["pruning-net"]["parameters"]
    )


@pytest.mark.slow
def test_stopped_in_the_last_training_it_leaves_the_cut_network_and_goes_on(
    start: Callable[..., subprocess.Popen[str]], call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    process = start(*words(out, 500), "--quiet")
    while not (out / "scratch.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    report = report_of(out)
    assert report["interrupted"]
    assert [item["after"] for item in report["scores"]] == ["original", "slice"]
    done = call(*words(out, 12), "--resume")
    assert done.code == 2
    assert "scratch.ckpt was left by another training run" in done.sentence
