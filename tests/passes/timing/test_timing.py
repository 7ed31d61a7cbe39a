"""Warm-up, turns, pairs and noise, on a clock that the tests move."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.timing.clock import WallClock
from pruneopt.passes.timing.machine import busy, judge
from pruneopt.passes.timing.timing import (
    ROUNDS,
    WINDOW,
    WINDOWS,
    compare,
    measure,
    take_rounds,
    warm_up,
)

Clock = Any


class Session:
    """Takes what ``cost`` says of the clock's time, times the machine's ``speed``."""

    def __init__(self, clock: Clock, cost: Any, speed: Any = lambda now: 1.0) -> None:
        self.clock, self.cost, self.speed, self.calls = clock, cost, speed, 0

    def __call__(self) -> None:
        cost = self.cost(self.calls) if callable(self.cost) else self.cost
        self.calls += 1
        self.clock.pass_by(cost * self.speed(self.clock.now()))


def quiet(clock: Clock) -> Any:
    return clock.taking(1e-6)


# Warm-up


def test_a_steady_session_is_warm_after_two_windows(clock: Clock) -> None:
    session = Session(clock, 0.01)
    seconds, steady = warm_up(session, clock)
    assert seconds == pytest.approx(0.01)
    assert steady
    assert session.calls == 2 * WINDOW


def test_a_warm_up_goes_on_while_times_fall(clock: Clock) -> None:
    """From 100 ms to 10 ms with a time constant of 20 runs: no end before the times lie near the
    last one."""
    session = Session(clock, lambda call: 0.01 + 0.09 * np.exp(-call / 20))
    median, stable = warm_up(session, clock)
    assert stable
    assert session.calls > 40
    assert median == pytest.approx(0.01, rel=0.1)


def test_a_session_that_never_settles_is_told_of(clock: Clock) -> None:
    session = Session(clock, lambda call: 1.1**call * 1e-9)
    assert warm_up(session, clock)[1] is False
    assert session.calls == WINDOWS * WINDOW
    found = measure(
        [Session(clock, lambda call: 1.01 ** min(call, 400)), clock.taking(1.0)],
        clock=clock,
        rounds=6,
    )
    assert "did not settle" in (found[0].noisy or "")
    assert "did not settle" not in (found[1].noisy or "")


def test_a_warm_up_ends_when_its_time_is_over(clock: Clock) -> None:
    session = Session(clock, lambda call: 1.0 + call)
    assert warm_up(session, clock, 1.0)[1] is False
    assert session.calls == 2 * WINDOW


# Rounds


def test_sessions_take_turns_and_the_order_turns_round(clock: Clock) -> None:
    seen: list[str] = []

    def session(name: str) -> Callable[[], None]:
        def run() -> None:
            seen.append(name)
            clock.pass_by(0.001)

        return run

    take_rounds(
        [session("a"), session("b"), session("c")], clock=clock, rounds=6, reference=quiet(clock)
    )
    rounds = seen[-6 * 6 :]
    assert "".join(rounds) == "aabbccccbbaa" * 3


def test_the_time_given_decides_the_number_of_rounds_before_them(clock: Clock) -> None:
    def runs(seconds: float) -> int:
        found = measure(
            [clock.taking(0.01), clock.taking(0.04)],
            clock=clock,
            seconds=seconds,
            reference=quiet(clock),
        )
        return found[0].runs

    assert (runs(5.0), runs(0.1), runs(1e6)) == (50, *ROUNDS)


def test_medians_and_intervals_of_what_was_timed(clock: Clock) -> None:
    session = Session(
        clock, lambda call: 1.0 if call < 2 * WINDOW else 1.0 + (call - 2 * WINDOW) / 100
    )
    (found,) = measure([session], clock=clock, rounds=9, reference=quiet(clock))
    timed = [1.0 + call / 100 for call in range(1, 18, 2)]  # every second run is not timed
    assert found.seconds == pytest.approx(timed[4])
    assert (found.low, found.high) == pytest.approx((timed[1], timed[7]))
    assert (found.runs, found.noisy) == (9, None)


def test_a_steady_drift_cancels_between_sessions(clock: Clock) -> None:
    """The machine gets slower by half; the ratio of two sessions stays, their separate times do
    not."""

    def speed(now: float) -> float:
        return 1 + now / 20

    slow, fast = Session(clock, 0.02, speed), Session(clock, 0.01, speed)
    found = take_rounds(
        [slow, fast],
        clock=clock,
        rounds=100,
        reference=lambda: clock.pass_by(1e-3 * speed(clock.now())),
    )
    ratio = found.speedup(0, 1)
    assert ratio.ratio == pytest.approx(2.0, rel=1e-3)
    assert ratio.low <= 2.0 <= ratio.high
    assert ratio.high - ratio.low < 0.02
    each = found.times.max(axis=0) / found.times.min(axis=0)
    assert each.min() > 1.3
    assert "slower" in (ratio.noisy or "")


def test_in_one_order_only_the_drift_would_not_cancel(clock: Clock) -> None:
    """Why the order turns round: in rounds that all begin with the same session, the other always
    runs later."""
    speed = 1 + np.arange(400) * 0.01
    one_order = np.median(speed[::2] / speed[1::2])
    turned = np.median(np.concatenate([speed[::4] / speed[1::4], speed[3::4] / speed[2::4]]))
    assert abs(turned - 1) < abs(one_order - 1) / 20


def test_speedups_hold_the_true_ratio_as_often_as_they_say(clock: Clock) -> None:
    generator = np.random.default_rng(0)
    trials, rounds, hits = 300, 12, 0
    for _ in range(trials):
        slow, fast = (
            Session(clock, lambda call, c=c: c * generator.lognormal(0.0, 0.2)) for c in (3.0, 2.0)
        )
        found = compare(slow, fast, clock=clock, rounds=rounds, reference=quiet(clock))
        hits += found.low <= 1.5 <= found.high
    assert binom.cdf(hits, trials, 0.95) > 1e-3
    assert hits < trials


def test_pairs_see_what_spoils_separate_times(clock: Clock) -> None:
    """Speed that wanders widely and slowly: the ratio's interval is far narrower than that of
    either time."""

    def speed(now: float) -> float:
        return 1.5 + np.sin(now / 3)

    found = take_rounds(
        [Session(clock, 0.02, speed), Session(clock, 0.01, speed)],
        clock=clock,
        rounds=200,
        reference=quiet(clock),
    )
    ratio, alone = found.speedup(0, 1), found.measurement(0)
    assert ratio.low <= 2.0 <= ratio.high
    assert (ratio.high - ratio.low) / ratio.ratio < 0.1 * (alone.high - alone.low) / alone.seconds


def test_too_few_rounds_are_refused(clock: Clock) -> None:
    with pytest.raises(UserError, match="at least 6"):
        measure([clock.taking(1.0)], clock=clock, rounds=5)
    with pytest.raises(InternalError, match="no session"):
        measure([], clock=clock)


def test_the_collector_runs_again_afterwards(clock: Clock) -> None:
    def broken() -> None:
        clock.pass_by(1.0)
        if clock.now() > 30:
            raise ValueError("broken")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="broken"):
        measure([broken], clock=clock, rounds=100, reference=quiet(clock))
    assert gc.isenabled()


# Noise


def test_a_quiet_machine_says_nothing_and_widens_nothing(clock: Clock) -> None:
    (found,) = measure([clock.taking(1.0)], clock=clock, rounds=30, reference=clock.taking(0.001))
    assert found.noisy is None
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("gain", "word"), [(0.5, "slower (throttled"), (-0.2, "faster")])
def test_a_drift_is_seen_and_widens_the_interval(clock: Clock, gain: float, word: str) -> None:
    begun = clock.now()

    def reference() -> None:
        clock.pass_by(0.001 * (1 + gain * (clock.now() - begun) / 60))

    (found,) = measure([clock.taking(1.0)], clock=clock, rounds=30, reference=reference)
    assert word in (found.noisy or "")
    assert found.low < 0.97
    assert found.high > 1.03


def test_processor_time_that_others_take_is_seen() -> None:
    walls = np.full(300, 1e-3)
    assert judge(walls, walls * 0.98).sentence is None
    noise = judge(walls, walls * 0.7)
    assert noise.share == pytest.approx(0.3)
    assert noise.sentence == "the machine was not quiet: it gave 30 % of the processor to others"


def test_single_interruptions_are_no_noise() -> None:
    walls = np.full(300, 1e-3)
    used = walls.copy()
    walls[[17, 150, 290]] = 0.1
    assert judge(walls, used).sentence is None


def test_times_that_spread_are_seen() -> None:
    walls = np.tile([1.0, 1.0, 1.5, 1.5], 30)
    noise = judge(walls, walls)
    assert noise.share == pytest.approx(0.2)
    assert "vary by 20 %" in (noise.sentence or "")


def test_the_real_clock_and_the_real_work() -> None:
    def many() -> None:
        for _ in range(20):
            busy()

    clock = WallClock()
    taken = clock.seconds(many)
    assert taken > 0
    before = clock.processor()
    for _ in range(20):
        busy()
    assert clock.processor() > before
    (found,) = measure([busy], rounds=20)
    assert 0 < found.low <= found.seconds <= found.high
