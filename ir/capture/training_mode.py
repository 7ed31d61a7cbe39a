"""Evaluation mode for the time of a capture, and what a graph captured in it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pruneopt.ir.modes import in_mode

__all__ = ["evaluation_mode", "training_notes"]

STOCHASTIC_MODULES = ("StochasticDepth", "DropPath", "DropBlock2d", "DropBlock3d")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[frozenset[str]]:
    """Put the model into evaluation mode; yield the names of the modules that the user froze.

    A module is frozen if it was in evaluation mode inside a network in training mode, or if it
    stays in evaluation mode after ``train()``. All modes and the random state come back.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    frozen = {path for path, module in modules.items() if model.training and not module.training}
    with in_mode(model, training=True):
        stay = {path for path, module in modules.items() if not module.training}
        model.eval()
        yield frozenset(stay | frozen)


def training_notes(model: nn.Module) -> tuple[str, ...]:
    """Say what the model does in training mode that its graph does not hold."""
    notes = []
    modules = list(model.named_modules())
    drops = [n for n, m in modules if type(m).__name__ in STOCHASTIC_MODULES and _drop_rate(m) > 0]
    if drops:
        notes.append(
            f"stochastic depth acts in training only and is left out ({len(drops)} modules, first "
            f"{drops[0]})"
        )
    attention = [n for n, m in modules if isinstance(m, nn.MultiheadAttention) and m.dropout > 0]
    if attention:
        notes.append(
            f"attention dropout is left out ({len(attention)} modules, first {attention[0]})"
        )
    return tuple(notes)


def _drop_rate(module: nn.Module) -> float:
    rate = getattr(module, "p", getattr(module, "drop_prob", 0.0))
    return float(rate or 0.0)
