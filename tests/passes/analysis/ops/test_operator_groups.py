"""Layers with groups in both ways of shrinking: channels within every group (the default), or whole
groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import Net
from torch import Tensor, nn
from torch.nn import functional as F

import pruneopt
from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.transform.stages import Couple

IMAGE = (2, 3, 6, 6)


def c(ins: int, outs: int, groups: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, kernel, padding=kernel // 2, groups=groups)


def between(part: Callable[[], nn.Module], ins: int = 8, outs: int = 8) -> Callable[[], nn.Module]:
    """A layer before and a head behind."""
    return lambda: nn.Sequential(c(3, ins), nn.ReLU(), part(), c(outs, 5, kernel=1))


def resnext() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        y = s.n1(s.down(x)).relu()
        y = s.n2(s.grouped(y)).relu()
        y = y * s.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return s.out(x + s.up(y))

    return Net(
        forward,
        a=c(3, 6),
        down=c(6, 8, kernel=1),
        n1=nn.BatchNorm2d(8),
        grouped=c(8, 12, 4),
        n2=nn.BatchNorm2d(12),
        gate=c(12, 12, kernel=1),
        up=c(12, 6, kernel=1),
        out=c(6, 5),
    )


def standardised() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        weight = s.w - s.w.mean((1, 2, 3), keepdim=True)
        return s.out(F.conv2d(s.a(x), weight, groups=4))

    return Net(forward, a=c(3, 8), w=torch.rand(8, 2, 3, 3), out=c(8, 5))


def two_counts() -> nn.Module:
    """The same channels in four groups and in two: two of the four go together."""
    return nn.Sequential(c(3, 8), c(8, 8, 4), nn.ReLU(), c(8, 8, 2), c(8, 5))


NETS: dict[str, tuple[Callable[[], nn.Module], list[int], list[int]]] = {
    # the widths of the free groups: where groups lose channels, and where groups go
    "resnext with a gate": (resnext, [6, 8, 12], [4, 6]),
    "grouped": (between(lambda: c(8, 8, 4)), [8, 8], [4]),
    "grouped, more outputs": (between(lambda: c(8, 16, 4), outs=16), [8, 16], [4]),
    "grouped, one output each": (between(lambda: c(8, 4, 4), outs=4), [8], [4]),
    "transposed": (between(lambda: nn.ConvTranspose2d(8, 12, 2, groups=4), outs=12), [8, 12], [4]),
    "depthwise with a multiplier": (between(lambda: c(8, 16, 8), outs=16), [8], [8]),
    "of the input": (lambda: nn.Sequential(c(3, 6, 3), c(6, 5)), [6], [6]),
    "two numbers of groups": (two_counts, [8, 8, 8], [2]),
    "standardised weight": (standardised, [2, 8], [4]),
    "shuffled": (
        between(lambda: nn.Sequential(c(8, 8, 2), nn.ChannelShuffle(4), c(8, 8, 2))),
        [8, 8],
        [1],
    ),
    "group norm": (between(lambda: nn.GroupNorm(4, 8)), [8], [4]),
    "group norm of one group": (between(lambda: nn.GroupNorm(1, 8)), [8], [8]),
    "group norm of a grouped convolution": (
        between(lambda: nn.Sequential(c(8, 16, 4), nn.GroupNorm(8, 16)), outs=16),
        [8, 16],
        [4],
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_groups_shrink_by_width_or_go(name: str, prove: Callable[..., Any]) -> None:
    make, *free = NETS[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(IMAGE)
    for groups, widths in zip(("width", "count"), free, strict=True):
        coupling = prove(net, x, seeds=(None, 0), groups=groups)
        assert sorted(group.width for group in coupling.free) == widths, groups


def test_a_group_is_its_inputs_and_its_outputs() -> None:
    """And half of the groups of one layer cost half of its FLOPs: each keeps its size."""
    graph = capture(between(lambda: c(8, 16, 4), outs=16)().eval(), (torch.randn(IMAGE),))
    coupling = couple(graph, groups="count")
    (group,) = coupling.free
    pruned = slice_graph(graph, coupling, {group.name: np.array([0, 3])})
    (layer,) = (op for op in pruned.ops if op.attrs.get("groups") == 2)
    assert layer.value(1) is pruned.params["2.weight"]
    expected = {"0.weight": [0, 1, 6, 7], "2.weight": [0, 1, 2, 3, 12, 13, 14, 15]}
    for name, rows in expected.items():
        torch.testing.assert_close(pruned.weights[name], graph.weights[name][rows], rtol=0, atol=0)
    cost = CostModel(graph, coupling, "macs")
    half, full = (float(cost.measure("flops", widths)) for widths in (np.array([2]), cost.full))
    assert 2 * half == full


def test_group_norm_by_whole_groups_is_no_other_function() -> None:
    """Every statistic that is left runs over the channels that it ran over."""
    graph = capture(between(lambda: nn.GroupNorm(4, 8))().eval(), (torch.randn(IMAGE),))
    assert couple(graph).notes
    assert not couple(graph, groups="count").notes


def test_the_own_module_gets_fewer_groups() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(c(3, 8), c(8, 16, 4), nn.GroupNorm(8, 16), nn.ReLU(), c(16, 5)).eval(),
        torch.randn(IMAGE),
    )
    passes = pruneopt.PassManager.parse(
        "couple{groups=count},cost,uniform{budget=60%FLOPs},slice,verify"
    )
    result = passes.run(pruneopt.capture(model, x))
    result.apply_(model)
    grouped, norm = model[1], model[2]
    assert isinstance(grouped, nn.Conv2d)
    assert isinstance(norm, nn.GroupNorm)
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 4, 8)
    assert (norm.num_groups, norm.num_channels) == (4, 8)
    torch.testing.assert_close(model(x), result.module(x))


def test_another_way_is_refused() -> None:
    graph = capture(between(lambda: c(8, 8, 4))().eval(), (torch.randn(IMAGE),))
    with pytest.raises(UserError, match="groups must be one of width, count"):
        couple(graph, groups="all")
    with pytest.raises(UserError, match="groups must be one of width, count"):
        Couple(groups="all")
    state = State(graph, graph)
    Couple(groups="count").run(state)
    assert [group.width for group in state.need_coupling().free] == [4]
