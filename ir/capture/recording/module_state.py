"""The state of a module while it is recorded: replaced, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["CannotRecordError", "in_place_of_tensors"]

DEPTH = 3
"""How deep lists and dictionaries in a module's attributes are looked into for what a run has
changed."""


class CannotRecordError(Exception):
    """This module needs a real tracer; the message says why."""


@contextmanager
def in_place_of_tensors(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the module have ``weights`` for its parameters and buffers.

    All its attributes are put back afterwards, and what the run has changed in them is a
    `CannotRecordError`.
    """
    modules = list(model.named_modules())
    before = [_Attributes(module) for _, module in modules]
    try:
        # Into the dictionaries themselves, past a `__setattr__` of the user's.
        for path, module in modules:
            _fill(module._parameters, path, weights)
            _fill(module._buffers, path, weights)
        yield
    finally:
        # All of them are put back before the first complaint.
        changed = [
            path
            for (path, _), attributes in zip(modules, before, strict=True)
            if attributes.restore()
        ]
    if changed:
        raise CannotRecordError(f"{changed[0] or 'the module'} changes its own attributes")


def _fill(store: dict[str, Any], path: str, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in store.items():
        if tensor is not None:
            store[name] = weights[f"{path}.{name}" if path else name]


class _Attributes:
    """The attributes of a module as they were, with the user's lists and dictionaries in them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        self.stores = [(store, dict(store)) for store in stores]
        self.own = dict(vars(module))
        self.held: list[tuple[Any, Any]] = []
        # Without the dozen of dictionaries that every module has (hooks, children): a run hardly
        # changes them, and copying them would take longer than everything else here.
        self._hold([item for name, item in self.own.items() if name not in _OF_EVERY_MODULE], DEPTH)

    def _hold(self, items: Iterable[Any], depth: int) -> None:
        for item in items:
            if isinstance(item, dict | list | set):
                self.held.append((item, item.copy()))
                if depth > 1 and not isinstance(item, set):
                    self._hold(item.values() if isinstance(item, dict) else item, depth - 1)

    def restore(self) -> bool:
        """Put everything back; whether the run had changed anything."""
        for store, saved in self.stores:
            store.clear()
            store.update(saved)
        changed = False
        for item, saved in ((vars(self.module), self.own), *self.held):
            if not _same(item, saved):
                changed = True
                _refill(item, saved)
        return changed


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _same(now: Any, saved: Any) -> bool:
    """Tell whether a container holds the same objects as before."""
    if len(now) != len(saved):
        return False
    if isinstance(now, dict):
        return all(key in now and now[key] is item for key, item in saved.items())
    if isinstance(now, list):
        return all(a is b for a, b in zip(now, saved, strict=True))
    return bool(now == saved)


def _refill(item: Any, saved: Any) -> None:
    item.clear()
    if isinstance(item, list):
        item.extend(saved)
    else:
        item.update(saved)
