"""Functions with a backward of their own: the graph computes their forward, and says that the rest
is left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.interpreter import Interpreter


class StraightThrough(torch.autograd.Function):
    """Signs, whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        return x.sign() * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.out(StraightThrough.apply(self.a(x), 0.5))


def test_the_forward_is_captured_and_the_backward_is_reported() -> None:
    apply = torch.autograd.Function.__dict__["apply"]
    net, x = Net().eval(), torch.randn(2, 3, 6, 6)
    graph = capture(net, x)
    assert [note for note in graph.notes if "StraightThrough" in note and "backward" in note]
    assert torch.autograd.Function.__dict__["apply"] is apply
    with torch.no_grad():
        torch.testing.assert_close(Interpreter(graph).run(graph.weights, x), net(x), rtol=0, atol=0)


def test_a_network_without_them_has_no_such_note() -> None:
    assert not capture(nn.Conv2d(3, 4, 1).eval(), torch.randn(2, 3, 6, 6)).notes
