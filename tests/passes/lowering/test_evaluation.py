"""Lowered networks in evaluation mode give what the networks give, in float64, also as several
candidates at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.random_candidates import batches, cut, lively
from nets import zoo
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchvision import models

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.verifier import verify_graph
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.lowering.backends import ReferenceKernels
from pruneopt.passes.lowering.lower_evaluation import LoweredEvaluation, lower_evaluation
from pruneopt.passes.lowering.run_evaluation import run_evaluation


def check(graphs: Sequence[Graph], inputs: Tensor) -> LoweredEvaluation:
    """Lower candidates, run them side by side, and the first by the interpreter as well."""
    folded = [fold_batch_norms(graph) for graph in graphs]
    lowered = [lower_evaluation(item.graph) for item in folded]
    weights = [item.weights(graph.weights) for item, graph in zip(folded, graphs, strict=True)]
    found = run_evaluation(lowered, weights, inputs, ReferenceKernels(torch.float64))
    for graph, item, own, got in zip(graphs, lowered, weights, found, strict=True):
        verify_graph(item.graph)
        with torch.no_grad():
            wanted = Interpreter(graph).run(graph.weights, inputs)
            again = Interpreter(item.graph).run(own, inputs)
        for one in (got, again):
            assert pytree.tree_structure(one) == pytree.tree_structure(wanted)
            for left, right in zip(
                pytree.tree_leaves(one), pytree.tree_leaves(wanted), strict=True
            ):
                torch.testing.assert_close(
                    left, right, rtol=1e-9, atol=1e-9 * float(right.abs().max())
                )
    return lowered[0]


def count(lowered: LoweredEvaluation, **wanted: str) -> int:
    """How many fused convolutions have these attributes; ``residual`` counts operands."""
    found = [op for op in lowered.graph.ops if op.base == "pruneopt.conv_output"]
    residual = wanted.pop("residual", None)
    return sum(
        (residual is None or (op.value(3) is not None) == (residual == "yes"))
        and all(op.attrs[name] == value for name, value in wanted.items())
        for op in found
    )


def test_a_residual_network_is_fused_whole() -> None:
    graph = capture(lively(zoo("resnet20")), torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    lowered = check(cut(graph, [0.3, 0.05, 0.9]), batches(32, 3)[0])
    assert {item.op.role for item in lowered.unfused} == {"slice", "pad", "flatten", "linear"}
    assert count(lowered) == count(lowered, activation="relu") == 19
    assert count(lowered, residual="yes") == 9


@pytest.mark.parametrize(
    ("name", "unfused"),
    [
        ("resnet50", {"max_pool2d", "flatten", "linear"}),
        ("mobilenet_v2", {"flatten", "linear"}),
        ("vgg11_bn", {"max_pool2d", "adaptive_avg_pool2d", "flatten", "linear", "relu"}),
        (
            "densenet121",
            {"max_pool2d", "cat", "batch_norm", "relu", "avg_pool2d", "flatten", "linear"},
        ),
        ("mobilenet_v3_small", {"mul", "hardsigmoid", "flatten", "linear", "hardswish"}),
    ],
)
def test_networks_of_torchvision(name: str, unfused: set[str]) -> None:
    torch.manual_seed(0)
    graph = capture(lively(models.get_model(name)), torch.zeros(1, 3, 33, 33, dtype=torch.float64))
    lowered = check(cut(graph, [0.4]), batches(33, 2)[0])
    assert {item.op.role for item in lowered.unfused} == unfused


class Odd(nn.Module):
    """Sums that cannot join: read twice, of three, of another shape; activations in front of one;
    several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.c, self.d = (
            nn.Conv2d(12, 12, 1, bias=False),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
        )
        self.shift = nn.Parameter(torch.randn(1, 12, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.a(x)
        y = torch.relu(self.b(x) + x)
        z = self.c(y)
        both = self.c(y) + self.d(y)
        early = torch.nn.functional.silu(self.d(y)) + z
        twice = self.c(z) + self.c(z)
        end = torch.relu(torch.nn.functional.dropout(twice + self.shift, training=self.training))
        return {"both": both, "early": early, "z": z, "end": end, "low": self.b(end) + self.shift}


def test_what_cannot_join() -> None:
    torch.manual_seed(0)
    graph = capture(lively(Odd()), torch.zeros(1, 3, 7, 7, dtype=torch.float64))
    lowered = check([graph, *cut(graph, [0.4])], batches(7, 2)[0])
    assert count(lowered, residual="yes") == 3
    assert [item.op.role for item in lowered.unfused] == ["add", "add", "relu", "add"]
    assert count(lowered, activation="silu") == 1
