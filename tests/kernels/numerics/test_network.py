"""Whole passes on the kernels: the statistics of two candidates of a small network on two batches,
and its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType

import numpy as np
import pytest
import torch
from ragged.buffers import Setting
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.kernels.launch import Launch
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.evaluation.fresh_statistics import Statistics, fresh_statistics
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.lowering.backends import Step, TritonKernels
from pruneopt.passes.lowering.cuda_graphs import CudaGraphs
from pruneopt.passes.lowering.lower_evaluation import lower_evaluation
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.lowering.run_evaluation import run_evaluation
from pruneopt.passes.lowering.run_statistics import (
    BatchStatistics,
    PreparedStatistics,
    run_statistics,
)


class Small(nn.Module):
    """Every kernel of a statistics pass: strides, a depthwise convolution, a sum with two readers,
    a mean of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = (
            nn.Conv2d(3, 20, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(20),
        )
        self.dw, self.dwn = (
            nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False),
            nn.BatchNorm2d(20),
        )
        self.point, self.pointn = nn.Conv2d(20, 20, 1), nn.BatchNorm2d(20)
        self.down, self.downn = nn.Conv2d(20, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(20, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(x + self.pointn(self.point(nn.functional.silu(self.dwn(self.dw(x))))))
        return self.downn(
            self.down(y) * self.gate(nn.functional.adaptive_avg_pool2d(y, 1)).sigmoid()
        )


pytestmark = pytest.mark.gpu


def error(got: Tensor, wanted: Tensor, scale: Tensor) -> float:
    """Relative to each channel's scale; channels that an activation has all but silenced to that of
    the others."""
    return float(((got.double() - wanted).abs() / scale.clamp_min(1e-2 * scale.max())).max())


def test_a_network_on_the_kernels(setting: Setting, device: str) -> None:
    torch.manual_seed(0)
    net = Small().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    graph = capture(net, torch.zeros(1, 3, 9, 9))
    graphs = [graph, cut(graph, 0.6)]
    batches = [torch.randn(count, 3, 9, 9) for count in (2, 3)]
    backend = TritonKernels(torch.device(device), setting.dtype, setting.precision)
    lowered = [lower_statistics(item) for item in graphs]
    placed = [{name: tensor.to(device) for name, tensor in item.weights.items()} for item in graphs]
    found = run_statistics(lowered, placed, [batch.to(device) for batch in batches], backend)
    for item, of_candidate in zip(graphs, found, strict=True):
        check(item, batches, of_candidate, setting)


def cut(graph: Graph, share: float) -> Graph:
    coupling = couple(graph)
    rng = np.random.default_rng(0)
    plan = {
        g.name: np.sort(rng.permutation(g.width)[: max(1, round(share * g.width))])
        for g in coupling.free
    }
    return slice_graph(graph, coupling, plan)


def check(
    graph: Graph, batches: list[Tensor], found: list[list[BatchStatistics]], setting: Setting
) -> None:
    """Statistics of every batch against the interpreter of graphs in float64."""
    # Errors of ten layers add up.
    mean_bound, variance_bound = 20 * setting.mean, 20 * setting.variance
    exact = {name: t.double() if t.is_floating_point() else t for name, t in graph.weights.items()}
    for batch, of_batch in zip(batches, found, strict=True):
        wanted = Statistics()
        fresh_statistics(graph, exact, [batch.double()], Averaging("mean"), into=wanted)
        assert [one.name for one in of_batch] == list(wanted.means)
        for one in of_batch:
            variance = wanted.variances[one.name][0] * (one.count - 1) / one.count
            assert error(one.mean.cpu(), wanted.means[one.name][0], variance.sqrt()) < mean_bound
            assert error(one.variance.cpu(), variance, variance) < variance_bound


class Fused(nn.Sequential):
    """No op of its statistics pass stays with PyTorch."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 36, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(36), nn.ReLU6()),
            *(
                nn.Conv2d(36, 36, 3, padding=1, groups=36, bias=False),
                nn.BatchNorm2d(36),
                nn.ReLU(),
            ),
            *(nn.Conv2d(36, 20, 1, bias=False), nn.BatchNorm2d(20)),
        )


def test_recorded_launches_serve_other_candidates(setting: Setting, device: str) -> None:
    """On a GPU as a CUDA graph; in the interpreter the launches are kept as values, grids and
    arguments and all."""
    graph = capture(Fused().eval(), torch.zeros(1, 3, 7, 7))
    backend = TritonKernels(torch.device(device), setting.dtype, setting.precision)
    recorded: list[int] = []

    def keep(steps: Sequence[Step]) -> Step:
        owners = [step.__self__ for step in steps if isinstance(step, MethodType)]
        launches = [owner for owner in owners if isinstance(owner, Launch)]
        assert len(launches) == len(steps)
        recorded.append(len(launches))

        def start() -> None:
            for launch in launches:
                launch.run()

        return start

    recorder = keep if device == "cpu" else CudaGraphs(torch.device(device))
    prepared = PreparedStatistics([lower_statistics(graph)], backend, recorder)
    generator = torch.Generator().manual_seed(3)
    # Fewer and smaller batches than there is room for leave segments without work.
    for share, counts in ((0.5, (3, 2)), (0.05, (2,)), (1.0, (3, 3))):
        candidate = cut(graph, share)
        batches = [torch.randn(count, 3, 7, 7, generator=generator) for count in counts]
        prepared.load(
            [lower_statistics(candidate)], [{k: t.to(device) for k, t in candidate.weights.items()}]
        )
        (found,) = prepared.run([batch.to(device) for batch in batches])
        check(candidate, batches, found, setting)
    assert prepared.launches.told == "6 launches in 1 CUDA graph"
    assert recorded == ([6] if device == "cpu" else [])


def test_a_network_in_evaluation_mode_on_the_kernels(setting: Setting, device: str) -> None:
    torch.manual_seed(0)
    graph = capture(Small().eval(), torch.zeros(1, 3, 9, 9))
    folded = fold_batch_norms(graph)
    x = torch.randn(3, 3, 9, 9)
    weights = folded.weights(graph.weights)
    backend = TritonKernels(torch.device(device), setting.dtype, setting.precision)
    placed = {name: tensor.to(device) for name, tensor in weights.items()}
    (found,) = run_evaluation([lower_evaluation(folded.graph)], [placed], x.to(device), backend)
    wanted = Interpreter(folded.graph).run(
        {name: tensor.double() for name, tensor in weights.items()}, x.double()
    )
    scale = wanted.abs().max().expand_as(wanted)
    assert error(found.cpu(), wanted, scale) < 10 * setting.value
