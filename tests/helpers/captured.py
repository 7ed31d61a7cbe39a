"""Capture checked: a graph that computes what its network does, and how to run it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.verifier import verify_graph


class Network(nn.Module):
    """A network with whatever capture could disturb: batch norm, dropout, a frozen part, hooks, a
    buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("offset", torch.ones(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        return self.fc(self.drop(x.mean((2, 3)))) + self.offset


def run(graph: Graph, *inputs: Tensor, training: bool = False) -> Any:
    return Interpreter(graph).run(graph.weights, *inputs, training=training)


def targets(graph: Graph) -> list[str]:
    return [op.base for op in graph.ops]


def check(model: nn.Module, *inputs: Tensor, **options: Any) -> Graph:
    """Capture, verify, and compare with the model in evaluation mode; returns the graph."""
    graph = capture(model, inputs, **options)
    verify_graph(graph)
    model = copy.deepcopy(model).eval()
    torch.testing.assert_close(run(graph, *inputs), model(*inputs), rtol=0, atol=0)
    return graph
