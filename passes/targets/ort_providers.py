"""Which execution providers of onnxruntime work on this machine, and why the others do not.

A provider that is compiled in may still not load, for want of a driver or a library; onnxruntime
then takes the processor without a word to Python. So a provider counts as working when a session of
a tiny model holds it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

__all__ = ["CPU", "CUDA", "TENSORRT", "provider_trouble", "quiet_onnxruntime"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
NAMES = {CPU: "CPU", CUDA: "CUDA", TENSORRT: "TensorRT"}
SILENT, WARNINGS = 4, 2
"""Severities of onnxruntime's log: nothing but what ends the process, and the default."""


@contextmanager
def quiet_onnxruntime() -> Iterator[None]:
    """No log lines: what goes wrong is told in a sentence of our own."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(SILENT)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)


@cache
def provider_trouble(provider: str, device: int = 0) -> str | None:
    """Return why a provider does not work on a device, in a sentence; None where it does."""
    import onnxruntime

    if provider == CPU:
        return None
    name = NAMES.get(provider, provider)
    if provider not in onnxruntime.get_available_providers():
        package = (
            "onnxruntime-gpu"
            if provider in (CUDA, TENSORRT)
            else "a build of onnxruntime that has it"
        )
        return (
            f"onnxruntime {onnxruntime.__version__} is built without the {name} provider: "
            f"install {package}"
        )
    if provider in (CUDA, TENSORRT) and not _driver():
        return "this machine has no CUDA device (the NVIDIA driver is not installed)"
    error = _session_error(onnxruntime, provider, device)
    if error is None:
        return None
    reason = _missing_library(Path(onnxruntime.__file__).parent, provider) or error
    return f"the {name} provider of onnxruntime {onnxruntime.__version__} does not load: {reason}"


def _driver() -> bool:
    """Return whether the NVIDIA driver is there."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _session_error(onnxruntime: Any, provider: str, device: int) -> str | None:
    """Return what stops a session of a tiny model from holding a provider; None if nothing does."""
    with quiet_onnxruntime():
        try:
            preload_libraries(onnxruntime)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = SILENT
            wanted = [(provider, {"device_id": str(device)})]
            session = onnxruntime.InferenceSession(
                _tiny_model(), options, providers=wanted, enable_fallback=0
            )
        except Exception as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
    if provider in session.get_providers():
        return None
    return f"device {device} or one of its libraries (CUDA, cuDNN) is missing"


def preload_libraries(onnxruntime: Any) -> None:
    """Load the CUDA libraries that came with PyTorch, before onnxruntime looks for its own."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None and _driver():
        with redirect_stdout(StringIO()):  # it prints what it cannot load
            preload()


def _tiny_model() -> bytes:
    """Return one convolution, as ONNX."""
    from onnx import TensorProto, helper

    def info(name: str, size: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, size, size])

    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g", [info("x", 4)], [info("y", 2)], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def _missing_library(package: Path, provider: str) -> str | None:
    """Return the shared library that a provider lacks on this machine, if that is what is wrong."""
    stem = {CUDA: "cuda", TENSORRT: "tensorrt"}.get(provider)
    try:
        ctypes.CDLL(str(package / "capi" / f"libonnxruntime_providers_{stem}.so"))
    except OSError as error:
        library, found, _ = str(error).partition(": cannot open shared object file")
        return f"{library} is not installed" if found else None
    return None
