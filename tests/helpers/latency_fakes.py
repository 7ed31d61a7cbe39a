"""A small network, and a target that takes time by a known staircase."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn, randn

from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.latency.regions import Region, find_regions
from pruneopt.passes.latency.sample import NodeTime, Sample

MACHINE = '{"format": 1, "processor": "a fake", "runtime": "fake 1.0"}'


class Stack(nn.Module):
    """Convolutions over two sizes of images, one of them depthwise, with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.blocks = nn.ModuleList(self._block() for _ in range(3))
        self.down = nn.Conv2d(32, 96, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.head = nn.Linear(96, 10)

    @staticmethod
    def _block() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 32, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.depth(self.down(x).relu()).mean((2, 3)))


def cost_of(module: nn.Module | None = None, size: int = 16) -> CostModel:
    """The cost model of a module on images of a size."""
    graph = capture((module or Stack()).eval(), (randn(1, 3, size, size),))
    return CostModel(graph, couple(graph))


def staircase(region: Region, lengths: np.ndarray) -> np.ndarray:
    """Seconds of a region: work in blocks of 16, slower where a length is no multiple of 4, and a
    floor; `[P]`."""
    blocks = np.ceil(lengths / 16) * 16
    odd = 1 + 0.4 * (lengths % 4 != 0).sum(axis=1)
    found: np.ndarray = 2e-6 + 2e-10 * region.flops(blocks) * odd + 1e-10 * region.moved(lengths)
    return found


class FakeProbe:
    """Measures by `staircase`; ``noise`` is the standard deviation of a time's logarithm."""

    def __init__(
        self, cost: CostModel, noise: float = 0.01, *, whole_only: bool = False, seed: int = 0
    ) -> None:
        self.regions = find_regions(cost)
        self.whole_only, self.calls = whole_only, 0
        self._noise, self._rng = noise, np.random.default_rng(seed)

    def true(self, widths: np.ndarray) -> np.ndarray:
        """Seconds of whole networks, `[P, G]` -> `[P]`: three percent more than the regions, and a
        start."""
        rows = np.atleast_2d(widths)
        sums: np.ndarray = np.sum([staircase(r, r.lengths(rows)) for r in self.regions], axis=0)
        return 1.03 * sums + 1e-5

    def __call__(self, widths: np.ndarray) -> Sample:
        self.calls += 1
        times = np.array([staircase(r, r.lengths(widths[None]))[0] for r in self.regions])
        times = times * np.exp(self._rng.normal(0, self._noise, len(times)))
        nodes = [
            NodeTime(f"op {n}", "Fake", n, float(t), ((1, 2),), 8) for n, t in enumerate(times)
        ]
        whole = float(self.true(widths)[0] * np.exp(self._rng.normal(0, self._noise)))
        return Sample(whole, () if self.whole_only else tuple(nodes))
