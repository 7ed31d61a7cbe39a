"""Statistics by the fused kernels' reference are those of PyTorch; what the kernels do not take goes PyTorch's way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture import capture
from pruneopt.ir.execute import Interpreter
from pruneopt.ir.graph import Graph, Op
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation import fused
from pruneopt.passes.evaluation.fused import Taken, choose, peak_bytes
from pruneopt.passes.evaluation.settings import MEAN, Settings
from pruneopt.passes.evaluation.statistics import Statistics, fresh_statistics
from pruneopt.passes.lowering.backends import ReferenceKernels
from pruneopt.passes.lowering.statistics import lower_statistics

REFERENCE = Settings(kernels="reference")
DOUBLE = Taken(ReferenceKernels(torch.float64))


def residual(channels: int = 20) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.an = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
            self.b, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.an(self.a(x)))
            return torch.relu(x + self.bn(self.b(x)))

    torch.manual_seed(0)
    return Residual()


def graph_of(net: nn.Module) -> Graph:
    return capture(net.double().eval(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))


def batches(*counts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=generator) for count in counts]


def statistics(
    graph: Graph, given: list[Tensor], averaging: Averaging = MEAN, into: Statistics | None = None
) -> dict[str, Tensor]:
    """Those of a single network, by the kernels' reference."""
    so_far = None if into is None else [into]
    (found,) = DOUBLE.statistics([graph], [graph.weights], given, averaging, into=so_far)
    return found


@pytest.mark.parametrize(
    "averaging",
    [Averaging("mean"), Averaging("ema", 0.1), Averaging("ema", 0.3, reset=False), Averaging("mean_biased")],
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


def test_little_memory_takes_few_batches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, given = graph_of(residual()), batches(4, 4, 4)
    wanted = statistics(graph, given)
    sizes = []
    run = fused.run_statistics

    def noted(lowered, weights, part, backend):  # type: ignore[no-untyped-def]
        sizes.append(len(part))
        return run(lowered, weights, part, backend)

    monkeypatch.setattr(fused, "run_statistics", noted)
    each = 4 * peak_bytes(lower_statistics(graph), 8)
    monkeypatch.setattr(fused, "HOST_MEMORY", 2 * each + 1)
    found = statistics(graph, given)
    assert sizes == [2, 1]
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_peak_is_what_a_run_holds() -> None:
    """The largest sum of activations alive at once, counted on a run, with channels padded to 16."""
    lowered = lower_statistics(graph_of(residual(20)))
    largest = 0

    def noted(op: Op, operands: list[Tensor], compute: object) -> None:
        nonlocal largest
        alive = {value for value in frame.env if not value.is_weight and frame.env[value].dim() == 4}
        largest = max(largest, sum(8 * 8 * (16 if frame.env[v].shape[1] == 3 else 32) for v in alive))

    interpreter = Interpreter(lowered.graph, noted)
    weights = graph_of(residual(20)).weights
    frame = interpreter.frame(weights, batches(2)[0])
    for op in lowered.graph.ops:
        interpreter.step(frame, op)
    # Before an op its result is not there yet; the finished input of a convolution is only where others read it.
    assert largest * 8 <= peak_bytes(lowered, 8) <= (largest + 8 * 8 * 32) * 8


def test_norms_that_kernels_do_not_measure_go_the_other_way() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5)),
    )
    graph, given = graph_of(net), batches(4, 4)
    wanted = fresh_statistics(graph, graph.weights, given, Averaging("mean"))
    found = statistics(graph, given)
    assert any(name.startswith("6.") for name in found)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_a_network_without_batch_norm() -> None:
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert statistics(graph, batches(2)) == {}


def test_one_value_per_channel_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 8, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    graph = graph_of(net)
    with pytest.raises(UserError, match="single value per channel"):
        statistics(graph, batches(1))


def test_what_is_chosen() -> None:
    assert str(choose(Settings())) == ""
    assert choose(Settings()).backend is None
    assert str(choose(REFERENCE)) == "fused kernels (reference) in float32"
    cuda = Settings(device="cuda", averaging=Averaging("population"))
    assert str(choose(cuda)) == "no fused kernels: they do not take statistics=population"
    assert str(choose(replace(cuda, kernels="off"))) == ""
    assert str(choose(Settings(precision="bf16"))) == "in bfloat16"
    assert str(choose(replace(cuda, precision="bf16"))) == (
        "no fused kernels: they do not take statistics=population, in bfloat16"
    )
    with pytest.raises(UserError, match="kernels=reference computes in float32: leave precision=bf16 out"):
        choose(replace(REFERENCE, precision="bf16"))
    with pytest.raises(UserError, match="kernels=reference cannot take whole: use kernels=off"):
        choose(replace(REFERENCE, whole=True))
