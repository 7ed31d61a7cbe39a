"""A statistic over channels alone says nothing of a single number: where one is taken, two channels
stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.selection.ladders import ladders

TOKENS, IMAGE = (2, 6, 12), (2, 3, 6, 6)


class Beside(nn.Module):
    """A norm over channels of two layers together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.out = (
            nn.Linear(12, 8),
            nn.Linear(12, 8),
            nn.LayerNorm(16),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.n(torch.cat([self.a(x), self.b(x)], -1)))


class Scaled(nn.Module):
    """A vector divided by its own deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(y / (y.std(-1, keepdim=True) + 0.1))


def tokens(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(12, 8), norm(), nn.Linear(8, 5))


def pooled(norm: Callable[[], nn.Module], places: int = 1) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(places), norm(), nn.Conv2d(8, 5, 1)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    # the smallest widths of the free groups
    "layer norm": (tokens(lambda: nn.LayerNorm(8)), TOKENS, [2]),
    "softmax": (tokens(lambda: nn.Softmax(-1)), TOKENS, [2]),
    "deviation": (Scaled, TOKENS, [2]),
    "layer norm of two layers": (Beside, TOKENS, [1, 1]),
    "rms norm keeps the sign of one": (tokens(lambda: nn.RMSNorm(8)), TOKENS, [1]),
    "layer norm over places too": (pooled(lambda: nn.LayerNorm((8, 2, 2)), 2), IMAGE, [1]),
    "group norm at one place": (pooled(lambda: nn.GroupNorm(2, 8)), IMAGE, [4]),
    "group norm of one group at one place": (pooled(lambda: nn.GroupNorm(1, 8)), IMAGE, [2]),
    "group norm at four places": (pooled(lambda: nn.GroupNorm(2, 8), 2), IMAGE, [2]),
    "batch norm": (pooled(lambda: nn.BatchNorm2d(8)), IMAGE, [1]),
}


@pytest.mark.parametrize("name", NETS)
def test_smallest_widths(name: str, prove: Callable[..., Any]) -> None:
    make, shape, least = NETS[name]
    torch.manual_seed(0)
    coupling = prove(make(), torch.randn(shape), seeds=(None,))
    assert [group.minimum for group in coupling.free] == least


def test_group_norm_at_one_place_still_runs_at_batch_one() -> None:
    """torch refuses a training run of a group norm over one number."""
    graph = capture(pooled(lambda: nn.GroupNorm(2, 8))().eval(), (torch.randn(IMAGE),))
    coupling = couple(graph)
    (group,) = coupling.free
    cost = CostModel(graph, coupling, "macs")
    (widths,) = ladders(coupling, cost).rungs
    assert widths.tolist() == [4, 6, 8]
    plan = {group.name: np.array([0, 1, 4, 5])}
    pruned = slice_graph(graph, coupling, plan)
    assert build_module(pruned, pruned.weights).train()(torch.randn(1, 3, 6, 6)).shape == (
        1,
        5,
        1,
        1,
    )
    with pytest.raises(
        UserError, match="keeps 2 channels of group 0, over which a statistic is taken: at least 4"
    ):
        slice_graph(graph, coupling, {group.name: np.array([0, 4])})
