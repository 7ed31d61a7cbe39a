"""The times of one measured network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["NodeTime", "Sample", "undisturbed"]


def undisturbed(times: np.ndarray) -> np.ndarray:
    """Return the medians over the faster half of the runs, `[runs, ops]` -> `[ops]`.

    A run in which other work took the processor is slower as a whole; on a quiet machine the half
    changes little. It is for the shares of ops. The whole network has its plain median, which is
    what a budget is held against.
    """
    whole = times.sum(axis=1)
    found: np.ndarray = np.median(times[whole <= np.median(whole)], axis=0)
    return found


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One op as the target ran it.

    Attributes:
        name: what the target calls it.
        kind: what it does, in the target's words.
        region: the number of the region that it lies in (see `regions`).
        seconds: the median over the runs that were not disturbed.
        shapes: of its inputs and outputs.
        moved: bytes of its inputs, weights and outputs.
    """

    name: str
    kind: str
    region: int
    seconds: float
    shapes: tuple[tuple[int, ...], ...]
    moved: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A network that ran on a target: the median seconds of the whole, and its ops in the order in
    which they ran."""

    seconds: float
    nodes: tuple[NodeTime, ...]

    def by_region(self, count: int) -> np.ndarray:
        """Return seconds of the regions, `[count]`."""
        found = np.zeros(count)
        for node in self.nodes:
            found[node.region] += node.seconds
        return found
