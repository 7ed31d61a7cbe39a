"""Ctrl-C, and the other signals that ask a process to end: acknowledged at once, and put off where
the work of a moment can be kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Ending", "ending_signals", "postponed_interrupt"]

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Ending:
    """The handler of signals that end a run: it says so, and raises `KeyboardInterrupt`.

    A process that was forked off ends as it would without.

    Attributes:
        number: the first signal that came, None before.
    """

    def __init__(self, say: Callable[[int], None]) -> None:
        self.number: int | None = None
        self._say, self._process = say, os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.note(number):
            raise KeyboardInterrupt

    def note(self, number: int) -> bool:
        """Acknowledge a signal; return whether this process is the one that it is for."""
        if os.getpid() != self._process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return False
        if self.number is None:
            self.number = number
            self._say(number)
        return True


@contextmanager
def ending_signals(say: Callable[[int], None]) -> Iterator[Ending]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block in the same way, and tell ``say`` the first.

    What is ignored (under nohup) or handled already stays as it is, and so does everything outside
    of the main thread.
    """
    ending = Ending(say)
    plain = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {number: handler for number, handler in before.items() if handler in plain}
    try:
        for number in before:
            signal.signal(number, ending)
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponed_interrupt(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed in the block, or another signal of `SIGNALS` came
    where `ending_signals` holds; a second one is a `KeyboardInterrupt` at once.

    Without ``wanted``, outside the main thread, or where the program has a handler of its own,
    nothing is changed.
    """
    main = threading.current_thread() is threading.main_thread()
    found = {number: signal.getsignal(number) for number in SIGNALS}
    before = {
        number: handler
        for number, handler in found.items()
        if handler is signal.default_int_handler or isinstance(handler, Ending)
    }
    if not (wanted and main and before):
        yield lambda: False
        return
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        handler = before[signal.Signals(number)]
        if isinstance(handler, Ending) and not handler.note(number):
            return
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        for number in before:
            signal.signal(number, handle)
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
