"""Running somebody's module, or PyTorch's exporters, without a trace.

Modes come back, and nothing is printed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import torch
from torch import nn

__all__ = ["in_mode", "quiet"]


@contextmanager
def in_mode(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Put the module into evaluation or training mode for a while.

    Its modes, part by part, and the random state come back after.
    """
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[]):
        try:
            model.train(training)
            yield
        finally:
            for module, before in modes:
                module.training = before


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints, warnings and log lines from tracing and exporting.

    What matters comes back as an error.
    """
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
