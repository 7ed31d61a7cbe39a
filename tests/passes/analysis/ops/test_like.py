"""A user's op that is like one of PyTorch's is treated as that one wherever ops are told apart: the
network made of such ops and its twin of PyTorch's own go through every analysis side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.states import coupled
from helpers.workloads import images, workload_of
from torch import Tensor, nn

from pruneopt.extend import like, register_op
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import ROLES, Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.passes.analysis.cost.conventions import conventions
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_measure import layer_shapes, table_of
from pruneopt.passes.analysis.cost.latency_table import timed_layers
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.ops.resize import SIZES
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from pruneopt.passes.repair.forms import form_of
from pruneopt.passes.repair.layers import sites_of
from pruneopt.passes.repair.lstsq import LayerFit
from pruneopt.passes.repair.repair import Repair, RepairReport
from pruneopt.passes.transform.stages import Slice


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


def _bare(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    return F.conv2d(x, weight, groups=groups)


def _clipped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Has the channels of a linear layer, and is none."""
    return x @ weight.t().clip(-0.2, 0.2) + bias


DENSE, FILTER = _define(_dense), _define(_filter)
BARE, CLIPPED = _define(_bare), _define(_clipped)


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


@pytest.fixture
def twins() -> Iterator[tuple[Graph, Graph]]:
    """The network of user's ops, and the same of PyTorch's."""
    register_op("liketest::dense", like("linear"))
    register_op("liketest::filter", like("conv2d"))
    mine, theirs = (
        capture(Net(*functions).eval(), images(2, seed=1))
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
        outputs.append(build_module(cut, cut.weights)(images(6, seed=1)))
    torch.testing.assert_close(*outputs)


def plan_of(graph: Graph) -> dict[str, np.ndarray]:
    """The plan that removes the channels `CUT`."""
    groups = {group.name: group for group in couple(graph).free}
    return {name: np.setdiff1d(np.arange(groups[name].width), CUT[name]) for name in CUT}


def test_least_squares_repairs_it_alike(twins: tuple[Graph, Graph]) -> None:
    """The repaired network computes what its repaired twin does."""
    repaired, fits = [], []
    for graph in twins:
        state = coupled(graph, workload_of(images(40, seed=1)))
        state.plan = plan_of(state.graph)
        Slice().run(state)
        before = build_module(state.graph, state.graph.weights)(images(6, seed=1))
        assert Repair(method="lstsq", images=40).run(state)
        report = state.records["repair-lstsq"]
        assert isinstance(report, RepairReport)
        fits.append([(fit.before, fit.after) for fit in report.layers if isinstance(fit, LayerFit)])
        repaired.append(build_module(state.graph, state.graph.weights)(images(6, seed=1)))
        assert (repaired[-1] - before).abs().max() > 1e-3
    assert len(fits[0]) == len(fits[1]) == 3
    torch.testing.assert_close(*repaired, rtol=1e-4, atol=1e-5)


def test_windows_that_an_op_does_not_state_are_not_guessed() -> None:
    """Least squares leaves a convolution that does not say how it moves its kernel."""
    register_op("liketest::bare", like("conv2d"))
    graph = capture(Call(lambda x, w: BARE(x, w, 1), 4, 3, 3, 3).eval(), images(2, seed=1))
    (site,) = sites_of(graph, graph)
    assert form_of(site) == "it has no argument 'stride'"


def _biased(product: Callable[..., Tensor], bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return product(x, weight, bias)


class Call(nn.Module):
    """One op with one weight."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call, self.weight = call, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


def test_nothing_takes_the_place_of_an_op_that_is_only_like_another() -> None:
    """A batch norm is not folded into it: it need not be linear in its weight."""
    register_op("liketest::clipped", like("linear"))
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([3.0, 0.1, 2.0, -1.0]))
    bias = nn.Parameter(torch.zeros(4))
    folded = []
    for product in (CLIPPED, F.linear):
        net = nn.Sequential(Call(partial(_biased, product, bias), 4, 8), norm)
        graph = capture(net.eval(), torch.randn(2, 8))
        small = fold_batch_norms(graph)
        folded.append(len(small.graph.ops) < len(graph.ops))
        x = torch.randn(5, 8)
        found = Interpreter(small.graph).run(small.weights(graph.weights), x)
        torch.testing.assert_close(found, net(x), rtol=1e-4, atol=1e-5)
    assert folded == [False, True]
