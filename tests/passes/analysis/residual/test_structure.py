"""The ways through a graph, against their definitions by search, and the chains of groups."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.gene_order import metapruning_genes
from pruneopt.passes.analysis.residual.structure import Flow, ResidualStructure, activations


class Nested(nn.Module):
    """A stem, a block with a block in it, a projection beside a branch, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem, a, b, c, d, e, f, g = self.convs
        x = torch.relu(stem(x))
        inner = F.avg_pool2d(a(x), 2)
        inner = inner + b(torch.relu(inner))
        x = x + F.interpolate(c(inner), scale_factor=2.0)
        low, high = (part.sigmoid() for part in x.chunk(2, 1))
        x = d(torch.relu(e(x))) + f(x) * torch.cat((low, high), 1)
        return x + torch.arange(4.0).view(1, 4, 1, 1), g(low.repeat(1, 2, 1, 1))


class TwoIntoOne(nn.Module):
    """A residual branch whose first layer reads two groups side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(3 if i == 0 else 8, 8, 1) for i in range(3))
        self.mid, self.last, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inside = self.mid(torch.cat((self.a(x), self.b(x)), 1))
        out: Tensor = self.head(x + self.last(inside))
        return out


@pytest.fixture(scope="module")
def flow() -> Flow:
    return Flow(graph_of(Nested()))


def graph_of(model: nn.Module) -> Graph:
    return capture(model.eval(), torch.randn(2, 3, 8, 8))


def reached(graph: Graph, start: set[Value], without: Value | None) -> set[Value]:
    """Return the values that are computed from ``start`` by ways that avoid one value."""
    found = {value for value in start if value is not without}
    for op in graph.ops:
        if not found.isdisjoint(op.inputs):
            found.update(value for value in op.results if value is not without)
    return found


def test_a_fork_is_the_last_value_without_which_nothing_gets_through(flow: Flow) -> None:
    graph = flow.graph
    inputs = set(graph.inputs)
    forks = set()
    for op in graph.ops:
        if not activations(op) or reached(graph, inputs, None).isdisjoint(op.inputs):
            continue
        cuts = [value for value in graph.values if not value.is_weight]
        cuts = [value for value in cuts if reached(graph, inputs, value).isdisjoint(op.inputs)]
        assert flow.fork(op) is cuts[-1]
        forks.add(cuts[-1])
    assert len(forks) > 5


def test_what_is_only_for_a_branch_reaches_no_output_but_through_it(flow: Flow) -> None:
    graph = flow.graph
    outputs = set(graph.output_values)
    sizes = []
    for total in flow.sums:
        for branch in activations(total):
            if set(branch.users) != {total} or branch.producer is None:
                assert flow.only_for(total, branch) == ()
                continue
            mine = [op for op in graph.ops if leads_only_to(graph, op, branch, outputs)]
            assert flow.only_for(total, branch) == tuple(mine)
            sizes.append(len(mine))
    assert max(sizes) > 5
    assert min(sizes) > 0


def leads_only_to(graph: Graph, op: Op, branch: Value, outputs: set[Value]) -> bool:
    """Return whether all ways from an op to an output pass through a value, and there is one."""
    start = set(op.results)
    others = reached(graph, start, branch)
    return not others & outputs and branch in reached(graph, start, None)


def test_groups_side_by_side_are_one_chain_with_what_follows() -> None:
    coupling = couple(graph_of(TwoIntoOne()))
    (chain,) = ResidualStructure(coupling).chains()
    assert sorted(chain[:-1]) == ["a", "b"]
    assert chain[-1] == "mid"
    tied = {gene.groups for gene in metapruning_genes(coupling) if len(gene.groups) > 1}
    assert tied == {tuple(chain)}
