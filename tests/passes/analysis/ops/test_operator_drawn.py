"""Networks that draw numbers in evaluation mode: noise has the channels of what it is combined
with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned


class Net(nn.Module):
    """A layer, noise, a head."""

    def __init__(self, noisy: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.out, self.noisy = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), noisy

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.noisy(self.a(x)))


DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "as many as there are": lambda y: y + torch.randn_like(y),
    "a written number": lambda y: y + torch.rand(y.shape[0], 8, 1, 1),
    "with chances": lambda y: y * torch.bernoulli(y.sigmoid()),
    "into memory": lambda y: y + torch.empty_like(y).normal_(),
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_numbers_follow_the_channels(name: str, make_plan: Callable[..., Any]) -> None:
    """Two runs never draw alike: the proof gives the pruned network what the original drew."""
    torch.manual_seed(0)
    graph = capture(Net(DRAWN[name]).eval(), torch.randn(2, 3, 8, 8))
    coupling = couple(graph)
    assert [group.width for group in coupling.free] == [8]
    plan = make_plan(coupling, 0)
    pruned = slice_graph(graph, coupling, plan)
    assert verify_pruned(graph, coupling, plan, pruned).equivalent
    assert build_module(pruned, pruned.weights)(torch.randn(1, 3, 8, 8)).shape == (1, 5, 6, 6)
