"""Data in memory for tests: the same samples as every part of a workload."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruneopt.models.workload import TensorSplit, Workload


def images(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    """Return random images ``[count, channels, size, size]``, the same for a seed."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def workload_of(
    inputs: Tensor, targets: Tensor | None = None, classes: int | None = None, **options: Any
) -> Workload:
    """Return a workload whose four splits are these samples.

    Args:
        inputs: ``[n, ...]``.
        targets: ``[n, ...]``; zeros, for tests that read none, if left out.
        classes: how many there are; None where targets are no classes.
        options: others of `Workload`, such as ``loss``.
    """
    count = len(inputs)
    labels = torch.zeros(count, dtype=torch.int64) if targets is None else targets
    split = TensorSplit(inputs, labels, torch.arange(count))
    return Workload("toy", classes, split, split, split, split, **options)


def noise(count: int, classes: int, channels: int = 3, size: int = 8) -> Workload:
    """Return random images with random classes, from one generator."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, channels, size, size, generator=generator)
    return workload_of(inputs, torch.randint(0, classes, (count,), generator=generator), classes)
