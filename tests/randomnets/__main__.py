"""Draw networks by number, check each, and go on after failures: ``make fuzz``.

``FUZZ_N`` networks from number ``FUZZ_SEED`` on, of up to ``FUZZ_STEPS`` steps; with
``FUZZ_KIND=habits`` small ones whose code has state, caches, branches, wrappers and casts. A single
network (``FUZZ_N=1``) that fails is made smaller, step by step, and printed with the traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from types import FrameType

import torch

from randomnets.base import Dice, SeededDice
from randomnets.check import COUNTS, Failure, check
from randomnets.check_habits import check_habits
from randomnets.habits import draw_habits
from randomnets.network import Network, draw_network, upto, without

SECONDS = 300
"""The longest a network may take."""


KIND = os.environ.get("FUZZ_KIND", "structures")
DRAW, CHECK, STEPS = {
    "structures": (draw_network, check, 8),
    "habits": (draw_habits, check_habits, 3),
}[KIND]


def attempt(model: Network, dice: Dice) -> Failure | None:
    """The failure of a network, if it fails."""
    try:
        CHECK(model, dice)
    except Failure as failure:
        return failure
    except AssertionError as error:
        return _wrap("WRONG", error)
    except Exception as error:
        return _wrap("CRASH", error)
    return None


def _wrap(kind: str, error: Exception) -> Failure:
    failure = Failure(kind, "the checks", f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def drawn(seed: int, most: int) -> tuple[Network, SeededDice]:
    """The network of a number, and the dice for its weights and plans."""
    dice = SeededDice(seed)
    return DRAW(dice, most), dice


def shrink(seed: int, most: int, failure: Failure) -> Network:
    """The smallest network with the same kind of failure at the same place that leaving out steps
    leads to."""

    def fails(model: Network) -> bool:
        found = attempt(model, SeededDice(seed))
        return found is not None and (found.kind, found.where) == (failure.kind, failure.where)

    small, _ = drawn(seed, most)
    for count in range(1, len(small.plan.steps)):
        first = upto(drawn(seed, most)[0], count)
        if fails(first):
            small = first
            break
    index = len(small.plan.steps) - 1
    while index >= 0:
        less = without(small, index)
        if less is not None and fails(less):
            small = less
        index -= 1
    return small


def _expire(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(seed: int, most: int, failure: Failure, alone: bool) -> None:
    """One line that repeats the failure; of a single network also what is left of it, and the
    traceback."""
    again = f"make fuzz FUZZ_N=1 FUZZ_SEED={seed} FUZZ_KIND={KIND}"
    again += "" if most == STEPS else f" FUZZ_STEPS={most}"
    print(f"{failure} [{again}]", flush=True)
    if alone:
        print(shrink(seed, most, failure))
        traceback.print_exception(failure.__cause__ or failure)


def main() -> int:
    """The exit code: 0 when no network failed. A run that is stopped ends with its counts, too."""
    total, first = int(os.environ.get("FUZZ_N", "2000")), int(os.environ.get("FUZZ_SEED", "0"))
    most = int(os.environ.get("FUZZ_STEPS", STEPS))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _expire)
    signal.signal(signal.SIGTERM, _stop)
    failures: Counter[str] = Counter()
    start, done = time.monotonic(), 0
    try:
        for seed in range(first, first + total):
            signal.alarm(SECONDS)
            model, dice = drawn(seed, most)
            failure = attempt(model, dice)
            signal.alarm(0)
            done += 1
            if failure is not None:
                failures[failure.kind] += 1
                _report(seed, most, failure, alone=total == 1)
            if done % 100 == 0:
                seconds = time.monotonic() - start
                print(
                    f"{done} networks, {sum(failures.values())} failures, {seconds:.0f} s",
                    flush=True,
                )
    except KeyboardInterrupt:
        print("stopped")
    for name, times in COUNTS.most_common():
        print(f"{times:8d}  {name}")
    print(
        f"{done} networks from {first} on: {sum(failures.values())} failures "
        f"{dict(failures) or ''}",
        flush=True,
    )
    return 1 if failures or done < total else 0


if __name__ == "__main__":
    sys.exit(main())
