"""A tiny network for the tests of penalties, and a rule that picks its smallest filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph

Decide = Callable[[Mapping[str, Tensor]], list[Tensor]]


class Tiny(nn.Module):
    """Two convolutions whose filters can go, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=True), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def tiny() -> nn.Module:
    """A fresh one, in training mode."""
    return Tiny()


@pytest.fixture(scope="package")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Tiny().eval(), (torch.randn(2, 1, 6, 6),))


def pick_smallest(counts: Mapping[str, int]) -> Decide:
    """Picks so many filters of every layer, those with the smallest mean magnitude."""

    def decide(weights: Mapping[str, Tensor]) -> list[Tensor]:
        found = []
        for name, count in counts.items():
            score = weights[f"{name}.weight"].abs().mean((1, 2, 3))
            removed = torch.zeros(len(score), dtype=torch.bool)
            removed[torch.argsort(score)[:count]] = True
            found.append(removed)
        return found

    return decide


@pytest.fixture
def smallest() -> Callable[[Mapping[str, int]], Decide]:
    """``smallest({"a": 2})`` picks two filters of layer a."""
    return pick_smallest
