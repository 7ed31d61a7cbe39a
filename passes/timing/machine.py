"""How quiet the machine was: a small, fixed piece of work, timed between the runs that matter.

It always does the same, so whatever its times do is the machine's doing: they spread when others
take the processor or its caches, and drift when the clock speed changes (heat, power limits).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pruneopt.passes.timing.clock import Clock

__all__ = ["Noise", "Reference", "busy", "judge"]

SPREAD, DRIFT, TAKEN = 0.10, 0.03, 0.05
"""What a quiet machine stays below: half the range of the middle half of the times and the change
from the first to the last third of them, both relative to the median, and the share of the
processor that others took."""


@dataclass(frozen=True, slots=True)
class Noise:
    """``share`` widens intervals (0: a quiet machine), ``sentence`` says why (None: a quiet
    machine)."""

    share: float
    sentence: str | None


class Reference:
    """Times a piece of work as often as it is asked to."""

    def __init__(self, clock: Clock, work: Callable[[], None]) -> None:
        self._clock, self._work = clock, work
        self._walls: list[float] = []
        self._processor: list[float] = []

    def sample(self) -> None:
        """Do the work once."""
        wall, processor = self._clock.now(), self._clock.processor()
        self._work()
        self._walls.append(self._clock.now() - wall)
        self._processor.append(self._clock.processor() - processor)

    def noise(self) -> Noise:
        """Return what the samples say about the machine."""
        return judge(np.array(self._walls), np.array(self._processor))


def judge(walls: np.ndarray, processor: np.ndarray) -> Noise:
    """Return what times of the same work say about the machine.

    Args:
        walls: seconds on the wall, in the order in which they were taken [n].
        processor: the seconds of processor time that each used [n].
    """
    if walls.size < 3 or walls.sum() <= 0:
        return Noise(0.0, None)
    quarter, median, three = np.quantile(walls, [0.25, 0.5, 0.75])
    third = walls.size // 3
    first, last = float(np.median(walls[:third])), float(np.median(walls[-third:]))
    drift, spread = last / first - 1, float(three - quarter) / 2 / float(median)
    taken = _taken(walls, processor)
    found = []
    if abs(drift) > DRIFT:
        direction = "slower (throttled, or others began to work)" if drift > 0 else "faster"
        found.append((abs(drift), f"became {100 * abs(drift):.0f} % {direction} meanwhile"))
    if taken > TAKEN:
        found.append((taken, f"gave {100 * taken:.0f} % of the processor to others"))
    if spread > SPREAD:
        found.append((spread, f"took times for the same work that vary by {100 * spread:.0f} %"))
    if not found:
        return Noise(0.0, None)
    reasons = " and ".join(reason for _, reason in found)
    return Noise(max(share for share, _ in found), f"the machine was not quiet: it {reasons}")


def _taken(walls: np.ndarray, processor: np.ndarray) -> float:
    """Return the share of the processor that others took, but for the worst hundredth of the times.

    A median bears these.
    """
    kept = np.argsort(walls - processor)[: walls.size - math.ceil(walls.size / 100)]
    total = float(walls[kept].sum())
    return max(0.0, 1 - float(processor[kept].sum()) / total) if total > 0 else 0.0


_NUMBERS = np.linspace(0.0, 1.0, 1 << 16, dtype=np.float32)
_RESULT = np.empty_like(_NUMBERS)


def busy() -> None:
    """Some tenths of a millisecond of one core's arithmetic, on memory that stays in its cache."""
    for _ in range(16):
        np.multiply(_NUMBERS, _NUMBERS, out=_RESULT)
