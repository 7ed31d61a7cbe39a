"""Training learns, repeats itself exactly, and leaves the network as it found it but for the
weights."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.models import zoo
from pruneopt.models.data import load_data
from pruneopt.models.workload import Workload, seeded
from pruneopt.passes.training.checkpoint import Checkpoint
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.recipe import SCHEDULES, SGD
from pruneopt.passes.training.trainer import train

Points = Callable[..., Workload]
Net = Callable[[], nn.Sequential]
Weights = Callable[[nn.Module], Tensor]


def test_digits_from_scratch() -> None:
    workload = load_data("digits", input_shape=(1, 1, 8, 8))
    with seeded(0):
        module = zoo.create("digits_resnet")
    log = train(module, workload, SGD(epochs=8, lr=0.1, weight_decay=5e-4, batch_size=64))
    assert workload.score(module, "test") > 0.95
    assert log.epochs[-1].loss < 0.2 * log.epochs[0].loss
    assert log.epochs[-1].metric > 0.95
    assert log.steps == 8 * (len(workload.train) // 64)
    assert log.epochs[0].samples == 64 * (len(workload.train) // 64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("every", ["step", "epoch"])
def test_the_steps_are_those_of_a_plain_loop(
    points: Points, net: Net, schedule: Any, every: Any
) -> None:
    """Bit for bit a loop written out here: `torch.optim.SGD` on the batches of the split."""
    module, reference, workload = net(), net(), points()
    recipe = SGD(
        epochs=3,
        batch_size=16,
        schedule=schedule,
        every=every,
        decay_norm=False,
        label_smoothing=0.1,
        nesterov=True,
    )
    log = train(module, workload, recipe, seed=3)
    kinds = [
        [p for p in reference.parameters() if p.ndim > 1],
        [p for p in reference.parameters() if p.ndim == 1],
    ]
    groups = [{"params": kinds[0], "weight_decay": 1e-4}, {"params": kinds[1], "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    step, losses = 0, []
    with seeded(3):
        for epoch in range(3):
            losses.append(0.0)
            for x, y in workload.train.batches(
                16, seed=3 * 100_003 + epoch + 1, augment=True, drop_last=True
            ):
                progress = step / 12 if every == "step" else epoch / 3
                tenths = (progress >= 0.5) + (progress >= 0.75)
                factor = {
                    "constant": 1.0,
                    "linear": 1 - progress,
                    "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
                    "step": 0.1**tenths,
                }[schedule]
                for group in optimiser.param_groups:
                    group["lr"] = 0.01 * factor
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(reference(x), y, label_smoothing=0.1)
                loss.backward()
                optimiser.step()
                losses[-1] += loss.item() / 4
                step += 1
    trained = module.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in reference.state_dict().items())
    assert [entry.loss for entry in log.epochs] == pytest.approx(losses, rel=1e-6)


def test_fabric_waits_and_is_silent() -> None:
    """Importing the trainer does not import Fabric, which takes seconds; training prints
    nothing."""
    code = """
import sys, torch
from pruneopt.models.data import load_data
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train
assert "lightning_fabric" not in sys.modules
data = load_data("digits", input_shape=(1, 1, 8, 8))
for precision in ("32-true", "bf16-mixed", "16-mixed"):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    train(net, data, SGD(epochs=1, precision=precision))
assert "lightning_fabric" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_same_call_same_weights(points: Points, net: Net, weights: Weights) -> None:
    first, again, other = net(), net(), net()
    torch.manual_seed(5)
    train(first, points(), SGD(epochs=2, batch_size=16))
    torch.manual_seed(6)
    before = torch.get_rng_state()
    train(again, points(), SGD(epochs=2, batch_size=16))
    train(other, points(), SGD(epochs=2, batch_size=16), seed=1)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(before, torch.get_rng_state())


def test_modes_are_restored_and_epochs_reported(points: Points, net: Net) -> None:
    module = net().eval()
    module[3].train()
    told: list[tuple[str, int, int | None]] = []
    log = train(
        module,
        points(),
        SGD(epochs=3),  # fewer samples than a batch: one step an epoch
        progress=lambda text, done=0, total=None: told.append((text, done, total)),
    )
    assert (log.steps, [entry.epoch for entry in log.epochs]) == (3, [1, 2, 3])
    assert [(done, total) for _, done, total in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][0].startswith(f"epoch 3/3, loss {log.epochs[-1].loss:.4g}, metric")
    assert "samples/s, 0 s left" in told[-1][0]
    assert [part.training for part in module] == [False, False, False, True, False]


def test_first_step_is_sgd_with_the_first_rate(points: Points, weights: Weights) -> None:
    module = nn.Linear(4, 2)
    reference = copy.deepcopy(module)
    log = train(module, points(), SGD(epochs=1, lr=0.5, weight_decay=0.1, batch_size=70))
    inputs, targets = next(points().train.batches(70, seed=1))
    nn.functional.cross_entropy(reference(inputs), targets).backward()
    torch.optim.SGD(reference.parameters(), lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(weights(module), weights(reference), atol=1e-6)
    assert log.epochs[0].lr == 0.5


def test_no_epochs_change_nothing(points: Points, net: Net, weights: Weights) -> None:
    module = net()
    assert train(module, points(), SGD(epochs=0)).epochs == []
    assert torch.equal(weights(module), weights(net()))


def test_a_diverging_loss_stops(points: Points, net: Net) -> None:
    with pytest.raises(
        UserError, match="the training loss became infinite or NaN in epoch 1, by step 1: lower"
    ):
        train(net(), points(loss=lambda outputs, targets: outputs.sum() * torch.nan), SGD(epochs=2))
    with pytest.raises(UserError, match="by step 4: lower the learning rate"):
        train(nn.Linear(4, 2), points(), SGD(epochs=40, lr=1e30, batch_size=16))
    # No loss is seen after the last step.
    with pytest.raises(
        UserError, match="training ended with weight infinite or NaN after 1 steps: lower"
    ):
        train(nn.Linear(4, 2), points(), SGD(epochs=1, lr=1e30, weight_decay=1e10, batch_size=70))


def test_nothing_to_train_and_odd_losses(points: Points, net: Net) -> None:
    with pytest.raises(UserError, match="nothing to train"):
        train(net().requires_grad_(False), points(), SGD(epochs=1))
    with pytest.raises(UserError, match=r"must give one number, not a tensor of shape \[70, 2\]"):
        train(net(), points(loss=lambda outputs, targets: outputs), SGD(epochs=1))
    with pytest.raises(
        UserError, match="label smoothing needs the default cross-entropy: set label-smoothing=0"
    ):
        train(
            net(),
            points(loss=lambda outputs, targets: outputs.sum()),
            SGD(epochs=1, label_smoothing=0.1),
        )
    with pytest.raises(UserError, match="does not take a batch of shape"):
        train(nn.Linear(9, 2), points(), SGD(epochs=1))


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """Training there moves the network back afterwards, and scores agree with those on the CPU."""
    workload = load_data("digits", input_shape=(1, 1, 8, 8))
    module = zoo.create("digits_resnet")
    train(module, workload, SGD(epochs=8, lr=0.1, batch_size=64), device="cuda")
    assert {value.device.type for value in module.parameters()} == {"cpu"}
    on_cpu, on_gpu = (workload.score(module, "test", device=device) for device in ("cpu", "cuda"))
    assert on_cpu == pytest.approx(on_gpu, abs=0.004)
    assert on_cpu > 0.95


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_stopped_on_a_gpu(tmp_path: Path, precision: str) -> None:
    """A resumed run ends near an uninterrupted one; kernels need not repeat every bit."""

    class Stop(Hook):
        def before_step(self, run: TrainingRun) -> None:
            assert all(
                p.grad is None or bool((p.grad.abs() < 100).all()) for p in run.module.parameters()
            )
            if run.iteration == 20 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise KeyboardInterrupt

    workload = load_data("digits", input_shape=(1, 1, 8, 8))
    recipe = SGD(epochs=3, lr=0.05, batch_size=64, precision=precision, ema=0.9)  # type: ignore[arg-type]
    scores = []
    for place in (None, Checkpoint(tmp_path / "a.ckpt")):
        with seeded(0):
            module = zoo.create("digits_resnet")
        if place is not None:
            with pytest.raises(KeyboardInterrupt):
                train(module, workload, recipe, hooks=[Stop()], device="cuda", checkpoint=place)
            with seeded(0):
                module = zoo.create("digits_resnet")
        (tmp_path / "stopped").touch()
        train(module, workload, recipe, hooks=[Stop()], device="cuda", checkpoint=place)
        (tmp_path / "stopped").unlink()
        scores.append(workload.score(module, "test"))
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
