"""A small data set and a small network for the tests of training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pruneopt.models.workload import TensorSplit, Workload, seeded


@pytest.fixture
def points() -> Callable[..., Workload]:
    """``points(count=70, dtype=..., **changes)``: points in four dimensions and the sign of the
    first coordinate."""

    def make(count: int = 70, dtype: torch.dtype = torch.float32, **changes: object) -> Workload:
        x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
        split = TensorSplit(x, (x[:, 0] > 0).long(), torch.arange(count))
        fields = {
            "name": "points",
            "num_classes": 2,
            **dict.fromkeys(("train", "calibration", "subval", "test"), split),
        }
        return Workload(**{**fields, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def net() -> Callable[[], nn.Sequential]:
    """A new network, the same each time, with batch norm and dropout."""

    def make() -> nn.Sequential:
        with seeded(0):
            return nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
            )

    return make


@pytest.fixture
def plain() -> Callable[..., nn.Sequential]:
    """``plain(dtype)``: a new network, the same each time, without batch norm and dropout."""

    def make(dtype: torch.dtype = torch.float32) -> nn.Sequential:
        with seeded(1):
            return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)

    return make


@pytest.fixture
def weights() -> Callable[[nn.Module], torch.Tensor]:
    """All parameters of a network in one row."""
    return lambda module: torch.cat([value.detach().flatten() for value in module.parameters()])
