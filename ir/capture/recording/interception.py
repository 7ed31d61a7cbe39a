"""Where calls are seen: modules, functions of torch and ATen ops, each before PyTorch takes it
apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from pruneopt.ir.capture.recording.calls import META, GradMode
from pruneopt.ir.capture.recording.known_functions import FAST, PLAIN, SIZES, Found
from pruneopt.ir.capture.recording.known_modules import module_call
from pruneopt.ir.capture.recording.module_state import CannotRecordError

if TYPE_CHECKING:
    from pruneopt.ir.capture.recording.recorder import Recorder

__all__ = ["watched"]


class _Calls(SchemaCheckMode):
    """Sees every ATen call before autograd and before composite ops are taken apart.

    PyTorch admits only classes of its own to this place; this one has the state of
    `SchemaCheckMode` and no more.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._dispatch_key = torch._C.DispatchKey.PreDispatch
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.met(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Lets tensors without data say that they are on the CPU, and makes new ones without data as
    well."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.constructors = _device_constructors()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PLAIN:
            return func(*args, **kwargs)
        found = _translated(func, args, kwargs)
        if found is not None:
            return self.recorder.told(*found)
        if func is torch._C._set_grad_enabled:
            self.recorder.recording.steps.append(GradMode(bool(args[0])))
            return func(*args)
        if func is torch.Tensor.device.__get__:
            return torch.device("cpu")
        self.recorder.recording.samplewise = False
        if func in SIZES:
            return func(*args, **kwargs)
        if func in _REFUSED:
            raise CannotRecordError("the module asks what a tensor without data cannot tell")
        if func in self.constructors and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": META}
        elif "device" in kwargs or any(isinstance(item, torch.device) for item in args):
            args = tuple(META if isinstance(item, torch.device) else item for item in args)
            kwargs = {
                name: META if name == "device" and item is not None else item
                for name, item in kwargs.items()
            }
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.recorder.adopt(result, getattr(func, "__name__", ""))
        return result


def _translated(func: Any, args: Any, kwargs: Any) -> Found:
    """The ATen call that a function of torch makes, where that is known."""
    translate = FAST.get(func)
    if translate is None:
        return None
    try:
        return translate(*args, **kwargs)
    except TypeError:  # called in a way that the table does not foresee
        return None


_REFUSED = frozenset(
    getattr(Tensor, name).__get__
    for name in ("requires_grad", "is_leaf", "grad_fn", "grad", "is_meta")
)
"""Properties in which a run without data and gradients differs from a real one."""


@contextmanager
def watched(recorder: Recorder) -> Iterator[None]:
    """Calls of modules, functions and ATen ops go through the recorder."""
    plain_call = nn.Module.__call__
    plain_apply: Any = vars(torch.autograd.Function)["apply"]
    plain_script: Any = vars(torch.jit.ScriptFunction)["__call__"]

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = recorder.paths.get(id(module))
        if path is None:
            return plain_call(module, *args, **kwargs)
        recorder.modules.append((path, type(module).__name__))
        try:
            with torch._C.DisableTorchFunction():
                found = module_call(module, args, kwargs)
                if found is not None:
                    return recorder.told(*found)
            return plain_call(module, *args, **kwargs)
        finally:
            recorder.modules.pop()

    def apply(*args: Any, **kwargs: Any) -> Any:
        raise CannotRecordError("a torch.autograd.Function")

    def script(function: Any, *args: Any, **kwargs: Any) -> Any:
        recorder.recording.samplewise = False  # it may look at sizes, which nothing sees
        return plain_script.__get__(function)(*args, **kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    torch.autograd.Function.apply = apply
    torch.jit.ScriptFunction.__call__ = script  # type: ignore[method-assign, assignment]
    try:
        with enable_python_dispatcher(), _Functions(recorder), _Calls(recorder):
            yield
    finally:
        nn.Module.__call__ = plain_call  # type: ignore[method-assign]
        torch.autograd.Function.apply = plain_apply
        torch.jit.ScriptFunction.__call__ = plain_script  # type: ignore[method-assign]
