"""A plan at random or at the extreme, and the proof of what comes out, for every test of the
passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph, values_in
from pruneopt.ir.interpreter import Interpreter
from pruneopt.models.data import load_data
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train


def random_plan(coupling: Coupling, seed: int | None) -> dict[str, np.ndarray]:
    """Kept units of every free group: as few as allowed, or (with a seed) as many as chance has it,
    anywhere."""
    random = np.random.default_rng(seed)
    plan = {}
    for group in coupling.free:
        count = (
            group.least
            if seed is None
            else int(random.integers(group.least, len(group.blocks[0]) + 1))
        )
        kept = [random.permutation(block)[:count] for block in group.blocks]
        plan[group.name] = np.sort(np.concatenate(kept))
    return plan


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a network's result, in the order of its structure."""
    return [
        leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)
    ]


def awaken(model: nn.Module) -> nn.Module:
    """Every parameter and statistic gets values of its own, so that no two channels are alike; in
    evaluation mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(0.5 + torch.rand_like(tensor)).add_(0.1 * torch.rand_like(tensor))
    return model.eval()


def at_batch(inputs: Sequence[torch.Tensor], graph: Graph, size: int) -> list[torch.Tensor]:
    """The inputs with as many rows, where the first dimension is the batch."""
    rows = []
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        batched = value.type.dims and not isinstance(value.type.dims[0], int)
        rows.append(torch.cat([tensor] * size)[:size] if batched else tensor)
    return rows


@pytest.fixture
def prove() -> Callable[..., Coupling]:
    """``prove(model, inputs)``: capture, couple, prune at random and to the minimum; verify, run,
    regenerate each."""

    def run(
        model: nn.Module,
        *inputs: torch.Tensor,
        seeds: Sequence[int | None] = (None, 0, 1),
        heads: str = "width",
        groups: str = "width",
    ) -> Coupling:
        graph = capture(awaken(model), inputs)
        coupling = couple(graph, heads=heads, groups=groups)
        for seed in seeds:
            plan = random_plan(coupling, seed)
            pruned = slice_graph(graph, coupling, plan)
            verify_pruned(graph, coupling, plan, pruned, inputs)
            module = build_module(pruned, pruned.weights)
            for size in (1, 3) if graph.dynamic_batch else (1,):
                rows = at_batch(inputs, graph, size)
                with torch.no_grad():
                    interpreted = Interpreter(pruned).run(pruned.weights, *rows)
                    generated = module(*rows)
                    original = model(*rows)
                shapes = [t.shape for t in tensors(original)]
                assert [t.shape for t in tensors(interpreted)] == shapes
                for mine, theirs in zip(tensors(generated), tensors(interpreted), strict=True):
                    torch.testing.assert_close(mine, theirs, equal_nan=True)
            assert list(values_in(pruned.outputs))
        return coupling

    return run


@pytest.fixture
def make_plan() -> Callable[[Coupling, int | None], dict[str, np.ndarray]]:
    return random_plan


@pytest.fixture(scope="session")
def workload() -> Workload:
    return load_data("digits?subval=300&calibration=400", input_shape=(1, 1, 8, 8))


@pytest.fixture(scope="session")
def trained(workload: Workload) -> Graph:
    torch.manual_seed(0)
    network = DigitsResNet((6, 8, 12))
    train(network, workload, SGD(epochs=5, lr=0.1, batch_size=64))
    return capture(network, torch.zeros(2, 1, 8, 8))
