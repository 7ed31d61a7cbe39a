"""Folded networks give what the modules give in evaluation mode, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.verifier import verify_graph
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms


class Every(nn.Module):
    """Batch norms that fold, and those that cannot: before a layer, behind a sum, over positions,
    of a read value."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.deep = nn.BatchNorm2d(8)
        self.read = nn.Conv2d(8, 8, 1)
        self.also = nn.BatchNorm2d(8)
        self.added = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.late = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.features = nn.BatchNorm1d(5)
        self.places = nn.Linear(5, 6)
        self.positions = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(self.before(x))))
        x = self.deep(self.depthwise(torch.relu(self.plain(self.grouped(x)))))
        y = self.read(x)
        x = self.added(self.also(y) + y)
        x = self.late(self.up(x)).mean((2, 3))
        x = self.features(self.head(x))
        return self.positions(self.places(torch.stack([x, x, 2 * x], dim=1)))


def random_statistics(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 3)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)


def test_the_same_function() -> None:
    torch.manual_seed(0)
    net = Every().double().eval()
    random_statistics(net)
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    graph = capture(net, x)
    folded = fold_batch_norms(graph)
    verify_graph(folded.graph)
    kept = {op.needed(3).name for op in folded.graph.ops if op.role == "batch_norm"}
    assert kept == {
        f"{name}.running_mean" for name in ("before", "also", "added", "late", "positions")
    }
    found = Interpreter(folded.graph).run(folded.weights(graph.weights), x)
    with torch.no_grad():
        torch.testing.assert_close(found, net(x), rtol=1e-12, atol=1e-12)
    assert sum(op.role == "batch_norm" for op in graph.ops) == 9


class Tied(nn.Module):
    """One convolution behind which stand two different batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.conv(torch.relu(self.one(self.conv(x)))))


def test_a_shared_layer_is_folded_twice() -> None:
    torch.manual_seed(1)
    net = Tied().double().eval()
    random_statistics(net)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = capture(net, x)
    folded = fold_batch_norms(graph)
    assert not any(op.role == "batch_norm" for op in folded.graph.ops)
    with torch.no_grad():
        torch.testing.assert_close(
            Interpreter(folded.graph).run(folded.weights(graph.weights), x), net(x)
        )


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "googlenet"])
def test_networks_of_torchvision(name: str) -> None:
    from torchvision import models

    torch.manual_seed(2)
    net = models.get_model(name).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    graph = capture(net, x)
    folded = fold_batch_norms(graph)
    assert not any(op.role == "batch_norm" for op in folded.graph.ops)
    with torch.no_grad():
        torch.testing.assert_close(
            Interpreter(folded.graph).run(folded.weights(graph.weights), x), net(x)
        )
