"""How the time of one run is taken, and what else a clock can tell about the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "WallClock"]


class Clock(Protocol):
    """Takes times. Tests put one of their own in its place."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Call ``run`` once; how long it took."""
        ...

    def now(self) -> float:
        """Return seconds since some moment."""
        ...

    def processor(self) -> float:
        """Return seconds of processor time that this process has used."""
        ...


class WallClock:
    """The time that passes on the wall, around runs that come back when they are done."""

    def seconds(self, run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    def now(self) -> float:
        return time.perf_counter()

    def processor(self) -> float:
        return time.process_time()
