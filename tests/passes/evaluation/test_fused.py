"""Statistics by the fused kernels' reference are those of PyTorch; what the kernels do not take
goes PyTorch's way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation.evaluation_backends import Fused, PyTorch, choose
from pruneopt.passes.evaluation.fresh_statistics import Statistics, fresh_statistics
from pruneopt.passes.evaluation.settings import MEAN, EvaluationSettings
from pruneopt.passes.lowering.backends import ReferenceKernels

REFERENCE = EvaluationSettings(kernels="reference")


def fused(graph: Graph, averaging: Averaging = MEAN) -> Fused:
    """In float64."""
    return Fused(graph, averaging, ReferenceKernels(torch.float64), 2, torch.device("cpu"))


def residual(channels: int = 20) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.an = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
            self.b, self.bn = (
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.an(self.a(x)))
            return torch.relu(x + self.bn(self.b(x)))

    torch.manual_seed(0)
    return Residual()


def graph_of(net: nn.Module) -> Graph:
    return capture(net.double().eval(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))


def batches(*counts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=generator) for count in counts
    ]


def statistics(
    graph: Graph, given: list[Tensor], averaging: Averaging = MEAN, into: Statistics | None = None
) -> dict[str, Tensor]:
    """Return the statistics of a single network, by the kernels' reference."""
    so_far = None if into is None else [into]
    (found,) = fused(graph, averaging).statistics([graph], [graph.weights], given, so_far)
    return found


@pytest.mark.parametrize(
    "averaging",
    [
        Averaging("mean"),
        Averaging("ema", 0.1),
        Averaging("ema", 0.3, reset=False),
        Averaging("mean_biased"),
    ],
)
def test_every_semantics_of_batches(averaging: Averaging) -> None:
    graph = graph_of(residual())
    given = batches(4, 5, 3)
    wanted = fresh_statistics(graph, graph.weights, given, averaging)
    found = statistics(graph, given, averaging)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)


def test_batches_may_come_in_parts() -> None:
    """As a race gives them, and as little memory makes it necessary."""
    graph, given = graph_of(residual()), batches(4, 4, 4)
    whole = statistics(graph, given)
    so_far = Statistics()
    statistics(graph, given[:1], into=so_far)
    parts = statistics(graph, given[1:], into=so_far)
    assert so_far.batches == 3
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=0)


def test_norms_that_kernels_do_not_measure_go_the_other_way() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5)),
    )
    with pytest.raises(UserError, match="they measure batch norms over images alone"):
        fused(graph_of(net))
    with pytest.raises(
        UserError, match="not for this: they measure batch norms over images alone; use kernels=off"
    ):
        choose(graph_of(net), REFERENCE)


def test_a_network_without_batch_norm() -> None:
    with pytest.raises(UserError, match="no batch norm"):
        fused(graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())))


def test_one_value_per_channel_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 8, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    graph = graph_of(net)
    with pytest.raises(UserError, match="single value per channel"):
        statistics(graph, batches(1))


def test_what_is_chosen() -> None:
    graph = graph_of(residual())
    assert str(choose(graph, EvaluationSettings())) == ""
    assert isinstance(choose(graph, EvaluationSettings()), PyTorch)
    assert str(choose(graph, EvaluationSettings(precision="bf16"))) == "in bfloat16"
    assert str(choose(graph, REFERENCE)) == "fused kernels (reference) in float32"
    cuda = EvaluationSettings(device="cuda", averaging=Averaging("population"))
    assert str(choose(graph, cuda)) == "no fused kernels: they do not take statistics=population"
    assert str(choose(graph, replace(cuda, kernels="off"))) == ""
    assert str(choose(graph, replace(cuda, precision="bf16"))) == (
        "no fused kernels: they do not take statistics=population, in bfloat16"
    )
    with pytest.raises(
        UserError,
        match="not for this: they compute in float32, not precision=bf16; use kernels=off",
    ):
        choose(graph, replace(REFERENCE, precision="bf16"))
    with pytest.raises(UserError, match="not for this: they do not take whole; use kernels=off"):
        choose(graph, replace(REFERENCE, whole=True))
