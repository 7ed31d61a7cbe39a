"""The GPU benchmark's networks, their sizes, and candidates of them; toys in a rehearsal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from gpu_device import Device
from torch import Tensor, nn

from pruneopt import Graph, capture, load_model
from pruneopt.extend import Coupling, couple, score_units, slice_graph
from pruneopt.passes.analysis.ops.batch_norm import running_norm
from pruneopt.passes.evaluation.fresh_statistics import statistic_norms
from pruneopt.passes.lowering.lower_statistics import LoweredStatistics, lower_statistics
from pruneopt.passes.selection.select import best_units

__all__ = [
    "FULL",
    "KEEPS",
    "MAIN_KEEP",
    "SPECS",
    "TOY",
    "Candidate",
    "Network",
    "Sizes",
    "lowered_on",
    "network",
    "on_device",
    "toy_network",
]

SPECS = {
    "resnet50": ("torchvision:resnet50", 224),
    "mobilenet_v2": ("torchvision:mobilenet_v2", 224),
    "resnet56": ("zoo:resnet56", 32),
    "mobilenet_v1": ("zoo:mobilenet_v1", 224),
}
KEEPS = (1.0, 0.75, 0.5)
MAIN_KEEP = 0.75
"""What the goals are about."""


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        images: of a batch.
        batches: of the statistics pass, of networks for 224 and for 32 pixels.
        warmups, repeats: of what is timed.
        together: candidates in one launch (P3).
        width_sets: random candidates of the part `widths`.
        ranked, searched: candidates of the parts `ranks` and `search`.
        copy, matrix: bytes that are copied and the side of the matrices, for the ceilings.
        layer_images: of the part `layers`.
        launches: of one kernel in a timed run of `layers`.
    """

    images: int
    batches: tuple[int, int]
    warmups: int
    repeats: int
    together: int
    width_sets: int
    ranked: int
    searched: int
    copy: int
    matrix: int
    layer_images: int
    launches: int


FULL = Sizes(128, (10, 20), 3, 7, 4, 16, 50, 60, 2**32, 8192, 512, 10)
TOY = Sizes(2, (2, 2), 0, 0, 2, 2, 5, 6, 2**16, 64, 2, 1)


class ToyResNet(nn.Module):
    """A stem with a max pool, and a block of 1x1, 3x3 and 1x1 with a sum."""

    def __init__(self, widths: tuple[int, int] = (12, 10)) -> None:
        super().__init__()
        outer, inner = widths
        self.stem, self.norm = nn.Conv2d(3, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer)
        self.block = nn.Sequential(
            *(nn.Conv2d(outer, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)),
        )
        self.pool, self.head = nn.MaxPool2d(2, 1), nn.Linear(outer, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        x = torch.relu(self.block(x) + x)
        logits: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class ToyMobileNet(nn.Sequential):
    """A stem and one separable convolution."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
            *(
                nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
                nn.BatchNorm2d(12),
                nn.ReLU6(),
            ),
            *(nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)),
        )


def toy_network(name: str) -> nn.Module:
    """Return what stands for a network in a rehearsal, 5 pixels wide."""
    torch.manual_seed(0)
    return ToyMobileNet() if name.startswith("mobilenet") else ToyResNet()


@dataclass(frozen=True, eq=False)
class Network:
    """A network with random weights, and the batches that its statistics are taken of.

    Attributes:
        batches: `[images, 3, size, size]`, channels last, in half precision, on the device.
    """

    name: str
    graph: Graph
    coupling: Coupling
    scores: dict[str, np.ndarray]
    batches: list[Tensor]

    def uniform(self, keep: float) -> Candidate:
        """Return the channels with the best scores, the same share of every group."""
        return self._candidate([keep] * len(self.coupling.free))

    def random(self, number: int) -> Candidate:
        """Return a share of 0.4 to 1 of every group, each its own."""
        return self._candidate(
            list(np.random.default_rng(number).uniform(0.4, 1.0, len(self.coupling.free)))
        )

    def _candidate(self, shares: Sequence[float]) -> Candidate:
        plan = {}
        for group, share in zip(self.coupling.free, shares, strict=True):
            width = max(group.least, round(share * len(group.blocks[0])))
            plan[group.name] = best_units(group, self.scores[group.name], width * group.step)
        return Candidate(self, plan)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Channels of a network that are kept."""

    network: Network
    plan: dict[str, np.ndarray]

    @cached_property
    def padded(self) -> dict[str, np.ndarray]:
        """A plan that keeps some more, up to a multiple of 8 in every group; their scale and shift
        are zero."""
        found = {}
        for group in self.network.coupling.free:
            kept, parts = self.plan.get(group.name, np.arange(group.width)), []
            for block in group.blocks:
                own = np.intersect1d(block, kept)
                parts += [own, np.setdiff1d(block, kept)[: -len(own) % 8]]
            found[group.name] = np.sort(np.concatenate(parts))
        return found

    @cached_property
    def flags(self) -> dict[str, np.ndarray]:
        """For every batch norm, by the name of its running mean, which channels `[C]` of the
        network are kept."""
        return self._flags(self.plan)

    @cached_property
    def padded_flags(self) -> dict[str, np.ndarray]:
        """Of the channels of the padded network, which are kept."""
        wide = self._flags(self.padded)
        return {name: own[wide[name]] for name, own in self.flags.items()}

    def _flags(self, plan: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        coupling = self.network.coupling
        kept = np.append(coupling.kept_units(plan), True)
        found = {}
        for norm in filter(None, map(running_norm, coupling.graph.ops)):
            units = np.full(norm.mean.type.shape(), len(kept) - 1)
            for slot in coupling.slots_of(norm.mean):
                units = np.broadcast_to(slot.units, units.shape)
            found[norm.mean.name] = kept[units]
        return found

    def sliced(self) -> Graph:
        """Return the network with the kept channels."""
        return slice_graph(self.network.graph, self.network.coupling, self.plan)

    def masked(self) -> Graph:
        """Return the whole network; scale and shift of the other channels are zero."""
        graph = self.network.graph.copy()
        graph.weights = dict(self.network.graph.weights)
        for norm in statistic_norms(graph).values():
            for value in filter(None, (norm.scale, norm.shift)):
                flags = torch.from_numpy(self.flags[norm.mean.name])
                graph.weights[value.name] = graph.weights[value.name] * flags
        return graph

    def padded_graph(self) -> Graph:
        """Return the network with the padded channels."""
        return slice_graph(self.masked(), self.network.coupling, self.padded)


@cache
def network(name: str, sizes: Sizes, device: Device) -> Network:
    """Return one of `SPECS` with its batches on the device; made once."""
    spec, side = SPECS[name]
    batches = sizes.batches[side < 224]
    if device.rehearsal:
        side, module = 5, toy_network(name)
    else:
        loaded = load_model(spec).module
        assert isinstance(loaded, nn.Module)
        module = loaded
    graph = capture(module.eval(), torch.zeros(2, 3, side, side))
    coupling = couple(graph)
    generator = torch.Generator(device.place).manual_seed(1)
    shape = (sizes.images, 3, side, side)
    drawn = (torch.randn(shape, generator=generator, device=device.place) for _ in range(batches))
    placed = [x.to(device.half).contiguous(memory_format=torch.channels_last) for x in drawn]
    return Network(name, graph, coupling, score_units(coupling, graph.weights, "l1"), placed)


def on_device(graph: Graph, device: Device) -> dict[str, Tensor]:
    return {name: tensor.to(device.place) for name, tensor in graph.weights.items()}


def lowered_on(graph: Graph, device: Device) -> tuple[LoweredStatistics, dict[str, Tensor]]:
    """Return a graph as the kernels take it, and its weights on the device."""
    return lower_statistics(graph), on_device(graph, device)
