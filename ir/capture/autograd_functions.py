"""Which autograd.Functions a network calls: the graph holds what their forward computes, not their
backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd import Function

__all__ = ["backward_notes", "watched_functions"]


@contextmanager
def watched_functions() -> Iterator[set[str]]:
    """The names of the functions of other code than torch's that are applied inside, as they are
    met."""
    seen: set[str] = set()
    given: Any = vars(Function)["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not cls.__module__.startswith("torch."):
            seen.add(cls.__qualname__.rpartition("<locals>.")[2])
        return given.__get__(None, cls)(*args, **kwargs)

    Function.apply = classmethod(apply)
    try:
        yield seen
    finally:
        Function.apply = given


def backward_notes(functions: set[str]) -> tuple[str, ...]:
    """What to tell the user about functions that were met."""
    return tuple(
        f"the backward of the autograd.Function {name} is left out: training the result "
        "differentiates its forward"
        for name in sorted(functions)
    )
