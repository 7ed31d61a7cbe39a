"""A run that was stopped anywhere ends with the very weights of a run that was not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.models import zoo
from pruneopt.models.data import load_data
from pruneopt.models.workload import TensorSplit, Workload, seeded
from pruneopt.passes.training import checkpoint as checkpoints
from pruneopt.passes.training import training_loop
from pruneopt.passes.training.checkpoint import Checkpoint
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.recipe import SGD, AdamW, Recipe
from pruneopt.passes.training.trainer import train

Net = Callable[[], nn.Sequential]
RECIPE = SGD(epochs=3, batch_size=16, lr=0.1, ema=0.8, accumulate=2, clip_norm=1.0)


def noisy() -> Workload:
    """70 points to which noise is added as augmentation: 4 batches of 16 in an epoch."""

    def prepare(stored: Tensor, augment: bool, generator: torch.Generator) -> Tensor:
        return stored + 0.1 * torch.randn(stored.shape, generator=generator) if augment else stored

    x = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    split = TensorSplit(x, (x[:, 0] > 0).long(), torch.arange(70), prepare)
    return Workload("noisy", 2, split, split, split, split)


class Decay(Hook):
    """Shrinks a weight by a factor that it carries from step to step; fails or stops where told
    to."""

    def __init__(
        self, fail_at: int | None = None, error: type[BaseException] = RuntimeError
    ) -> None:
        self.factor, self.fail_at, self.error = torch.tensor(1.0), fail_at, error

    def before_step(self, run: TrainingRun) -> None:
        if run.iteration == self.fail_at:
            raise self.error("stopped by the test")

    def after_step(self, run: TrainingRun) -> None:
        self.factor = self.factor * 0.999
        with torch.no_grad():
            run.module.get_parameter("4.weight").mul_(self.factor)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor = state["factor"]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the state inside epochs too, at every third step."""
    monkeypatch.setattr(training_loop, "CHECK_EVERY", 3)
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)


def run(
    net: Net, path: Path | None, recipe: Recipe = RECIPE, hook: Hook | None = None, **options: Any
) -> Any:
    """Return the state dict after training, and the log."""
    module = net()
    place = None if path is None else Checkpoint(path)
    log = train(
        module,
        options.pop("data", noisy()),
        recipe,
        hooks=[hook or Decay()],
        checkpoint=place,
        **options,
    )
    return module.state_dict(), log


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def told(log: TrainingLog) -> list[tuple[int, float, float, float, int]]:
    return [
        (entry.epoch, entry.loss, entry.metric, entry.lr, entry.samples) for entry in log.epochs
    ]


@pytest.mark.parametrize("fail_at", [0, 2, 3, 5, 7, 8, 11])
@pytest.mark.parametrize(
    "recipe", [RECIPE, AdamW(epochs=3, batch_size=16), replace(RECIPE, precision="16-mixed")]
)
def test_stopped_anywhere(net: Net, tmp_path: Path, recipe: Recipe, fail_at: int) -> None:
    wanted, whole = run(net, None, recipe)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(net, tmp_path / "a.ckpt", recipe, Decay(fail_at))
    # States are written at the steps 3, 4, 6, 8, 9 and 12.
    last = max(step for step in (0, 3, 4, 6, 8, 9) if step <= fail_at)
    assert (tmp_path / "a.ckpt").exists() == (last > 0)
    if last:
        assert torch.load(tmp_path / "a.ckpt", weights_only=True)["iteration"] == last
    found, log = run(net, tmp_path / "a.ckpt", recipe)
    assert same(wanted, found)
    assert told(log) == told(whole)
    assert log.steps == whole.steps == 12
    assert not list(tmp_path.glob(".partial*"))


def test_stopped_again_and_again(net: Net, tmp_path: Path) -> None:
    wanted, _ = run(net, None)
    for fail_at in (3, 4, 6, 8, 10):
        with pytest.raises(RuntimeError, match="stopped by the test"):
            run(net, tmp_path / "a.ckpt", hook=Decay(fail_at))
    assert same(wanted, run(net, tmp_path / "a.ckpt")[0])


def test_a_finished_run_is_not_run_again(net: Net, tmp_path: Path) -> None:
    wanted, log = run(net, tmp_path / "a.ckpt")
    hook = Decay(fail_at=0)
    found, again = run(net, tmp_path / "a.ckpt", hook=hook)
    assert same(wanted, found)
    assert again == log
    assert hook.factor == pytest.approx(0.999**12)


def test_interrupted_between_two_steps(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C waits for the end of the step, and the state is written there."""

    def press(run: TrainingRun) -> None:
        if run.iteration == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 1e9)
    wanted, _ = run(net, None)
    path, hook = tmp_path / "a.ckpt", Decay()
    hook.before_step = press  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(net, path, hook=hook)
    assert torch.load(path, weights_only=True)["iteration"] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(wanted, run(net, path)[0])


def test_interrupted_without_a_checkpoint(net: Net) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(net, None, hook=Decay(2, KeyboardInterrupt))


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import test_checkpoint as here
from pathlib import Path
from pruneopt.passes.training import checkpoint, training_loop

training_loop.CHECK_EVERY, checkpoint.SAVE_SECONDS = 4, 0.0
here.digits(Path(sys.argv[2]), here.Die(int(sys.argv[3])))
"""


class Die(Hook):
    """Kills its process in the middle of a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_backward(self, run: TrainingRun) -> None:
        if run.iteration == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def digits(path: Path | None, hook: Hook) -> dict[str, Tensor]:
    """Return a convolutional network on the digits, 8 steps to the epoch."""
    with seeded(0):
        module = zoo.create("digits_resnet")
    data = load_data("digits", input_shape=(1, 1, 8, 8))
    place = None if path is None else Checkpoint(path)
    train(module, data, SGD(epochs=2, batch_size=128, lr=0.1), hooks=[hook], checkpoint=place)
    return module.state_dict()


def test_killed(tmp_path: Path) -> None:
    """A process killed in the middle of an epoch leaves a whole state, and its successor ends as if
    nothing was."""
    path = tmp_path / "a.ckpt"
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path), "6"]
    assert subprocess.run(words, check=False, timeout=120).returncode == -signal.SIGKILL
    assert torch.load(path, weights_only=True)["iteration"] == 4
    assert same(digits(None, Die(-1)), digits(path, Die(-1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"recipe": replace(RECIPE, lr=0.2)},
            r"lr 0.1 there, 0.2 here\): go on with the same settings",
        ),
        ({"recipe": AdamW(epochs=3, batch_size=16)}, "optimiser 'sgd' there, 'adamw' here"),
        (
            {"recipe": replace(RECIPE, milestones=(0.3,))},
            r"milestones \(0.5, 0.75\) there, \(0.3,\) here",
        ),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"hook": Hook()}, "hooks 'Decay' there, 'Hook' here"),
        ({"decays": lambda name, parameter: "bias" not in name}, "other decayed weights"),
        ({"data": replace(noisy(), name="others")}, "other data"),
        ({"path": "options"}, "options '' there, 'other' here"),
        ({"net": "other"}, "other initial weights"),
    ],
)
def test_the_state_of_another_run_is_refused(
    net: Net, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.ckpt"
    run(net, path)
    before = path.read_bytes()
    module = net()
    if change.pop("net", None):
        module[0].get_parameter("weight").data.zero_()
    place = Checkpoint(path, "other" if change.pop("path", None) else "")
    arguments: dict[str, Any] = {"recipe": RECIPE, "hook": Decay(), "data": noisy()} | change
    hook, data, recipe = (arguments.pop(name) for name in ("hook", "data", "recipe"))
    with pytest.raises(UserError, match=rf"a.ckpt was left by another training run \({message}"):
        train(module, data, recipe, hooks=[hook], checkpoint=place, **arguments)
    assert path.read_bytes() == before


def test_where_logs_go_is_no_matter(net: Net, tmp_path: Path) -> None:
    wanted, _ = run(net, tmp_path / "a.ckpt")
    found, _ = run(net, tmp_path / "a.ckpt", replace(RECIPE, tensorboard=str(tmp_path / "logs")))
    assert same(wanted, found)


def test_files_that_are_no_states(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    run(net, path)
    whole = path.read_bytes()
    for content in (b"", b"rubbish", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a.ckpt cannot be read: remove it to train anew"):
            run(net, path)
    torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match=r"a.ckpt is not a checkpoint of this version: remove it"):
        run(net, path)


def test_the_folder_of_a_checkpoint_is_made_before_training(net: Net, tmp_path: Path) -> None:
    place = Checkpoint(tmp_path / "new" / "run" / "a.ckpt")
    train(net(), noisy(), replace(RECIPE, epochs=1), checkpoint=place)
    assert place.path.exists()
    (tmp_path / "file").write_text("", encoding="utf-8")
    said: list[str] = []
    with pytest.raises(UserError, match=r"cannot make .*file"):
        train(
            net(),
            noisy(),
            RECIPE,
            checkpoint=Checkpoint(tmp_path / "file" / "a.ckpt"),
            progress=lambda text, done=0, total=None: said.append(text),
        )
    assert not said


def test_another_loss_is_another_run(net: Net, tmp_path: Path) -> None:
    def own(outputs: object, targets: Tensor) -> Tensor:
        assert isinstance(outputs, Tensor)
        return torch.nn.functional.cross_entropy(outputs, targets) * 2

    place = Checkpoint(tmp_path / "a.ckpt")
    train(net(), noisy(), RECIPE, checkpoint=place)
    with pytest.raises(UserError, match=r"left by another training run \(task "):
        train(net(), replace(noisy(), loss=own), RECIPE, checkpoint=place)


def test_a_flipped_byte_is_noticed(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    run(net, path)
    whole = path.read_bytes()
    for place in (*range(0, len(whole), len(whole) // 40), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"a.ckpt .* remove it to train anew"):
            run(net, path)
    path.write_bytes(whole)
    run(net, path)


def test_a_state_is_not_touched_before_its_successor_is_whole(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save = tmp_path / "a.ckpt", torch.save
    seen: list[Path] = []

    def watched(content: object, target: Path) -> None:
        assert Path(target) != path
        before = path.read_bytes() if path.exists() else None
        save(content, target)
        assert (path.read_bytes() if path.exists() else None) == before
        seen.append(target)

    monkeypatch.setattr(torch, "save", watched)
    run(net, path)
    assert len(seen) > 1
