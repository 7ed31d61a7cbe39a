"""The three places where a recording sees calls: modules, functions of torch, and ATen ops.

Each place sees a call before PyTorch takes it apart, and what one place has recorded does not reach
the next: a layer of PyTorch is one ATen call told from its settings, a function of torch one told
from its arguments, and only what neither table knows goes through PyTorch's dispatcher, which is
slow. All three are of the calling thread alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from pruneopt.ir.capture.recording.calls import META, GradMode, Recording
from pruneopt.ir.capture.recording.known_functions import (
    ATEN_CALL_OF,
    PASS_THROUGH,
    SIZES,
    Found,
)
from pruneopt.ir.capture.recording.known_modules import module_call
from pruneopt.ir.capture.recording.module_state import CannotRecordError
from pruneopt.ir.capture.recording.one_thread import replaced_here

__all__ = ["CallSink", "intercept_calls"]


class CallSink(Protocol):
    """The receiver of the calls that are seen (`recorder.Recorder`)."""

    recording: Recording
    modules: list[tuple[str, str]]
    """The modules whose call is under way, outermost first: qualified name and class."""
    paths: Mapping[int, str]
    """The identity of each module of the network -> its qualified name."""

    def record_known_call(
        self, target: torch._ops.OpOverload[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """Record a call that a module or function of torch is known to make; return its result."""

    def record_dispatched_call(
        self,
        target: torch._ops.OpOverload[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Record a call met in PyTorch's dispatcher; return its result."""

    def alias_last_result(self, tensor: Tensor, name: str) -> None:
        """Take a tensor for the result of the last call, if that was of the op ``name``."""


class _Calls(SchemaCheckMode):
    """Sees every ATen call before autograd and before composite ops are taken apart.

    PyTorch admits only classes of its own to this place (`PreDispatch`), where torch.export has
    its tracer; this one has the state of `SchemaCheckMode` and no more.
    """

    def __init__(self, recorder: CallSink) -> None:
        super().__init__()
        self._dispatch_key = torch._C.DispatchKey.PreDispatch
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.record_dispatched_call(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Sees functions of torch, and hides from the network that its tensors have no data.

    Tensors say that they are on the CPU, and new ones are made without data as well.
    """

    def __init__(self, recorder: CallSink) -> None:
        super().__init__()
        self.recorder = recorder
        self.constructors = _device_constructors()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PASS_THROUGH:
            return func(*args, **kwargs)
        found = _translated(func, args, kwargs)
        if found is not None:
            return self.recorder.record_known_call(*found)
        if func is torch._C._set_grad_enabled:
            self.recorder.recording.steps.append(GradMode(bool(args[0])))
            return func(*args)
        if func is torch.Tensor.device.__get__:
            return torch.device("cpu")
        # From here on nobody knows what the function does with sizes: one run does not tell all.
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
            self.recorder.alias_last_result(result, getattr(func, "__name__", ""))
        return result


def _translated(func: Any, args: Any, kwargs: Any) -> Found:
    """Return the ATen call that a function of torch makes, where that is known."""
    translate = ATEN_CALL_OF.get(func)
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
def intercept_calls(recorder: CallSink) -> Iterator[None]:
    """Let the calls of modules, functions and ATen ops in this thread go through the recorder."""
    plain_call: Any = vars(nn.Module)["__call__"]
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
                    return recorder.record_known_call(*found)
            return plain_call(module, *args, **kwargs)
        finally:
            recorder.modules.pop()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise CannotRecordError("a torch.autograd.Function is applied")

    def script(function: Any, *args: Any, **kwargs: Any) -> Any:
        recorder.recording.samplewise = False  # it may look at sizes, which nothing sees
        return plain_script.__get__(function)(*args, **kwargs)

    with (
        replaced_here(nn.Module, "__call__", call),
        replaced_here(torch.autograd.Function, "apply", staticmethod(refuse)),
        replaced_here(torch.jit.ScriptFunction, "__call__", script),
        _as_exporting(),
        enable_python_dispatcher(),
        _Functions(recorder),
        _Calls(recorder),
    ):
        yield


class _TrueHere:
    """A flag of torch.compiler that is set for the thread that made it, and for no other."""

    def __init__(self) -> None:
        self.thread = get_ident()

    def __bool__(self) -> bool:
        return get_ident() == self.thread


@contextmanager
def _as_exporting() -> Iterator[None]:
    """Tell networks that ask what torch.export tells them: that they are being exported."""
    flags: Any = torch.compiler
    before = flags._is_compiling_flag, flags._is_exporting_flag
    try:
        flags._is_compiling_flag = flags._is_exporting_flag = _TrueHere()
        yield
    finally:
        flags._is_compiling_flag, flags._is_exporting_flag = before
