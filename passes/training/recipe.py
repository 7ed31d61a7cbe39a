"""How to train: the settings that every way of training shares, and the optimisers as parts (`sgd`,
`adamw`).

The pruning papers (EagleEye, GReg, Network Slimming, MetaPruning) train with momentum SGD, weight
decay, and a cosine, linear or step schedule; the defaults are EagleEye's for fine-tuning.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pruneopt.errors import UserError
from pruneopt.passes.options.configured import Configured, Part, option

if TYPE_CHECKING:
    import torch

__all__ = ["SCHEDULES", "SGD", "AdamW", "Momentum", "Recipe", "TrainingOptions"]


# Each gives the factor on the learning rate at progress p of the run, 0 <= p < 1, for the
# milestones given.
SCHEDULES: dict[str, Callable[[float, tuple[float, ...]], float]] = {
    "constant": lambda progress, milestones: 1.0,
    "cosine": lambda progress, milestones: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress, milestones: 1 - progress,
    "step": lambda progress, milestones: (
        0.1 ** sum(progress >= milestone for milestone in milestones)
    ),
}


@dataclass(frozen=True)
class TrainingOptions(Configured):
    """The options of everything that trains, whatever the optimiser; checked when they are made.

    Raises:
        UserError: an option out of its range, or tensorboard asked for and not installed.
    """

    epochs: int = option(10, "passes over the training split")
    lr: float = option(0.01, "the first learning rate")
    weight_decay: float = option(1e-4, "pull of the weights towards zero")
    batch_size: int = option(128, "samples behind one step of the optimiser, over all processes")
    schedule: Literal["cosine", "linear", "step", "constant"] = option(
        "cosine", "how the learning rate falls"
    )
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), "shares of the run after which a step schedule takes a tenth"
    )
    every: Literal["step", "epoch"] = option("step", "when the learning rate changes")
    label_smoothing: float = option(0.0, "for the default cross-entropy")
    decay_norm: bool = option(True, "also decay norm scales and biases")
    augment: bool = option(True, "random shifts, flips or crops, where the data set has them")
    accumulate: int = option(1, "cut each batch into so many parts, to save memory")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option("32-true", "of the arithmetic")
    ema: float = option(
        0.0, "deliver a moving average of the weights with this decay, such as 0.999; 0 is off"
    )
    distil: float = option(0.0, "weight of the teacher's outputs in the loss, 0 to 1; 0 is off")
    temperature: float = option(4.0, "at which the outputs are compared with the teacher's")
    clip_norm: float = option(0.0, "the largest norm of the gradient; 0 is off")
    tensorboard: str | None = option(None, "a directory to write TensorBoard logs to")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, good, wanted in self._ranges():
            if not good:
                raise UserError(f"{name}={value} must {wanted}")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UserError(
                "tensorboard is not installed: pip install tensorboard, or leave the option out"
            )

    def _ranges(self) -> list[tuple[str, object, bool, str]]:
        """Return name, value, whether it is in range, and what it must do."""
        return [
            ("epochs", self.epochs, self.epochs >= 0, "not be negative"),
            ("lr", self.lr, 0 < self.lr < 1e38, "be above 0, and a number of float32"),
            (
                "weight_decay",
                self.weight_decay,
                0 <= self.weight_decay < math.inf,
                "not be negative",
            ),
            ("batch_size", self.batch_size, self.batch_size >= 1, "be at least 1"),
            (
                "milestones",
                self.milestones,
                all(0 < share < 1 for share in self.milestones),
                "lie between 0 and 1",
            ),
            (
                "label_smoothing",
                self.label_smoothing,
                0 <= self.label_smoothing < 1,
                "lie between 0 and 1",
            ),
            (
                "accumulate",
                self.accumulate,
                1 <= self.accumulate <= self.batch_size,
                "be from 1 to batch_size",
            ),
            ("ema", self.ema, 0 <= self.ema < 1, "lie between 0 and 1"),
            ("distil", self.distil, 0 <= self.distil <= 1, "lie between 0 and 1"),
            ("temperature", self.temperature, 0 < self.temperature < math.inf, "be above 0"),
            ("clip_norm", self.clip_norm, 0 <= self.clip_norm < math.inf, "not be negative"),
        ]

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of an optimiser step, counted from 0 over the whole run.

        Changing by epoch, epoch ``e`` of ``E`` (from 0) has progress ``e/E``: linear is then
        ``lr*(1 - e/E)``, as in MetaPruning.
        """
        if self.every == "epoch":
            progress = (step // steps_per_epoch) / self.epochs
        else:
            progress = step / (self.epochs * steps_per_epoch)
        return self.lr * SCHEDULES[self.schedule](progress, self.milestones)


@dataclass(frozen=True)
class Recipe(TrainingOptions, Part):
    """Everything that decides how a network is trained, but for the data and the seed."""

    kind: ClassVar[str] = "recipe"

    @abstractmethod
    def optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimiser of parameter groups, each with ``params`` and ``weight_decay``."""


@dataclass(frozen=True)
class Momentum(TrainingOptions):
    """The options of momentum SGD."""

    momentum: float = option(0.9, "of the gradient")
    nesterov: bool = option(False, "look ahead along the momentum")

    def _ranges(self) -> list[tuple[str, object, bool, str]]:
        return [
            *super()._ranges(),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "lie between 0 and 1"),
            (
                "nesterov",
                self.nesterov,
                not self.nesterov or self.momentum > 0,
                "go with a momentum above 0",
            ),
        ]


@dataclass(frozen=True)
class SGD(Momentum, Recipe):
    """`torch.optim.SGD`: the decay is added to the gradient, and both pass through the momentum."""

    name: ClassVar[str] = "sgd"
    summary: ClassVar[str] = "train by stochastic gradient descent with momentum"

    def optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class AdamW(Recipe):
    """`torch.optim.AdamW` (arXiv 1711.05101): the decay acts on the weights, apart from the
    gradient."""

    name: ClassVar[str] = "adamw"
    summary: ClassVar[str] = "train by Adam with decoupled weight decay"

    beta1: float = option(0.9, "decay of the mean of the gradient")
    beta2: float = option(0.999, "decay of the mean of its square")
    eps: float = option(1e-8, "added to the root of the mean square")

    def _ranges(self) -> list[tuple[str, object, bool, str]]:
        return [
            *super()._ranges(),
            ("beta1", self.beta1, 0 <= self.beta1 < 1, "lie between 0 and 1"),
            ("beta2", self.beta2, 0 <= self.beta2 < 1, "lie between 0 and 1"),
            ("eps", self.eps, 0 < self.eps < math.inf, "be above 0"),
        ]

    def optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps)
