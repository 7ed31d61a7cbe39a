"""The graph is compared with the network itself before anything is built on it."""

from __future__ import annotations

import random

import pytest
import torch
from nets import Noisy
from torch import Tensor, nn

from pruneopt.errors import InternalError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.capture.check import check_capture


class Net(nn.Module):
    """Batch norm, dropout and two outputs, one of them of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = nn.functional.dropout(self.bn(self.conv(x)).relu().mean((2, 3)), 0.5, self.training)
        return {"scores": self.fc(x), "best": self.fc(x).argmax(1)}


class Moody(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.fc(x))


def test_a_faithful_graph_passes_and_the_network_is_left_alone() -> None:
    net, x = Net().train(), torch.randn(4, 3, 6, 6)
    net.bn.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.random.get_rng_state()
    assert check_capture(net, capture(net, (x,)), (x,)) is None
    assert net.training
    assert not net.bn.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_graph_that_computes_something_else_is_refused() -> None:
    net, x = Net(), torch.randn(4, 3, 6, 6)
    graph = capture(net, (x,))
    graph.weights["fc.bias"] = graph.weights["fc.bias"] + 0.01
    with pytest.raises(
        InternalError, match="does not compute what the network does on the example inputs"
    ):
        check_capture(net, graph, (x,))


def test_outputs_that_are_not_finite_are_so_at_the_same_places() -> None:
    net, x = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.no_grad():
        net.bias[1] = torch.inf
    graph = capture(net, (x,))
    assert check_capture(net, graph, (x,)) is None
    graph.weights["bias"] = graph.weights["bias"].flip(0).roll(1)
    with pytest.raises(InternalError, match="does not compute"):
        check_capture(net, graph, (x,))


def test_an_infinity_of_the_other_sign_is_refused() -> None:
    net, x = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.no_grad():
        net.bias[1] = torch.inf
    graph = capture(net, (x,))
    graph.weights["bias"] = torch.tensor(
        [*net.bias[:1].tolist(), -torch.inf, *net.bias[2:].tolist()]
    )
    with pytest.raises(InternalError, match="does not compute"):
        check_capture(net, graph, (x,))


def test_complex_outputs_may_differ_by_rounding() -> None:
    net, x = Spectrum(), torch.randn(2, 8)
    graph = capture(net, (x,))
    graph.weights["fc.weight"] = graph.weights["fc.weight"] * (1 + 1e-6)
    assert check_capture(net, graph, (x,)) is None
    graph.weights["fc.weight"] = graph.weights["fc.weight"] * 1.1
    with pytest.raises(InternalError, match="does not compute"):
        check_capture(net, graph, (x,))


def test_random_numbers_are_drawn_alike() -> None:
    net, x = Noisy(), torch.randn(2, 3)
    state = torch.random.get_rng_state()
    assert check_capture(net, capture(net, (x,)), (x,)) is None
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_network_that_differs_from_itself_cannot_be_compared() -> None:
    net, x = Moody(), torch.randn(2, 3)
    note = check_capture(net, capture(net, (x,)), (x,))
    assert note is not None
    assert "gives other outputs each time it runs" in note


def test_weights_without_values_say_nothing() -> None:
    net = nn.Linear(3, 3, device="meta")
    note = check_capture(
        net, capture(net, (torch.empty(2, 3, device="meta"),)), (torch.empty(2, 3, device="meta"),)
    )
    assert note == "the weights have no values: the graph was not compared with the network"
