"""Whole passes on the kernels: the statistics of two candidates of a small network on two batches, and its outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ragged.buffers import Setting
from torch import Tensor, nn

from pruneopt.ir.capture import capture
from pruneopt.ir.execute import Interpreter
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.analysis.coupling import couple
from pruneopt.passes.evaluation.folding import fold_batch_norms
from pruneopt.passes.evaluation.statistics import Statistics, fresh_statistics
from pruneopt.passes.lowering.backends import TritonKernels
from pruneopt.passes.lowering.evaluation import lower_evaluation
from pruneopt.passes.lowering.run_evaluation import run_evaluation
from pruneopt.passes.lowering.run_statistics import run_statistics
from pruneopt.passes.lowering.statistics import lower_statistics
from pruneopt.passes.transform.slice import slice_graph


class Small(nn.Module):
    """Every kernel of a statistics pass: strides, a depthwise convolution, a sum with two readers, a mean of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20)
        self.dw, self.dwn = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False), nn.BatchNorm2d(20)
        self.point, self.pointn = nn.Conv2d(20, 20, 1), nn.BatchNorm2d(20)
        self.down, self.downn = nn.Conv2d(20, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(20, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(x + self.pointn(self.point(nn.functional.silu(self.dwn(self.dw(x))))))
        return self.downn(self.down(y) * self.gate(nn.functional.adaptive_avg_pool2d(y, 1)).sigmoid())


pytestmark = pytest.mark.gpu


def error(got: Tensor, wanted: Tensor, scale: Tensor) -> float:
    """Relative to each channel's scale; channels that an activation has all but silenced to that of the others."""
    return float(((got.double() - wanted).abs() / scale.clamp_min(1e-2 * scale.max())).max())


def test_a_network_on_the_kernels(setting: Setting, device: str) -> None:
    torch.manual_seed(0)
    net = Small().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    graph = capture(net, torch.zeros(1, 3, 9, 9))
    coupling = couple(graph)
    rng = np.random.default_rng(0)
    graphs = [graph]
    plan = {g.name: np.sort(rng.permutation(g.width)[: max(1, round(0.6 * g.width))]) for g in coupling.free}
    graphs.append(slice_graph(graph, coupling, plan))
    batches = [torch.randn(count, 3, 9, 9) for count in (2, 3)]
    backend = TritonKernels(torch.device(device), setting.dtype, setting.precision)
    lowered = [lower_statistics(item) for item in graphs]
    placed = [{name: tensor.to(device) for name, tensor in item.weights.items()} for item in graphs]
    found = run_statistics(lowered, placed, [batch.to(device) for batch in batches], backend)
    # Errors of ten layers add up.
    mean_bound, variance_bound = 20 * setting.mean, 20 * setting.variance
    for item, of_candidate in zip(graphs, found, strict=True):
        exact = {name: t.double() if t.is_floating_point() else t for name, t in item.weights.items()}
        for batch, of_batch in zip(batches, of_candidate, strict=True):
            wanted = Statistics()
            fresh_statistics(item, exact, [batch.double()], Averaging("mean"), into=wanted)
            assert [one.name for one in of_batch] == list(wanted.means)
            for one in of_batch:
                variance = wanted.variances[one.name][0] * (one.count - 1) / one.count
                assert error(one.mean.cpu(), wanted.means[one.name][0], variance.sqrt()) < mean_bound
                assert error(one.variance.cpu(), variance, variance) < variance_bound


def test_a_network_in_evaluation_mode_on_the_kernels(setting: Setting, device: str) -> None:
    torch.manual_seed(0)
    graph = capture(Small().eval(), torch.zeros(1, 3, 9, 9))
    folded = fold_batch_norms(graph)
    x = torch.randn(3, 3, 9, 9)
    weights = folded.weights(graph.weights)
    backend = TritonKernels(torch.device(device), setting.dtype, setting.precision)
    placed = {name: tensor.to(device) for name, tensor in weights.items()}
    (found,) = run_evaluation([lower_evaluation(folded.graph)], [placed], x.to(device), backend)
    wanted = Interpreter(folded.graph).run({name: tensor.double() for name, tensor in weights.items()}, x.double())
    scale = wanted.abs().max().expand_as(wanted)
    assert error(found.cpu(), wanted, scale) < 10 * setting.value
