"""Signals that end a run: said at once, put off where asked for, and never those of others."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pruneopt.interrupts import SIGNALS, ending_signals, postponed_interrupt


def press(number: int) -> None:
    """Send a signal to this process, and let its handler run."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_said_and_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(other) for other in SIGNALS]
    said: list[int] = []
    with pytest.raises(KeyboardInterrupt), ending_signals(said.append) as ending:
        press(number)
    assert (said, ending.number) == ([number], number)
    assert [signal.getsignal(other) for other in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_put_off_it_is_said_at_once_and_a_second_one_interrupts(number: signal.Signals) -> None:
    said: list[int] = []
    with ending_signals(said.append) as ending:
        with postponed_interrupt(True) as pressed:
            assert not pressed()
            press(number)
            assert pressed()
            assert said == [number]
            with pytest.raises(KeyboardInterrupt):
                press(number)
        assert signal.getsignal(number) is ending
    assert said == [number]


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_signals(lambda number: None) as ending, postponed_interrupt(True) as pressed:
            press(signal.SIGHUP)
            assert ending.number is None
            assert not pressed()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_ends_as_without() -> None:
    said: list[int] = []
    with ending_signals(said.append):
        child = os.fork()
        if child == 0:
            press(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert said == []


def test_outside_of_the_main_thread_nothing_changes() -> None:
    found: list[object] = []

    def work() -> None:
        with ending_signals(lambda number: None), postponed_interrupt(True):
            found.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(number) for number in SIGNALS]
