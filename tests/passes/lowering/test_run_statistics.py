"""The lowered statistics pass of several candidates at once gives what the interpreter gives for
each on each batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.random_candidates import batches, cut, lively
from nets import zoo
from torch import Tensor, nn
from torchvision import models

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation.fresh_statistics import Statistics, fresh_statistics
from pruneopt.passes.lowering.backends import ReferenceKernels
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.lowering.run_statistics import run_statistics


def check(graphs: Sequence[Graph], batches: Sequence[Tensor]) -> None:
    lowered = [lower_statistics(graph) for graph in graphs]
    found = run_statistics(
        lowered, [graph.weights for graph in graphs], batches, ReferenceKernels(torch.float64)
    )
    for graph, of_candidate in zip(graphs, found, strict=True):
        for batch, of_batch in zip(batches, of_candidate, strict=True):
            wanted = Statistics()
            fresh_statistics(graph, graph.weights, [batch], Averaging("mean"), into=wanted)
            seen: dict[str, int] = {}
            for item in of_batch:
                place = seen[item.name] = seen.get(item.name, -1) + 1
                assert item.count == wanted.counts[item.name][place]
                torch.testing.assert_close(
                    item.mean, wanted.means[item.name][place], rtol=1e-9, atol=1e-9
                )
                unbiased = item.variance * item.count / (item.count - 1)
                torch.testing.assert_close(
                    unbiased, wanted.variances[item.name][place], rtol=1e-9, atol=1e-12
                )
            assert {name: place + 1 for name, place in seen.items()} == {
                k: len(v) for k, v in wanted.means.items()
            }


def test_ragged_candidates_on_uneven_batches() -> None:
    graph = capture(lively(zoo("resnet20")), torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    check(cut(graph, [0.3, 0.05, 0.9]), batches(32, 4, 4, 3))


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "mobilenet_v2",
        "vgg11_bn",
        "shufflenet_v2_x0_5",
        "densenet121",
        "mobilenet_v3_small",
    ],
)
def test_networks_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    graph = capture(lively(models.get_model(name)), torch.zeros(1, 3, 33, 33, dtype=torch.float64))
    check(cut(graph, [0.4]), batches(33, 4))


class Odd(nn.Module):
    """Whole groups of a grouped convolution that others read too, a bias and no gamma in front, and
    a frozen norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12, affine=False, eps=1e-2)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3, bias=False)
        self.low = nn.BatchNorm2d(12)
        self.skip = nn.Conv2d(12, 12, 1)
        self.frozen = nn.BatchNorm2d(12).eval()
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, dilation=2, padding=2, groups=12)
        self.end = nn.BatchNorm2d(12)
        self.frozen.train = lambda mode=True: self.frozen  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.silu(self.norm(self.stem(x)))
        y = torch.relu(self.low(self.grouped(x)) + self.frozen(self.skip(x)) + x)
        return self.end(self.depthwise(y))


def test_groups_biases_and_frozen_norms() -> None:
    torch.manual_seed(0)
    graph = capture(lively(Odd()), torch.zeros(1, 3, 7, 7, dtype=torch.float64))
    check([graph, *cut(graph, [0.3, 0.3])], batches(7, 2, 3))


def test_candidates_may_have_other_numbers_of_groups() -> None:
    """Candidates of a ResNeXt lose whole groups, other numbers of them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    graph = capture(lively(net), torch.zeros(1, 3, 9, 9, dtype=torch.float64))
    check(cut(graph, [0.01, 0.5, 1.0]), batches(9, 2))
