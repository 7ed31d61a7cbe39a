"""Training that leaves masked weights at zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pruneopt.passes.training.hooks import Hook, TrainingRun

__all__ = ["KeepMasks"]


class KeepMasks(Hook):
    """A hook that sets masked weights back to zero before the first iteration and after every step.

    Gradients and momentum of masked weights are left alone: whatever they do is undone.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = dict(masks)
        self._gone: list[tuple[torch.nn.Parameter, Tensor]] = []

    def start(self, run: TrainingRun) -> None:
        parameters = dict(run.module.named_parameters(remove_duplicate=False))
        self._gone = [
            (parameters[name], ~mask.to(run.device)) for name, mask in self._masks.items()
        ]
        self.after_step(run)

    def after_step(self, run: TrainingRun) -> None:
        with torch.no_grad():
            for parameter, gone in self._gone:
                parameter.masked_fill_(gone, 0.0)
