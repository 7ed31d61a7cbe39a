"""Training in two processes that torchrun starts: the weights are those of one process up to
rounding."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from pruneopt.errors import UserError
from pruneopt.models.workload import TensorSplit, Workload, seeded
from pruneopt.passes.training import training_loop
from pruneopt.passes.training.checkpoint import Checkpoint
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.parallel import Processes
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train

# 7 samples to a batch: the processes' shares differ in size.
RECIPE = SGD(epochs=3, batch_size=7, lr=0.2, accumulate=2, ema=0.9, clip_norm=2.0)


class Partly(nn.Module):
    """A network of which an iteration uses one of two branches, as with one batch norm for each
    width."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.branches, self.head = (
            nn.Linear(4, 8),
            nn.ModuleList([nn.Linear(8, 8) for _ in "ab"]),
            nn.Linear(8, 2),
        )
        self.branch = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.branches[self.branch](torch.tanh(self.body(x)))))


class Alternate(Hook):
    """Draws a branch for every iteration, the same in all processes."""

    def __init__(self, fail_at: int = -1) -> None:
        self.fail_at = fail_at

    def before_forward(self, run: TrainingRun) -> None:
        if run.iteration == self.fail_at:
            raise RuntimeError("stopped by the test")
        generator = torch.Generator().manual_seed(run.seed * 1_000_003 + run.iteration)
        cast(Partly, run.module).branch = int(torch.randint(2, (1,), generator=generator))


def workload() -> Workload:
    x = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    split = TensorSplit(x, (x[:, 0] > 0).long(), torch.arange(70))
    return Workload("points", 2, split, split, split, split)


def trained(path: Path | None = None, fail_at: int = -1) -> dict[str, Any]:
    """Return the weights and the log of one run of `RECIPE`."""
    with seeded(0):
        module = Partly()
    place = None if path is None else Checkpoint(path)
    log = train(module, workload(), RECIPE, hooks=[Alternate(fail_at)], checkpoint=place)
    return {
        "weights": module.state_dict(),
        "log": [(e.epoch, e.loss, e.metric, e.samples) for e in log.epochs],
    }


def normed() -> dict[str, Any]:
    """Return the same for a network with batch norm, whose statistics the processes see
    differently."""
    with seeded(0):
        module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    train(module, workload(), SGD(epochs=2, batch_size=16, lr=0.1))
    return {"weights": module.state_dict()}


def main(folder: Path, what: str) -> None:
    """Train in one of the processes of a test."""
    training_loop.CHECK_EVERY = 3
    rank = Processes.here().rank
    if what == "both":
        torch.save({"trained": trained(), "normed": normed()}, folder / f"both{rank}.pt")
    elif what == "differ":
        with seeded(rank):
            module = Partly()
        train(module, workload(), RECIPE, hooks=[Alternate()])
    elif what == "nan":
        with seeded(0):
            line = nn.Linear(4, 2)
        train(line, bad(torch.nan if rank else 1.0), SGD(epochs=1, batch_size=16))
    else:
        fail_at = 17 if what == "stop" else -1
        torch.save(trained(folder / f"{rank}.ckpt", fail_at), folder / f"{what}{rank}.pt")


def bad(factor: float) -> Workload:
    """Return a workload whose loss is multiplied by a factor."""
    good = workload()
    good.loss = lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) * factor
    return good


SCRIPT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import test_parallel as t; "
    "t.main(t.Path(sys.argv[2]), sys.argv[3])"
)


def torchrun(folder: Path, what: str, count: int = 2) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "--master-port",
        str(port),
    ]
    line: Sequence[str] = [
        sys.executable,
        *words,
        str(script),
        str(Path(__file__).parent),
        str(folder),
        what,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        line, check=False, capture_output=True, text=True, timeout=240, env=environment
    )


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "both")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    first, second = load(tmp_path / "both0.pt"), load(tmp_path / "both1.pt")
    # All processes end with the very same, statistics of batch norm included.
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = trained()
    torch.testing.assert_close(first["trained"]["weights"], alone["weights"], rtol=0, atol=1e-5)
    for mine, theirs in zip(first["trained"]["log"], alone["log"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_two_processes_resume(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "stop")
    assert done.returncode != 0
    assert "stopped by the test" in done.stderr
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["0.ckpt"]
    done = torchrun(tmp_path, "resume")
    assert done.returncode == 0, done.stderr
    # 10 steps to the epoch: the state was written after the first, and 20 were made anew.
    first, second, alone = load(tmp_path / "resume0.pt"), load(tmp_path / "resume1.pt"), trained()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=0, atol=1e-5)
    # The state is that of two processes: one alone does not take it up.
    with pytest.raises(UserError, match="processes 2 there, 1 here"):
        trained(tmp_path / "0.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("differ", "the processes disagree on what to train \\(its initial weights differ\\)"),
        ("nan", "the training loss became infinite or NaN in epoch 1, by step 3"),
    ],
)
def test_an_error_is_one_of_all_processes(tmp_path: Path, what: str, message: str) -> None:
    done = torchrun(tmp_path, what)
    assert done.returncode != 0
    assert len(re.findall(f"UserError: {message}", done.stderr)) == 2, done.stderr


def test_more_processes_than_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = Processes(rank=0, world=8)
    monkeypatch.setattr(Processes, "here", classmethod(lambda cls: eight))
    with pytest.raises(
        UserError, match="a batch of 7 samples cannot be cut into accumulate=2 parts for each of 8"
    ):
        trained()


def test_one_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Processes.here() == Processes(
        rank=0, world=1, local_rank=0, local_world=1, launched=False
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert Processes.here() == Processes(
        rank=3, world=4, local_rank=1, local_world=2, launched=True
    )
    assert Processes.here().device("cpu") == torch.device("cpu")
    with pytest.raises(
        UserError, match="each process has a GPU of its own: say cuda instead of cuda:0"
    ):
        Processes.here().device("cuda:0")
