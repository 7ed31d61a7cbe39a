"""Attributes of classes that one thread sees replaced, and every other thread as they were.

A recording has to see the calls of modules, which PyTorch offers no hook for, so it replaces
methods of PyTorch's own classes. A server may run other models in other threads meanwhile, and
theirs must not notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

__all__ = ["replaced_here"]


class _OfOneThread:
    """A descriptor: ``replacement`` in the thread that made it, ``before`` in every other."""

    def __init__(self, before: Any, replacement: Any) -> None:
        self.before, self.replacement = before, replacement
        self.thread: int | None = get_ident()
        """None when it is over: then no thread sees the replacement any more."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        chosen = self.replacement if get_ident() == self.thread else self.before
        return chosen.__get__(instance, owner)


@contextmanager
def replaced_here(owner: type, name: str, replacement: Any) -> Iterator[None]:
    """Let ``owner.name`` be another function, classmethod or staticmethod for the calling thread.

    Nests: inside, ``vars(owner)[name]`` may be replaced again, as long as it is put back.
    """
    before = vars(owner)[name]
    ours = _OfOneThread(before, replacement)
    try:
        setattr(owner, name, ours)
        yield
    finally:
        # Somebody in another thread (the tracer of torch.fx does) may have replaced ours and may
        # put it back later: it then stands for what was there before.
        ours.thread = None
        if vars(owner)[name] is ours:
            setattr(owner, name, before)
