"""Lowered networks give the statistics that the interpreter gives, in float64, and say what no
kernel does."""

from __future__ import annotations

import pytest
import torch
from nets import zoo
from torch import Tensor, nn
from torchvision import models

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.verifier import verify_graph
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation.fresh_statistics import Statistics, fresh_statistics
from pruneopt.passes.lowering.lower_statistics import LoweredStatistics, lower_statistics


def check(net: nn.Module, size: int = 33, batch: int = 4) -> LoweredStatistics:
    """Lower a network and compare every statistic of a batch."""
    net = net.double().eval()
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d) and part.affine:
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, generator=generator)
    x = torch.randn(batch, 3, size, size, dtype=torch.float64, generator=generator)
    graph = capture(net, x)
    wanted = Statistics()
    fresh_statistics(graph, graph.weights, [x], Averaging("mean"), into=wanted)
    lowered = lower_statistics(graph)
    verify_graph(lowered.graph)
    with torch.no_grad():
        found = Interpreter(lowered.graph).run(graph.weights, x)
    assert len(found) == 2 * len(lowered.norms)
    seen: dict[str, int] = {}
    for number, norm in enumerate(lowered.norms):
        name = norm.mean.name
        place = seen.setdefault(name, 0)
        seen[name] += 1
        count = wanted.counts[name][place]
        torch.testing.assert_close(
            found[2 * number], wanted.means[name][place], rtol=1e-9, atol=1e-9
        )
        unbiased = found[2 * number + 1] * count / (count - 1)
        torch.testing.assert_close(unbiased, wanted.variances[name][place], rtol=1e-9, atol=1e-12)
    assert seen == {name: len(means) for name, means in wanted.means.items()}
    assert print_graph(parse_graph(print_graph(lowered.graph))) == print_graph(lowered.graph)
    return lowered


def roles(lowered: LoweredStatistics) -> dict[str, int]:
    found: dict[str, int] = {}
    for op in lowered.graph.ops:
        found[op.base] = found.get(op.base, 0) + 1
    return found


def test_a_residual_network_is_all_kernels_but_its_shortcuts() -> None:
    lowered = check(zoo("resnet20"), 32)
    found = roles(lowered)
    # The last batch norm's scale is of no use. Sums are written where the stride changes, for the
    # shortcut's slices.
    assert found["pruneopt.conv_statistics"] == found["pruneopt.norm_affine"] + 1 == 19
    assert found["pruneopt.add_act"] == 2
    assert {item.op.role for item in lowered.unfused} == {"slice", "pad"}


@pytest.mark.parametrize(
    ("name", "unfused"),
    [
        ("resnet50", {"max_pool2d"}),
        ("mobilenet_v2", set()),
        ("vgg11_bn", {"max_pool2d"}),
        (
            "shufflenet_v2_x0_5",
            {"max_pool2d", "chunk", "cat", "reshape", "transpose", "contiguous"},
        ),
        ("densenet121", {"max_pool2d", "cat", "batch_norm", "avg_pool2d", "conv2d"}),
        ("mobilenet_v3_small", {"mul", "conv2d", "relu", "hardsigmoid"}),
    ],
)
def test_networks_of_torchvision(name: str, unfused: set[str]) -> None:
    torch.manual_seed(0)
    lowered = check(models.get_model(name))
    assert {item.op.role for item in lowered.unfused} == unfused
    assert "batch_norm" not in roles(lowered)


def test_a_sum_is_written_once_for_several_readers() -> None:
    """In a ResNet-50 the first convolution of a block reads each pixel once, and writes the sum for
    the skip."""
    torch.manual_seed(0)
    lowered = check(models.resnet50())
    writers = [
        op
        for op in lowered.graph.ops
        if op.base == "pruneopt.conv_statistics" and op.results[3].users
    ]
    # Of 16 blocks; the first reads what was pooled, and the last sum is read by nobody.
    assert len(writers) == 14
    assert "pruneopt.add_act" in roles(lowered)  # for the max pooling behind the stem


class Odd(nn.Module):
    """A bias in front of a batch norm, a norm of an input, a shared activation, a dropout, and an
    output in the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.biased = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, affine=False, eps=1e-2)
        self.down = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=2, bias=False)
        self.low = nn.BatchNorm2d(6)
        self.skip = nn.Conv2d(6, 6, 1, stride=2)
        self.frozen = nn.BatchNorm2d(6).eval()
        self.last = nn.Conv2d(6, 4, 3, dilation=2, padding=2)
        self.end = nn.BatchNorm2d(4)
        self.frozen.train = lambda mode=True: self.frozen  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.nn.functional.silu(self.norm(self.biased(self.first(x))))
        x = torch.nn.functional.dropout(x, training=self.training)
        y = self.low(self.down(x)) + self.frozen(self.skip(x))
        z = torch.relu(y)
        return self.end(self.last(z)), y.sum((1, 2, 3))


def test_what_is_odd() -> None:
    torch.manual_seed(0)
    lowered = check(Odd(), 9)
    why = {item.op.role: item.why for item in lowered.unfused}
    assert why["batch_norm"].startswith("its statistics take a pass of their own")
    assert why["conv2d"] == "no batch norm alone reads it"
    assert [norm.mean.name for norm in lowered.norms] == [
        "first.running_mean",
        "norm.running_mean",
        "low.running_mean",
        "end.running_mean",
    ]


def test_nothing_to_recompute() -> None:
    graph = capture(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 5, 5))
    with pytest.raises(UserError, match="no batch norm over images"):
        lower_statistics(graph)
