"""Running somebody's module without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["in_mode"]


@contextmanager
def in_mode(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """The module in evaluation or training mode; its modes, part by part, and the random state come back after."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[]):
        try:
            model.train(training)
            yield
        finally:
            for module, before in modes:
                module.training = before
