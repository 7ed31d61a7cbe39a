"""Ctrl-C between two iterations instead of in the middle of one, so that the state can be written
first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["postponed_interrupt"]


@contextmanager
def postponed_interrupt(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed in the block; a second Ctrl-C is a
    `KeyboardInterrupt` at once.

    Without ``wanted``, outside the main thread, or where the program has a handler of its own,
    nothing is changed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (wanted and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield lambda: False
        return
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
