"""All or nothing: what was changed, and how to change it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Undo", "borrowed", "transaction"]


class Undo:
    """Changes to a user's objects, each of which leaves behind how to take it back."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def add(self, step: Callable[[], None]) -> None:
        """``step`` takes back what is about to be changed."""
        self._steps.append(step)

    def set_attr(self, owner: object, name: str, value: Any) -> None:
        """Give an object an attribute that it has already."""
        before = getattr(owner, name)
        self.add(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def set_data(self, tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
        """Give a tensor other elements, of any shape, and another gradient, in the same object."""
        before = tensor.detach(), tensor.grad
        self.add(lambda: _put(tensor, *before))
        _put(tensor, data, grad)

    def back(self) -> None:
        """Take everything back, the last change first."""
        while self._steps:
            self._steps.pop()()


@contextmanager
def transaction() -> Iterator[Undo]:
    """Take back what was changed within, if it fails."""
    undo = Undo()
    try:
        yield undo
    except BaseException:
        undo.back()
        raise


@contextmanager
def borrowed() -> Iterator[Undo]:
    """Take back what was changed within, in any case."""
    undo = Undo()
    try:
        yield undo
    finally:
        undo.back()


def _put(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    tensor.grad = None
    if tensor.requires_grad and tensor.shape != data.shape:
        # While a loss of earlier is alive, so is the node that collects this tensor's gradient, and
        # it expects the old shape. Autograd makes a new one when the type changes, not when the
        # shape does.
        other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data
    tensor.grad = grad
