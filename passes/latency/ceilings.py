"""Ceilings of a machine: multiply-accumulates per second in a product of matrices, and bytes per
second in a copy that stays in each cache, and in memory. Measured, not taken from data sheets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from pruneopt.passes.targets.session import FLOATS
from pruneopt.passes.targets.target import Target

__all__ = ["Ceilings", "measure_ceilings"]

SIDE = {"cpu": 512, "cuda": 8192}
"""Rows and columns of the matrices."""
SIZES = {"cpu": (16 << 10, 512 << 10, 8 << 20, 256 << 20), "cuda": (1 << 30,)}
"""Bytes read by a copy: inside the first, second and third cache of a usual processor, and far
outside."""
STRETCHES, STRETCH = 30, 0.004
"""Timed stretches, and the seconds that one lasts at least."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Multiply-accumulates per second, and (bytes read and written at once, bytes per second) by
    ascending size."""

    macs: float
    copies: tuple[tuple[int, float], ...]

    def bandwidth(self, moved: float) -> float:
        """Return bytes per second for an op that touches so many bytes: of the smallest measured
        copy that is as large."""
        return next((rate for size, rate in self.copies if moved <= size), self.copies[-1][1])

    def seconds(self, macs: float, moved: float) -> float:
        """Return the least time for so much work: that of whichever ceiling binds."""
        return max(macs / self.macs, moved / self.bandwidth(moved))


def measure_ceilings(target: Target) -> Ceilings:
    """Return the ceilings of a target's device in its precision (of int8: those of single
    precision), with its threads."""
    device = (
        torch.device("cuda", target.device) if hasattr(target, "device") else torch.device("cpu")
    )
    dtype = FLOATS.get(getattr(target, "dtype", "fp32"), torch.float32)
    side = SIDE[device.type]
    with _threads(getattr(target, "threads", None)), torch.inference_mode():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        macs = side**3 / _seconds(lambda: torch.mm(a, b, out=out), device)
        copies = []
        for size in SIZES[device.type]:
            source = torch.zeros(size, dtype=torch.uint8, device=device)
            copy = torch.empty_like(source)
            seconds = _seconds(partial(copy.copy_, source), device)
            copies.append((2 * size, 2 * size / seconds))
    return Ceilings(macs, tuple(copies))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the fastest of some stretches, per call: a ceiling is what is possible."""

    def stretch(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / calls

    once = statistics.median(stretch(1) for _ in range(3))
    calls = max(1, int(STRETCH / max(once, 1e-9)))
    return min(stretch(calls) for _ in range(STRETCHES))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
