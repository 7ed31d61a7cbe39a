"""Several candidates as one graph: the same results bit by bit, and no op twice that needs to run
only once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from nets import Noisy
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.evaluation.fresh_statistics import fresh_statistics, statistics_together
from pruneopt.passes.evaluation.merged import merge
from pruneopt.passes.graph_rewrites.slice import slice_graph


def chain(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))


@pytest.fixture(scope="module")
def network() -> tuple[Graph, Coupling]:
    graph = capture(chain(8, 8, 8).eval(), torch.zeros(1, 3, 8, 8))
    return graph, couple(graph)


def cut(network: tuple[Graph, Coupling], *kept: list[int]) -> Graph:
    graph, coupling = network
    plan = {group.name: np.array(units) for group, units in zip(coupling.free, kept, strict=True)}
    return slice_graph(graph, coupling, plan)


X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ALL = list(range(8))


def test_what_is_equal_up_to_a_layer_runs_once(network: tuple[Graph, Coupling]) -> None:
    graphs = [
        cut(network, ALL, [0, 1, 2], ALL),
        cut(network, ALL, [0, 1, 3], ALL),
        cut(network, ALL, [0, 1, 2], [4]),
    ]
    merged = merge(graphs, [graph.weights for graph in graphs])
    convolutions = Counter(op.target for op in merged.graph.ops)["aten.conv2d.default"]
    # The first layer is common to all, the second to the first and the last: the second differs in
    # one channel.
    assert convolutions == 1 + 2 + 3
    outputs = Interpreter(merged.graph).run(merged.weights, X)
    for graph, output in zip(graphs, outputs, strict=True):
        assert torch.equal(output, Interpreter(graph).run(graph.weights, X))


def test_equal_shapes_with_other_weights_are_not_equal(network: tuple[Graph, Coupling]) -> None:
    graph, _ = network
    other = {name: tensor.clone() for name, tensor in graph.weights.items()}
    other["0.bias"][0] += 1e-7
    merged = merge([graph, graph, graph], [graph.weights, other, graph.weights])
    assert len(merged.graph.ops) == 2 * len(graph.ops)
    assert merged.shared == pytest.approx(1 / 3)
    first, second, third = Interpreter(merged.graph).run(merged.weights, X)
    assert torch.equal(first, third)
    assert torch.equal(second, Interpreter(graph).run(other, X))


@pytest.mark.parametrize(
    "averaging", [Averaging("mean"), Averaging("ema", 0.1, reset=False), Averaging("population")]
)
def test_statistics_are_those_of_each_alone(
    network: tuple[Graph, Coupling], averaging: Averaging
) -> None:
    graphs = [
        cut(network, ALL, [0, 1, 2], ALL),
        cut(network, ALL, [0, 1, 2], [4, 5]),
        cut(network, [1], ALL, ALL),
    ]
    weights = [graph.weights for graph in graphs]
    together = statistics_together(graphs, weights, [X, X + 1], averaging)
    for graph, found in zip(graphs, together, strict=True):
        alone = fresh_statistics(graph, graph.weights, [X, X + 1], averaging)
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in alone.items())


def test_random_numbers_are_not_shared() -> None:
    graph = capture(Noisy().eval(), torch.zeros(1, 3, 8, 8))
    merged = merge([graph, graph], [{}, {}])
    one, other = Interpreter(merged.graph).run(merged.weights, X)
    assert not torch.equal(one, other)


def test_numbers_that_python_calls_equal_are_told_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.int64) * self.factor

    graphs = [capture(Scaled(factor).eval(), torch.zeros(1, 3, 8, 8)) for factor in (2, 2.0)]
    merged = merge(graphs, [{}, {}])
    whole, floating = Interpreter(merged.graph).run(merged.weights, X)
    assert whole.dtype == torch.int64
    assert floating.dtype == torch.float32
