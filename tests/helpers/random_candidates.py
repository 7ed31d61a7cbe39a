"""Networks with lively batch norms, and random candidates of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph


def lively(net: nn.Module) -> nn.Module:
    """A network in float64 whose batch norms have scales, shifts and statistics of their own."""
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (part.bias, part.running_mean):
                if tensor is not None:
                    nn.init.normal_(tensor, std=0.3, generator=generator)
    return net.double().eval()


def cut(graph: Graph, keep: Sequence[float]) -> list[Graph]:
    """Candidates with random widths, at least the given share of every group."""
    coupling = couple(graph)
    made = []
    for number, share in enumerate(keep):
        rng = np.random.default_rng(number)
        plan = {}
        for group in coupling.free:
            blocks = [np.asarray(block) for block in group.blocks]
            count = max(1, round(len(blocks[0]) * rng.uniform(share, 1)))
            chosen = np.sort(rng.permutation(len(blocks[0]))[:count])
            plan[group.name] = np.sort(np.concatenate([block[chosen] for block in blocks]))
        made.append(slice_graph(graph, coupling, plan))
    return made


def batches(size: int, *counts: int) -> list[Tensor]:
    """Random images of three colours in float64."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)
        for count in counts
    ]
