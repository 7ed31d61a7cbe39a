"""Times of several sessions, measured so that they can be compared.

Every session is warmed up until its times stay where they are. Then rounds follow, in which each
runs once, in an order that is turned round from round to round: a machine that slows down steadily
slows all of them alike. A timed run comes right after one that is not timed, so that a session
finds its weights in the caches as it does when it runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pruneopt.collection import no_collection
from pruneopt.errors import InternalError, UserError
from pruneopt.passes.timing.clock import Clock, WallClock
from pruneopt.passes.timing.intervals import FEWEST, median_interval
from pruneopt.passes.timing.machine import Noise, Reference, busy

__all__ = ["Measurement", "Rounds", "Speedup", "compare", "measure", "take_rounds", "warm_up"]

WINDOW = 5
"""Runs in a window of the warm-up."""
AGREE = 0.02
"""Windows agree when their medians differ by no more than this share."""
WINDOWS = 40
"""Windows after which a warm-up ends in any case; two are always taken."""
ROUNDS = (10, 1000)
"""Fewest and most rounds."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long a session takes.

    Attributes:
        seconds: the median.
        low: lower end of the median's 95 % interval, widened where the machine was noisy.
        high: upper end.
        runs: timed runs.
        noisy: what was wrong with the machine, in a sentence; None if it was quiet.
    """

    seconds: float
    low: float
    high: float
    runs: int
    noisy: str | None


@dataclass(frozen=True, slots=True)
class Speedup:
    """The speed-up of the second of two sessions: median over pairs of runs, and 95 % interval.

    The two runs of a pair follow each other, so that what the machine does to both cancels;
    ``noisy`` tells of it.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    noisy: str | None


@dataclass(frozen=True)
class Rounds:
    """Times [rounds, sessions] in seconds, and what the machine did meanwhile."""

    times: np.ndarray
    noise: Noise
    unstable: tuple[int, ...]
    """Sessions whose warm-up ended before their times agreed."""

    def measurement(self, index: int) -> Measurement:
        """Return how long a session takes."""
        median, low, high = median_interval(self.times[:, index])
        widened = 1 + self.noise.share
        return Measurement(
            median, low / widened, high * widened, len(self.times), self._noisy(index)
        )

    def speedup(self, slow: int, fast: int) -> Speedup:
        """Return how many times as fast session ``fast`` is as session ``slow``."""
        median, low, high = median_interval(self.times[:, slow] / self.times[:, fast])
        return Speedup(median, low, high, len(self.times), self._noisy(slow, fast))

    def _noisy(self, *sessions: int) -> str | None:
        never = (
            "its times did not settle during the warm-up"
            if set(sessions) & set(self.unstable)
            else None
        )
        return "; ".join(filter(None, (self.noise.sentence, never))) or None


def measure(
    sessions: Sequence[Callable[[], None]],
    *,
    clock: Clock | None = None,
    seconds: float = 5.0,
    rounds: int | None = None,
    reference: Callable[[], None] = busy,
) -> list[Measurement]:
    """Return how long each of several sessions takes; arguments and errors as `take_rounds`."""
    found = take_rounds(sessions, clock=clock, seconds=seconds, rounds=rounds, reference=reference)
    return [found.measurement(index) for index in range(len(sessions))]


def compare(
    slow: Callable[[], None],
    fast: Callable[[], None],
    *,
    clock: Clock | None = None,
    seconds: float = 5.0,
    rounds: int | None = None,
    reference: Callable[[], None] = busy,
) -> Speedup:
    """Return how many times as fast one session is as another; see `take_rounds`."""
    found = take_rounds(
        [slow, fast], clock=clock, seconds=seconds, rounds=rounds, reference=reference
    )
    return found.speedup(0, 1)


def take_rounds(
    sessions: Sequence[Callable[[], None]],
    *,
    clock: Clock | None = None,
    seconds: float = 5.0,
    rounds: int | None = None,
    reference: Callable[[], None] = busy,
) -> Rounds:
    """Warm up, and time the sessions in turns.

    Args:
        sessions: each call is one run, to completion (or what ``clock`` times of it).
        clock: takes the times; the wall's if left out.
        seconds: about how long the rounds last, and at most each warm-up. The number of rounds (10
            to 1000) is settled before the first of them, so that it does not depend on the times
            that are then taken.
        rounds: their number instead, at least 6.
        reference: work that always takes the same, between the rounds.

    Raises:
        UserError: too few rounds for an interval.
    """
    if not sessions:
        raise InternalError("there is no session to time")
    if rounds is not None and rounds < FEWEST:
        raise UserError(f"{rounds} rounds give no interval of 95 %: take at least {FEWEST}")
    clock = clock or WallClock()
    warm = [warm_up(run, clock, seconds) for run in sessions]
    if rounds is None:
        each = 2 * sum(median for median, _ in warm)  # a round runs every session twice
        rounds = int(np.clip(seconds / each if each > 0 else ROUNDS[1], *ROUNDS))
    machine = Reference(clock, reference)
    times = np.empty((rounds, len(sessions)))
    with no_collection():
        for row in range(rounds):
            machine.sample()
            order = range(len(sessions))
            # To and fro, so that no session always follows the same one; the run before the timed
            # one fills the caches again that another session has emptied.
            for index in order if row % 2 == 0 else reversed(order):
                sessions[index]()
                times[row, index] = clock.seconds(sessions[index])
        machine.sample()
    unstable = tuple(index for index, (_, stable) in enumerate(warm) if not stable)
    return Rounds(times, machine.noise(), unstable)


def warm_up(run: Callable[[], None], clock: Clock, limit: float = math.inf) -> tuple[float, bool]:
    """Run until the medians of two windows in a row agree, or ``limit`` seconds are over; the last
    median, and whether they agreed.

    A session's first runs allocate memory, choose algorithms and fill caches; processors raise
    their clock speed.
    """
    begun, before = clock.now(), _window(run, clock)
    for _ in range(WINDOWS - 1):
        after = _window(run, clock)
        if abs(after - before) <= AGREE * before:
            return after, True
        before = after
        if clock.now() - begun > limit:
            break
    return before, False


def _window(run: Callable[[], None], clock: Clock) -> float:
    return float(np.median([clock.seconds(run) for _ in range(WINDOW)]))
