"""The objective of training: the workload's loss, smoothed labels, and the distance to a teacher's
outputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.models.workload import Loss, Workload, cross_entropy, logits_of
from pruneopt.passes.training.recipe import Recipe

__all__ = ["Objective", "can_distil", "distillation", "objective"]


def can_distil(workload: Workload) -> bool:
    """Return whether a teacher's logits say something about this task: classification with the
    default cross-entropy."""
    return workload.num_classes is not None and workload.loss is cross_entropy


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 * KL(teacher || student)`` of the classes at temperature T, a mean over samples
    (and places); a scalar.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (arXiv 1503.02531): the
    factor T^2 keeps the gradient's size as T changes. Both are logits `[N, C, ...]`.
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"the teacher's logits have shape {list(teacher.shape)} and the network's "
            f"{list(student.shape)}: "
            "distillation needs the same classes in both; set distil=0"
        )
    mine, theirs = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(mine, theirs, reduction="sum", log_target=True)
    return temperature**2 * divergence * (mine.shape[1] / mine.numel())


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of one batch: ``(1 - share) * task + share * distillation``.

    The teacher must be in evaluation mode; it runs without gradients, in the precision of the
    context given.
    """

    task: Loss
    teacher: nn.Module | None
    share: float
    temperature: float

    def __call__(
        self,
        outputs: object,
        inputs: Tensor,
        targets: Tensor,
        precision: AbstractContextManager[object] | None = None,
    ) -> Tensor:
        """Return a scalar.

        Raises:
            UserError: the loss function gives something else than one number.
        """
        loss = self.task(outputs, targets)
        if loss.numel() != 1:
            raise UserError(
                "loss(outputs, targets) must give one number, not a tensor of shape "
                f"{list(loss.shape)}"
            )
        if self.teacher is None:
            return loss
        with torch.no_grad(), nullcontext() if precision is None else precision:
            theirs = logits_of(self.teacher(inputs))
        mine = logits_of(outputs)
        return (1 - self.share) * loss + self.share * distillation(
            mine, theirs.to(mine.dtype), self.temperature
        )


def objective(workload: Workload, recipe: Recipe, teacher: nn.Module | None) -> Objective:
    """Return the objective of a run; the teacher is asked only where ``recipe.distil`` is above 0.

    Raises:
        UserError: label smoothing or distillation for another loss than the default, or
            distillation of nobody.
    """
    task = workload.loss
    if recipe.label_smoothing:
        if task is not cross_entropy:
            raise UserError(
                "label smoothing needs the default cross-entropy: set label-smoothing=0 in the "
                "recipe, and put it into "
                "your own loss function instead"
            )
        task = partial(cross_entropy, label_smoothing=recipe.label_smoothing)
    if recipe.distil and not can_distil(workload):
        raise UserError(
            "distillation needs classification with the default cross-entropy: set distil=0, or "
            "put it into your own "
            "loss function"
        )
    if recipe.distil and teacher is None:
        raise UserError(f"distil={recipe.distil} needs a teacher: give one, or set distil=0")
    return Objective(task, teacher if recipe.distil else None, recipe.distil, recipe.temperature)
