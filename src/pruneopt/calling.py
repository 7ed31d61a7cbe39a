"""A function of the user's in the place of a network's own ``forward``.

It is the part of the network that is to be pruned.

A network that cannot be captured as a whole, or that takes or returns something else than tensors,
is called through a function ``forward(model, *inputs)``. Within that function ``model(...)`` means
the network's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["calling", "replace_forward"]


def replace_forward(model: nn.Module, forward: Callable[..., Any]) -> None:
    """Let ``model(*inputs)`` mean ``forward(model, *inputs)`` from now on.

    Copies of the model call themselves so.
    """
    # A partial, not a closure: a copied model must not hold the one it was copied from.
    chosen = partial(_guarded(forward), model)
    vars(chosen)["before"] = vars(model).get("forward")
    vars(model)["forward"] = chosen


@contextmanager
def calling(model: nn.Module, forward: Callable[..., Any] | None) -> Iterator[None]:
    """Do `replace_forward` for a while; None changes nothing."""
    if forward is None:
        yield
        return
    before = vars(model).get("forward")
    replace_forward(model, forward)
    try:
        yield
    finally:
        del vars(model)["forward"]
        if before is not None:
            vars(model)["forward"] = before


def _guarded(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, during which the model has the forward that it had before."""

    @wraps(forward)
    def call(model: nn.Module, *inputs: Any) -> Any:
        own = vars(model)
        chosen = own.pop("forward")
        before = vars(chosen)["before"]
        if before is not None:
            own["forward"] = before
        try:
            return forward(model, *inputs)
        finally:
            own["forward"] = chosen

    return call
