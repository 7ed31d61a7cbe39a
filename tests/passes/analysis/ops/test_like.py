"""A user's op that is like one of PyTorch's is treated as that one wherever ops are told apart: the
network made of such ops and its twin of PyTorch's own go through every analysis side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruneopt.extend import like, register_op
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import ROLES, Graph
from pruneopt.models.workload import TensorSplit, Workload
from pruneopt.passes.analysis.cost.conventions import conventions
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_measure import layer_shapes, table_of
from pruneopt.passes.analysis.cost.latency_table import timed_layers
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.ops.resize import SIZES
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.repair.lstsq import LayerFit
from pruneopt.passes.repair.repair import Repair, RepairReport
from pruneopt.passes.transform.stages import Cost, Couple, Slice


def _dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, weight) + bias


def _filter(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _define(function: Callable[..., Tensor]) -> Any:
    op = torch.library.custom_op(f"liketest::{function.__name__[1:]}", function, mutates_args=())
    op.register_fake(function)
    return op


DENSE, FILTER = _define(_dense), _define(_filter)


class Net(nn.Module):
    """Convolutions, a grouped one among them, and linear layers, one with a square weight."""

    def __init__(self, convolve: Callable[..., Tensor], product: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.hidden, self.out = nn.Linear(8, 8), nn.Linear(8, 5)
        self.convolve, self.product = convolve, product

    def forward(self, x: Tensor) -> Tensor:
        for layer, stride in ((self.stem, 2), (self.grouped, 1)):
            x = self.convolve(
                x, layer.weight, layer.bias, [stride] * 2, [1, 1], [1, 1], layer.groups
            ).relu()
        x = self.product(x.mean((2, 3)), self.hidden.weight, self.hidden.bias).relu()
        return self.product(x, self.out.weight, self.out.bias)


LAYERS = ("stem", "grouped", "hidden", "out")
CUT = {"stem": [1, 6], "grouped": [0, 5], "hidden": [2, 7]}


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def twins() -> Iterator[tuple[Graph, Graph]]:
    """The network of user's ops, and the same of PyTorch's."""
    register_op("liketest::dense", like("linear"))
    register_op("liketest::filter", like("conv2d"))
    mine, theirs = (
        capture(Net(*functions).eval(), images(2))
        for functions in ((FILTER, DENSE), (F.conv2d, F.linear))
    )
    assert sum(op.base.startswith("liketest.") for op in mine.ops) == len(LAYERS)
    yield mine, theirs
    for known in (SIZES, ROLES):
        for name in [name for name in known if name.startswith("liketest.")]:
            del known[name]


def test_the_same_channels_are_coupled(twins: tuple[Graph, Graph]) -> None:
    found = []
    for graph in twins:
        coupling = couple(graph)
        assert not coupling.unknown
        found.append(
            [
                (group.name, group.width, group.step, group.frozen, sorted(
                    (member.weight.name, member.axis, member.units.tolist())
                    for member in coupling.members(group)
                ))
                for group in coupling.groups
            ]
        )  # fmt: skip
    assert found[0] == found[1]
    assert [group[0] for group in found[0] if group[3] is None] == ["stem", "grouped", "hidden"]


@pytest.mark.parametrize("convention", [item.name for item in conventions()])
def test_the_same_costs_by_every_convention(twins: tuple[Graph, Graph], convention: str) -> None:
    mine, theirs = (CostModel(graph, couple(graph), convention) for graph in twins)
    widths = np.stack([mine.minimum, mine.full])
    assert (mine.measure("flops", widths) > 0).all()
    for unit in ("flops", "params", "bytes", "memory"):
        np.testing.assert_array_equal(mine.measure(unit, widths), theirs.measure(unit, widths))


def test_the_same_layers_have_times(twins: tuple[Graph, Graph]) -> None:
    mine, theirs = (timed_layers(graph) for graph in twins)
    assert len(mine) == len(LAYERS)
    for layer, twin in zip(mine, theirs, strict=True):
        assert layer_shapes(layer, 4, 6, 2) == layer_shapes(twin, 4, 6, 2)
        assert (layer.input[1], layer.output[1]) == (twin.input[1], twin.output[1])
    tables = []
    for graph in twins:
        cost = CostModel(graph, couple(graph))
        table = table_of(cost, lambda layer, inputs, outputs: 1e-6 * inputs * outputs)
        times = CostModel(graph, couple(graph), latency=table)
        tables.append(times.measure("latency", np.stack([times.minimum, times.full])))
    np.testing.assert_array_equal(tables[0], tables[1])


def test_the_same_slices_are_proved(twins: tuple[Graph, Graph]) -> None:
    outputs = []
    for graph in twins:
        coupling = couple(graph)
        plan = plan_of(graph)
        cut = slice_graph(graph, coupling, plan)
        assert [op.attrs["groups"] for op in cut.ops if "groups" in op.attrs] == [1, 2]
        assert verify_pruned(graph, coupling, plan, cut).max_abs_error < 1e-9
        outputs.append(build_module(cut, cut.weights)(images(6)))
    torch.testing.assert_close(*outputs)


def plan_of(graph: Graph) -> dict[str, np.ndarray]:
    """The plan that removes the channels `CUT`."""
    groups = {group.name: group for group in couple(graph).free}
    return {name: np.setdiff1d(np.arange(groups[name].width), CUT[name]) for name in CUT}


def test_least_squares_repairs_it_alike(twins: tuple[Graph, Graph]) -> None:
    """The repaired network computes what its repaired twin does."""
    repaired, fits = [], []
    for graph in twins:
        split = TensorSplit(images(40), torch.zeros(40, dtype=torch.int64), torch.arange(40))
        state = State(
            original=graph,
            graph=graph.copy(),
            workload=Workload("toy", None, split, split, split, split),
        )
        Couple().run(state)
        Cost().run(state)
        state.plan = plan_of(state.graph)
        Slice().run(state)
        before = build_module(state.graph, state.graph.weights)(images(6))
        assert Repair(method="lstsq", images=40).run(state)
        report = state.records["repair-lstsq"]
        assert isinstance(report, RepairReport)
        fits.append([(fit.before, fit.after) for fit in report.layers if isinstance(fit, LayerFit)])
        repaired.append(build_module(state.graph, state.graph.weights)(images(6)))
        assert (repaired[-1] - before).abs().max() > 1e-3
    assert len(fits[0]) == len(fits[1]) == 3
    torch.testing.assert_close(*repaired, rtol=1e-4, atol=1e-5)
