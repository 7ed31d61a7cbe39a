"""Training and fine-tuning: plain stochastic gradient descent on a workload's training split.

The recipe of the pruning papers (EagleEye, GReg, Network Slimming): SGD with momentum 0.9, weight decay, and a cosine,
linear or step schedule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.models.workload import Loss, Workload, cross_entropy, placed, seeded, set_mode

__all__ = ["SCHEDULES", "EpochLog", "TrainingLog", "finetune"]

# Each gives the factor on the learning rate at progress p of the run, 0 <= p < 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "step": lambda progress: 0.1 ** ((progress >= 0.5) + (progress >= 0.75)),
}
# Reading the loss makes a GPU wait, so it is looked at once in so many steps.
CHECK_EVERY = 20


@dataclass(frozen=True, slots=True)
class EpochLog:
    """One epoch: its number from 1, mean training loss, mean training metric, last learning rate, seconds."""

    epoch: int
    loss: float
    metric: float
    lr: float
    seconds: float


@dataclass(slots=True)
class TrainingLog:
    """What a training run did."""

    epochs: list[EpochLog] = field(default_factory=list)
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


def finetune(
    module: nn.Module,
    workload: Workload,
    *,
    epochs: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    batch_size: int = 128,
    schedule: str = "cosine",
    label_smoothing: float = 0.0,
    decay_norm: bool = True,
    augment: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[EpochLog], None] | None = None,
) -> TrainingLog:
    """Train `module` in place on `workload.train`; the same call on the same machine gives the same weights.

    Args:
        module: any network with parameters that require gradients; it comes back on its own device, and every
            submodule in the mode it was in.
        workload: gives the data and the loss.
        epochs: passes over the training split; 0 does nothing.
        lr: the first learning rate.
        schedule: `cosine` or `linear` to zero, by step; `step` (a tenth at 50 % and again at 75 %); `constant`.
        label_smoothing: for the default cross-entropy only.
        decay_norm: False leaves parameters of one axis (norm scales and shifts, biases) out of the weight decay.
        augment: random shifts, flips or crops, where the data set has them.
        seed: shuffling, augmentation and dropout.
        on_epoch: called after each epoch.

    Raises:
        UserError: a setting out of range, nothing to train, data that does not fit, or a loss that is not finite.
    """
    _check_settings(epochs, batch_size, lr, schedule)
    loss = _loss(workload, label_smoothing)
    groups = _parameter_groups(module, weight_decay, decay_norm)
    # An incomplete last batch would weigh as much as a full one, and batch norm refuses a single sample.
    whole_only = len(workload.train) >= batch_size
    steps = epochs * (len(workload.train) // batch_size if whole_only else 1)
    log = TrainingLog()
    with placed(module, device), seeded(seed, device), torch.enable_grad():
        optimiser = torch.optim.SGD(groups, lr=lr, momentum=momentum)
        run = _Run(module, workload, loss, optimiser, lambda step: lr * SCHEDULES[schedule](step / steps))
        set_mode(module, training=True)
        for epoch in range(1, epochs + 1):
            order = seed * 100_003 + epoch
            batches = workload.train.batches(
                batch_size, seed=order, augment=augment, device=device, drop_last=whole_only
            )
            log.epochs.append(run.epoch(epoch, batches))
            log.steps = run.steps
            if on_epoch is not None:
                on_epoch(log.epochs[-1])
    return log


@dataclass(slots=True)
class _Run:
    """The moving parts of one training run; `rate` gives the learning rate of a step."""

    module: nn.Module
    workload: Workload
    loss: Loss
    optimiser: torch.optim.Optimizer
    rate: Callable[[int], float]
    steps: int = 0

    def epoch(self, number: int, batches: Iterable[tuple[Tensor, Tensor]]) -> EpochLog:
        started = time.perf_counter()
        sums, count = torch.zeros(2), 0
        for inputs, targets in batches:
            sums = sums.to(inputs.device) + len(inputs) * self._step(inputs, targets)
            count += len(inputs)
            self.steps += 1
            if self.steps % CHECK_EVERY == 0:
                self._check_finite(sums, number)
        self._check_finite(sums, number)
        mean_loss, mean_metric = (sums / count).tolist()
        return EpochLog(number, mean_loss, mean_metric, self.rate(self.steps - 1), time.perf_counter() - started)

    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One update; the batch's loss and mean metric, `[2]`, not yet read from the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(self.steps)
        self.optimiser.zero_grad(set_to_none=True)
        outputs = self.workload.forward(self.module, inputs)
        loss = self.loss(outputs, targets)
        if loss.numel() != 1:
            raise UserError(f"loss(outputs, targets) must give one number, not a tensor of shape {list(loss.shape)}")
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            metric = self.workload.metric(outputs, targets)
            return torch.stack([loss.detach().float().reshape(()), metric.float().mean()])

    def _check_finite(self, sums: Tensor, epoch: int) -> None:
        if not bool(torch.isfinite(sums[0])):
            raise UserError(
                f"the training loss became infinite or NaN in epoch {epoch}, by step {self.steps}: lower the learning "
                f"rate (now {self.rate(self.steps - 1):.3g}) or check the loss function and the data"
            )


def _loss(workload: Workload, label_smoothing: float) -> Loss:
    if not label_smoothing:
        return workload.loss
    if workload.loss is not cross_entropy:
        raise UserError("label smoothing needs the default cross-entropy: put it into your own loss function instead")
    if not 0 < label_smoothing < 1:
        raise UserError(f"label_smoothing={label_smoothing} must lie between 0 and 1")
    return partial(cross_entropy, label_smoothing=label_smoothing)


def _parameter_groups(module: nn.Module, weight_decay: float, decay_norm: bool) -> list[dict[str, object]]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("the network has no parameter that requires gradients: there is nothing to train")
    if decay_norm:
        return [{"params": trained, "weight_decay": weight_decay}]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    decayed = {"params": matrices, "weight_decay": weight_decay}
    return [decayed, {"params": vectors, "weight_decay": 0.0}]


def _check_settings(epochs: int, batch_size: int, lr: float, schedule: str) -> None:
    if epochs < 0:
        raise UserError(f"epochs={epochs} must not be negative")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    if not (lr > 0 and math.isfinite(lr)):
        raise UserError(f"lr={lr} must be above 0")
    if schedule not in SCHEDULES:
        raise UserError(f"there is no schedule '{schedule}': use one of {', '.join(SCHEDULES)}")
