"""Times of GPU work from a cold cache: by events, or on the wall in another runtime's stream.

Between runs a buffer twice as large as the second-level cache is written, so that no run finds the
weights or inputs of the one before it there. The clocks of the GPU are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pruneopt.passes.timing.clock import WallClock

__all__ = ["ColdWallClock", "CudaClock"]

SMALLEST_CACHE = 32 << 20
"""Bytes of second-level cache assumed where the driver names none."""


class CudaClock(WallClock):
    """Events around what a call starts on the current stream of a device."""

    def __init__(self, device: torch.device, api: Any = torch.cuda) -> None:
        """``api`` has what is used here of `torch.cuda`."""
        self.device, self._api = device, api
        cache = (
            int(getattr(api.get_device_properties(device), "L2_cache_size", 0)) or SMALLEST_CACHE
        )
        where = device if api is torch.cuda else torch.device("cpu")
        self._buffer = torch.empty(2 * cache, dtype=torch.int8, device=where)

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds in which the device did what ``run`` started."""
        start, stop = self._api.Event(enable_timing=True), self._api.Event(enable_timing=True)
        stream = self._api.current_stream(self.device)
        self._cool()
        start.record(stream)
        run()
        stop.record(stream)
        self._api.synchronize(self.device)
        return float(start.elapsed_time(stop)) / 1e3

    def _cool(self) -> None:
        self._buffer.zero_()
        self._api.synchronize(self.device)


class ColdWallClock(CudaClock):
    """The wall's time around a call that comes back when the device is done."""

    def seconds(self, run: Callable[[], object]) -> float:
        self._cool()
        started = self.now()
        run()
        return self.now() - started
