"""The whole state of somebody's module: seen to change, and put back.

State is what a forward pass can leave behind: parameters, buffers and gradients, Python attributes
with the containers and objects in them, attributes of the module's class, global variables that its
code names, caches of its functions, and random states.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import _lru_cache_wrapper, partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Change", "Snapshot", "state_restored"]

DEPTH = 6
"""How deep containers and objects within a module's attributes are followed."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
CONTAINERS = (dict, list, set, deque, bytearray)
OUTSIDE = frozenset(("torch", "builtins", "logging", "threading", "_thread", "io", "weakref"))
"""Packages whose objects are not followed: what they hold is not the module's."""
SWITCHED = frozenset(("training", "forward"))
"""Attributes that capture itself sets in a module for a while."""
MISSING: Any = object()


@dataclass(frozen=True)
class Change:
    """Something that is no longer as it was.

    Attributes:
        what: how a user calls it ("buffer bn.count", "attribute cache of layer1").
        registered: true for a parameter, a buffer or an input, which is part of the function.
        there: tells whether it differs from what it was, now.
        read: returns what is there now.
        write: puts something else there; None where that takes more than an assignment.
    """

    what: str
    registered: bool
    there: Callable[[], bool]
    read: Callable[[], Any]
    write: Callable[[Any], None] | None = None


class Snapshot:
    """The state of a module, and of its inputs, at one time.

    ``values`` copies every tensor, to see and to undo writes into them; without it, another tensor
    in the place of one is still seen, for runs that have no data to write.
    """

    def __init__(
        self, model: nn.Module, inputs: Sequence[Tensor] = (), *, values: bool = True
    ) -> None:
        self._values = values
        self._known: dict[int, _Held] = {}
        self._random = _random_states() if values else None
        for number, tensor in enumerate(inputs):
            self._hold(tensor, f"input {number}", True, DEPTH)
        for path, module in model.named_modules():
            self._hold_module(module, path)
        for kind in {type(module) for module in model.modules()}:
            self._hold_class(kind)

    def changes(self) -> list[Change]:
        """Return what has changed, by value: another object that is equal is no change."""
        return [change for held in self._known.values() for change in held.changes(self)]

    def restore(self) -> None:
        """Put everything back, random states too: the same objects with the same values."""
        for held in self._known.values():
            held.restore()
        if self._random is not None:
            self._random()

    def compare(
        self,
        what: str,
        before: Any,
        read: Callable[[], Any],
        write: Callable[[Any], None],
        *,
        registered: bool = False,
    ) -> Iterator[Change]:
        """Yield the change of one entry of a dictionary, if it is one."""
        if not self.same(before, read()):
            yield Change(what, registered, lambda: not self.same(before, read()), read, write)

    def same(self, before: Any, now: Any, depth: int = DEPTH) -> bool:
        """Tell whether a value equals what was there before (its contents are looked at apart)."""
        if before is now:
            return True
        if before is MISSING or now is MISSING or type(before) is not type(now) or not depth:
            return False
        if isinstance(before, Tensor):
            held = self._known.get(id(before))
            saved = held.copy if isinstance(held, _HeldTensor) else None
            return _equal(before if saved is None else saved, now)
        if isinstance(before, np.ndarray):
            return bool(np.array_equal(before, now))
        if isinstance(before, dict):
            return before.keys() == now.keys() and all(
                self.same(item, now[key], depth - 1) for key, item in before.items()
            )
        if isinstance(before, list | tuple | deque):
            return len(before) == len(now) and all(
                self.same(a, b, depth - 1) for a, b in zip(before, now, strict=True)
            )
        try:
            return bool(before == now or (before != before and now != now))
        except Exception:  # a user's `__eq__` may raise anything
            return False

    # Finding what there is

    def _hold_module(self, module: nn.Module, path: str) -> None:
        if id(module) in self._known or isinstance(module, torch.jit.ScriptModule):
            return  # what TorchScript holds is no dictionary of Python's
        of = f" of {path}" if path else ""
        self._known[id(module)] = _HeldStore(module, vars(module), "attribute {}" + of)
        prefix = f"{path}." if path else ""
        for store, kind in ((module._parameters, "parameter"), (module._buffers, "buffer")):
            self._known[id(store)] = _HeldStore(store, store, f"{kind} {prefix}{{}}", True)
            for name, tensor in store.items():
                if tensor is not None:
                    self._hold(tensor, f"{kind} {prefix}{name}", True, DEPTH)
        for name, item in vars(module).items():
            if isinstance(item, dict) and name in _OF_EVERY_MODULE and not item:
                # Hooks and children: nearly always none, and hundreds of modules have a dozen.
                self._known[id(item)] = _HeldStore(item, item, f"{name} {{}}{of}")
            elif type(item) not in PLAIN and name not in ("_parameters", "_buffers", "_modules"):
                self._hold(item, f"attribute {name}{of}", False, DEPTH)
        self._known[id(module._modules)] = _HeldStore(module._modules, module._modules, "part {}")

    def _hold(self, item: Any, what: str, registered: bool, depth: int) -> None:
        if isinstance(item, PLAIN) or id(item) in self._known or not depth:
            return
        if isinstance(item, Tensor):
            self._known[id(item)] = _HeldTensor(item, what, registered, self._values)
            if item.is_leaf and item.grad is not None:
                self._hold(item.grad, f"gradient of {what}", False, depth - 1)
            return
        if isinstance(item, nn.Module):
            for path, module in item.named_modules():
                self._hold_module(module, f"{what}.{path}" if path else what)
            return
        if isinstance(item, FunctionType | _lru_cache_wrapper):
            self._hold_globals(item)
            return
        held = _held_value(item, what)
        if held is not None:
            self._known[id(item)] = held
        for child in _children(item):
            self._hold(child, what, registered, depth - 1)

    def _hold_class(self, kind: type) -> None:
        """Hold the data of a class and its bases, and the globals that their functions name."""
        for base in kind.__mro__:
            if base.__module__.split(".")[0] in OUTSIDE or id(base) in self._known:
                continue
            own = {name: item for name, item in vars(base).items() if _is_data(name, item)}
            self._known[id(base)] = _HeldClass(base, own)
            for name, item in own.items():
                self._hold(item, f"{base.__name__}.{name}", False, DEPTH)
            for function in vars(base).values():
                self._hold_globals(function)

    def _hold_globals(self, function: Any) -> None:
        function = getattr(function, "__func__", function)
        if isinstance(function, _lru_cache_wrapper):
            self._known[id(function)] = _HeldCache(function)
            function = function.__wrapped__
        if not isinstance(function, FunctionType) or id(function) in self._known:
            return
        if (function.__module__ or "").split(".")[0] in OUTSIDE:
            return
        self._known[id(function)] = _HeldGlobals(function)
        for name in function.__code__.co_names:
            item = function.__globals__.get(name)
            if isinstance(item, FunctionType | _lru_cache_wrapper):
                self._hold_globals(item)
            elif isinstance(item, CONTAINERS) or _is_own_object(item):
                self._hold(item, f"global variable {name}", False, 2)


@contextmanager
def state_restored(model: nn.Module, inputs: Sequence[Tensor] = ()) -> Iterator[Snapshot]:
    """Let code run the module as it likes; all of its state, and random states, come back."""
    snapshot = Snapshot(model, inputs)
    try:
        yield snapshot
    finally:
        snapshot.restore()


class _Held(ABC):
    """One object of a module's state, as it was."""

    @abstractmethod
    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        """Yield what is no longer as it was."""

    @abstractmethod
    def restore(self) -> None:
        """Put it back."""


class _HeldTensor(_Held):
    """A tensor: its memory, its values, and its settings."""

    def __init__(self, tensor: Tensor, what: str, registered: bool, values: bool) -> None:
        self.tensor, self.what, self.registered = tensor, what, registered
        with torch.no_grad():
            self.memory = tensor.detach()
            self.copy = self.memory.clone() if values and not tensor.is_meta else None
        self.grad = tensor.grad if tensor.is_leaf else None
        self.needs_grad = tensor.requires_grad

    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        if self._written():
            yield Change(self.what, self.registered, self._written, self.tensor.detach)

    def _written(self) -> bool:
        return self.copy is not None and not _equal(self.copy, self.tensor)

    def restore(self) -> None:
        tensor = self.tensor
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = None
        if self.copy is not None and not _equal(self.copy, self.memory):
            with torch.no_grad():
                self.memory.data.copy_(self.copy)
        if _memory(tensor) != _memory(self.memory):
            tensor.data = self.memory
        if tensor.is_leaf and tensor.requires_grad != self.needs_grad:
            tensor.requires_grad_(self.needs_grad)
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad


class _HeldStore(_Held):
    """A dictionary of names: a module's or an object's attributes, or a dictionary of the user's.

    ``what`` names an entry.
    """

    def __init__(
        self, owner: Any, store: dict[Any, Any], what: str, registered: bool = False
    ) -> None:
        self.owner, self.store, self.saved = owner, store, dict(store)
        self.what, self.registered = what, registered

    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        # By identity first: hundreds of dictionaries have not changed at all.
        if len(self.saved) == len(self.store) and all(
            self.store.get(key, MISSING) is item for key, item in self.saved.items()
        ):
            return
        for key in dict.fromkeys((*self.saved, *self.store)):
            if key in SWITCHED and isinstance(self.owner, nn.Module):
                continue
            yield from snapshot.compare(
                self.what.replace("{}", str(key)),
                self.saved.get(key, MISSING),
                partial(self.store.get, key, MISSING),
                partial(self.store.__setitem__, key),
                registered=self.registered,
            )

    def restore(self) -> None:
        switched = SWITCHED if isinstance(self.owner, nn.Module) else ()
        saved = self.saved | {key: self.store[key] for key in switched if key in self.store}
        if list(self.store) == list(saved) and all(
            self.store[key] is item for key, item in saved.items()
        ):
            return
        self.store.clear()
        self.store.update(saved)


class _HeldItems(_Held):
    """A list, set, deque or array of the user's, with what it held."""

    def __init__(self, item: Any, what: str) -> None:
        self.item, self.what, self.saved = item, what, item.copy()

    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        if not snapshot.same(self.saved, self.item):
            yield Change(
                self.what,
                False,
                lambda: not snapshot.same(self.saved, self.item),
                self.item.copy,
            )

    def restore(self) -> None:
        if isinstance(self.item, np.ndarray):
            if not np.array_equal(self.item, self.saved):
                self.item[...] = self.saved
        elif isinstance(self.item, set):
            self.item.clear()
            self.item.update(self.saved)
        else:
            self.item.clear()
            self.item.extend(self.saved)


class _HeldClass(_Held):
    """The data among the attributes of a user's class."""

    def __init__(self, kind: type, own: dict[str, Any]) -> None:
        self.kind, self.saved = kind, own

    def _now(self) -> dict[str, Any]:
        return {name: item for name, item in vars(self.kind).items() if _is_data(name, item)}

    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        now = self._now()
        for name in dict.fromkeys((*self.saved, *now)):
            yield from snapshot.compare(
                f"attribute {name} of the class {self.kind.__name__}",
                self.saved.get(name, MISSING),
                partial(vars(self.kind).get, name, MISSING),
                partial(setattr, self.kind, name),
            )

    def restore(self) -> None:
        now = self._now()
        for name in now.keys() - self.saved.keys():
            delattr(self.kind, name)
        for name, item in self.saved.items():
            if now.get(name, MISSING) is not item:
                setattr(self.kind, name, item)


class _HeldGlobals(_Held):
    """The global variables that a user's function names, and that are data."""

    def __init__(self, function: FunctionType) -> None:
        space = function.__globals__
        self.space = space
        self.saved = {
            name: space.get(name, MISSING)
            for name in function.__code__.co_names
            if name not in space or _is_data(name, space[name])
        }

    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        for name, before in self.saved.items():
            read, write = partial(self.space.get, name, MISSING), self.space.__setitem__
            yield from snapshot.compare(
                f"global variable {name}", before, read, partial(write, name)
            )

    def restore(self) -> None:
        for name, item in self.saved.items():
            if item is MISSING:
                self.space.pop(name, None)
            elif self.space.get(name, MISSING) is not item:
                self.space[name] = item


class _HeldCache(_Held):
    """A function with `functools.cache`, whose contents nobody can see: emptied if it grew."""

    def __init__(self, function: Any) -> None:
        self.function, self.misses = function, function.cache_info().misses

    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        return iter(())  # a cache is no state: what it holds follows from its arguments

    def restore(self) -> None:
        if self.function.cache_info().misses != self.misses:
            self.function.cache_clear()


class _HeldGenerator(_Held):
    """A generator of random numbers of the user's."""

    def __init__(self, put_back: Callable[[], Any]) -> None:
        self.put_back = put_back

    def changes(self, snapshot: Snapshot) -> Iterator[Change]:
        return iter(())  # random numbers are compared by running twice

    def restore(self) -> None:
        self.put_back()


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _held_value(item: Any, what: str) -> _Held | None:
    if isinstance(item, dict):
        return _HeldStore(item, item, what)
    if isinstance(item, torch.Generator):
        return _HeldGenerator(partial(item.set_state, item.get_state()))
    if isinstance(item, random.Random):
        return _HeldGenerator(partial(item.setstate, item.getstate()))
    if isinstance(item, np.random.Generator):
        bits = item.bit_generator
        return _HeldGenerator(partial(setattr, bits, "state", bits.state))
    if isinstance(item, list | set | deque | bytearray | np.ndarray):
        return _HeldItems(item, what)
    return _HeldStore(item, vars(item), what) if _is_own_object(item) else None


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.values()]
    if isinstance(item, list | tuple | deque):
        return [*item]
    if isinstance(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, MethodType):
        return [item.__func__, item.__self__]
    return [*vars(item).values()] if _is_own_object(item) else []


def _is_own_object(item: Any) -> bool:
    """Tell whether an object is of a user's class, with attributes to look into."""
    if isinstance(item, type | ModuleType | FunctionType | MethodType | partial):
        return False
    if isinstance(item, Tensor | nn.Module | dict) or item is MISSING:
        return False
    return type(item).__module__.split(".")[0] not in OUTSIDE and hasattr(item, "__dict__")


def _is_data(name: str, item: Any) -> bool:
    """Tell whether a name of a class or of a file stands for data that code may change."""
    return not name.startswith("__") and (
        isinstance(item, (*PLAIN, *CONTAINERS, tuple, Tensor, np.ndarray)) or _is_own_object(item)
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.is_meta or type(other) not in (Tensor, nn.Parameter) or one.layout != torch.strided:
        return True
    with torch.no_grad():
        if torch.equal(one, other):
            return True
        same = (one == other) | (one.isnan() & other.isnan())
        return bool(same.all())


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout != torch.strided:
        return (tensor.dtype, tensor.shape)
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _random_states() -> Callable[[], None]:
    """Return a function that puts the random states of PyTorch, NumPy and Python back."""
    python, array, own = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(own)
        if devices:
            torch.cuda.set_rng_state_all(devices)

    return put_back
