"""The autograd.Functions that a network calls.

The graph holds what their forward computes, not their backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd import Function

from pruneopt.ir.capture.recording.one_thread import replaced_here

__all__ = ["backward_notes", "watched_functions"]


@contextmanager
def watched_functions() -> Iterator[set[str]]:
    """Yield the names of the user's functions that this thread applies, as they are met."""
    seen: set[str] = set()
    plain: Any = vars(Function)["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith("torch."):
            seen.add(cls.__qualname__.rpartition("<locals>.")[2])
        return plain.__get__(None, cls)(*args, **kwargs)

    with replaced_here(Function, "apply", classmethod(apply)):
        yield seen


def backward_notes(functions: set[str]) -> tuple[str, ...]:
    """Tell the user that the backward of these functions is left out."""
    return tuple(
        f"the backward of the autograd.Function {name} is left out: training the result "
        "differentiates its forward"
        for name in sorted(functions)
    )
