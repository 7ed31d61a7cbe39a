"""Branches on sizes and on the mode: found by running the other side, or guarded in the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module

X = torch.randn(2, 3, 16, 16)


class Net(nn.Module):
    """Two convolutions, and a function between them."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


GUARDED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a number made of sizes": lambda net, x: x / (x.shape[2] * x.shape[3]),
    "a branch on a size": lambda net, x: x * 2 if x.shape[2] > 20 else x,
    "a branch on a small size": lambda net, x: x * 2 if x.shape[3] < 10 else x,
    "a size of the result": lambda net, x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:]),
    "channels beside positions": lambda net, x: x.view(-1, 8, 4, 4),
}


@pytest.mark.parametrize("name", GUARDED)
def test_a_size_that_was_made_constant_is_noted_and_other_sizes_are_refused(name: str) -> None:
    net = Net(GUARDED[name]).eval()
    graph = capture(net, X)
    assert [note for note in graph.notes if note.startswith("the input size is fixed at 16x16: ")]
    result = build_module(graph.copy(), graph.weights)
    torch.testing.assert_close(result(X), net(X))
    for side in (8, 32):
        with pytest.raises(ValueError, match=r"takes inputs of size 3x16x16, not \(3, "):
            result(torch.randn(2, 3, side, side))


FREE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "nothing": lambda net, x: x,
    "a mean": lambda net, x: x - x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", FREE)
def test_a_network_of_any_size_gives_a_result_of_any_size(name: str) -> None:
    net = Net(FREE[name]).eval()
    graph = capture(net, X)
    assert not graph.notes
    result = build_module(graph, graph.weights)
    for shape in ((2, 3, 8, 8), (1, 3, 32, 20)):
        x = torch.randn(shape)
        torch.testing.assert_close(result(x), net(x))


@pytest.mark.parametrize(("batch", "example"), [(1, 4), (4, 4), (5, 4), (1, 1)])
def test_a_branch_on_the_batch_size_fixes_it(batch: int, example: int) -> None:
    net = Net(lambda net, x: x * 2 if x.shape[0] == batch else x).eval()
    x = torch.randn(example, 3, 6, 6)
    graph = capture(net, x)
    assert not graph.dynamic_batch
    assert any(
        note.startswith(f"the batch size is fixed at {example}: ") and "test_sizes.py" in note
        for note in graph.notes
    )
    result = build_module(graph, graph.weights)
    torch.testing.assert_close(result(x), net(x))
    with pytest.raises(ValueError, match=f"takes a batch of {example}"):
        result(torch.randn(3, 3, 6, 6))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x + torch.randn_like(x) if net.training else x,
        lambda net, x: x * 3 if net.training else x,
        lambda net, x: F.relu(x) if not net.training else x,
    ],
)
def test_what_training_does_beside_the_graph_is_noted_with_its_line(between: Any) -> None:
    graph = capture(Net(between), X)
    (note,) = graph.notes
    assert note.startswith("in training mode the network computes something else, which is left ")
    assert "tests/ir/capture/test_sizes.py:" in note


def test_what_was_compared_is_told_and_can_be_left_out() -> None:
    net = Net(FREE["nothing"])
    graph = capture(net, X)
    assert graph.checked == (
        "compared with the network on inputs of 2x3x16x16, 2x3x16x16, 3x3x16x16, 1x3x16x16, "
        "in training mode 2x3x16x16"
    )
    assert graph.copy().checked == graph.checked
    assert capture(net, X, check=False).checked is None
