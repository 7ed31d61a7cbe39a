"""Training learns, repeats itself exactly, and leaves the network as it found it but for the weights."""

import copy
import math

import pytest
import torch
from torch import nn

from pruneopt.errors import UserError
from pruneopt.models import zoo
from pruneopt.models.data import load_data
from pruneopt.models.workload import TensorSplit, Workload, seeded
from pruneopt.passes.training import SCHEDULES, EpochLog, finetune


def points(**changes: object) -> Workload:
    x = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    split = TensorSplit(x, (x[:, 0] > 0).long(), torch.arange(70))
    fields = {"name": "points", "num_classes": 2, "train": split, "calibration": split, "subval": split, "test": split}
    return Workload(**{**fields, **changes})  # type: ignore[arg-type]


def net() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in module.parameters()])


def test_digits_from_scratch() -> None:
    workload = load_data("digits", input_shape=(1, 1, 8, 8))
    with seeded(0):
        module = zoo.create("digits_resnet")
    log = finetune(module, workload, epochs=8, lr=0.1, weight_decay=5e-4, batch_size=64)
    assert workload.score(module, "test") > 0.95
    assert log.epochs[-1].loss < 0.2 * log.epochs[0].loss
    assert log.epochs[-1].metric > 0.95
    assert log.steps == 8 * (len(workload.train) // 64)
    assert log.seconds < 60


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_same_call_same_weights(schedule: str) -> None:
    first, again, other = net(), net(), net()
    torch.manual_seed(5)
    finetune(first, points(), epochs=2, batch_size=16, schedule=schedule)
    torch.manual_seed(6)
    before = torch.get_rng_state()
    finetune(again, points(), epochs=2, batch_size=16, schedule=schedule)
    finetune(other, points(), epochs=2, batch_size=16, schedule=schedule, seed=1)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(before, torch.get_rng_state())


def test_modes_are_restored_and_epochs_reported() -> None:
    module = net().eval()
    module[3].train()
    seen: list[EpochLog] = []
    log = finetune(module, points(), epochs=3, on_epoch=seen.append)  # fewer samples than a batch: one step an epoch
    assert seen == log.epochs
    assert (log.steps, [entry.epoch for entry in seen]) == (3, [1, 2, 3])
    assert [part.training for part in module] == [False, False, False, True, False]


def test_schedules() -> None:
    at = {name: [round(factor(p), 4) for p in (0, 0.5, 0.75)] for name, factor in SCHEDULES.items()}
    assert at == {
        "constant": [1, 1, 1],
        "cosine": [1, 0.5, round(0.5 * (1 + math.cos(0.75 * math.pi)), 4)],
        "linear": [1, 0.5, 0.25],
        "step": [1, 0.1, 0.01],
    }


def test_first_step_is_sgd_with_the_first_rate() -> None:
    module = nn.Linear(4, 2)
    reference = copy.deepcopy(module)
    log = finetune(module, points(), epochs=1, lr=0.5, weight_decay=0.1, batch_size=70)
    inputs, targets = next(points().train.batches(70, seed=1))
    nn.functional.cross_entropy(reference(inputs), targets).backward()
    torch.optim.SGD(reference.parameters(), lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(weights(module), weights(reference), atol=1e-6)
    assert log.epochs[0].lr == 0.5


def test_decay_of_norms_can_be_left_out() -> None:
    decayed, spared = net(), net()
    for module, decay_norm in ((decayed, True), (spared, False)):
        nothing = points(loss=lambda outputs, targets: outputs.sum() * 0)
        finetune(module, nothing, epochs=1, lr=0.5, weight_decay=0.1, decay_norm=decay_norm)
    assert torch.all(decayed.get_parameter("1.weight") < 1)
    assert torch.all(spared.get_parameter("1.weight") == 1)
    assert torch.equal(decayed.get_parameter("0.weight"), spared.get_parameter("0.weight"))


def test_label_smoothing_changes_the_loss() -> None:
    plain, smooth = (finetune(net(), points(), epochs=1, label_smoothing=value) for value in (0.0, 0.3))
    assert plain.epochs[0].loss != smooth.epochs[0].loss


def test_no_epochs_change_nothing() -> None:
    module = net()
    assert finetune(module, points(), epochs=0).epochs == []
    assert torch.equal(weights(module), weights(net()))


def test_a_diverging_loss_stops() -> None:
    with pytest.raises(UserError, match="the training loss became infinite or NaN in epoch 1, by step 1: lower"):
        finetune(net(), points(loss=lambda outputs, targets: outputs.sum() * torch.nan), epochs=2)
    with pytest.raises(UserError, match="by step 4: lower the learning rate"):
        finetune(nn.Linear(4, 2), points(), epochs=40, lr=1e30, batch_size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs=-1 must not be negative"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"schedule": "cos"}, "no schedule 'cos': use one of constant, cosine"),
        ({"label_smoothing": 1.5}, "must lie between 0 and 1"),
    ],
)
def test_bad_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune(net(), points(), **{"epochs": 1, **options})  # type: ignore[arg-type]


def test_nothing_to_train_and_odd_losses() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        finetune(net().requires_grad_(False), points(), epochs=1)
    with pytest.raises(UserError, match=r"must give one number, not a tensor of shape \[70, 2\]"):
        finetune(net(), points(loss=lambda outputs, targets: outputs), epochs=1)
    with pytest.raises(UserError, match="label smoothing needs the default cross-entropy"):
        finetune(net(), points(loss=lambda outputs, targets: outputs.sum()), epochs=1, label_smoothing=0.1)
    with pytest.raises(UserError, match="does not take a batch of shape"):
        finetune(nn.Linear(9, 2), points(), epochs=1)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """Training there moves the network back afterwards, and scores agree with those on the CPU."""
    workload = load_data("digits", input_shape=(1, 1, 8, 8))
    module = zoo.create("digits_resnet")
    finetune(module, workload, epochs=8, lr=0.1, batch_size=64, device="cuda")
    assert {value.device.type for value in module.parameters()} == {"cpu"}
    on_cpu, on_gpu = (workload.score(module, "test", device=device) for device in ("cpu", "cuda"))
    assert on_cpu == pytest.approx(on_gpu, abs=0.004)
    assert on_cpu > 0.95
