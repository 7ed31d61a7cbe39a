"""The line of somebody's code at which a module changed itself, or left its graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pruneopt.ir.capture.reading.source_lines import TORCH_HOME, short_path

__all__ = ["Values", "first_apart", "line_of_change"]

OURS = f"{Path(__file__).parents[1]}/"
"""Where the code lies that runs networks."""
PASSED_OVER = (f"{TORCH_HOME}/", OURS, str(Path(__file__).parents[2] / "calling.py"), "<")
"""Where code lies that is not the user's; the last is that of generated code."""


def line_of_change(run: Callable[[], object], changed: Callable[[], bool]) -> str:
    """Return the line of the user's code after which ``changed()`` is first true, in words.

    ``run`` is traced line by line; it may fail. Empty where no line of the user's took part.
    """
    last = found = ""

    def look(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal last, found
        if found:
            return None
        if last and changed():
            found = last
            return None
        # After a call, it is the caller's line that goes on.
        last = _place(frame) if event == "line" else _user_place(frame.f_back)
        return look

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        return look if not found and _is_users(frame) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        run()
    except Exception:
        return found
    finally:
        sys.settrace(before)
    return found or (last if changed() else "")


class Values(TorchDispatchMode):
    """Fingerprints of every tensor that ops compute, with the user's lines that called them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[Any, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.found.append((_fingerprint(item), _user_place(sys._getframe(1))))
        return result

    def holds(self, tensors: Sequence[Any]) -> bool:
        """Tell whether these tensors are all among those that were computed."""
        known = {fingerprint for fingerprint, _ in self.found}
        return all(_fingerprint(item) in known for item in tensors if isinstance(item, Tensor))


def first_apart(one: Values, other: Values) -> str:
    """Return the line of the first tensor of ``one`` that is nowhere among those of ``other``."""
    known = {fingerprint for fingerprint, _ in other.found}
    return next((place for value, place in one.found if value not in known and place), "")


def _fingerprint(tensor: Tensor) -> Any:
    """Describe a tensor up to rounding: its shape and four digits of a sum over its elements."""
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return tuple(tensor.shape)
    numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    with _aside():
        flat = numbers.detach().double().flatten()
        size = float((flat.abs() * torch.arange(1.0, len(flat) + 1, device=flat.device)).sum())
    return tuple(sorted(tensor.shape)), f"{size:.4g}"


@contextmanager
def _aside() -> Iterator[None]:
    """Compute without being seen by the mode that asks."""
    with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
        yield


def _user_place(frame: FrameType | None) -> str:
    """Return the innermost line of the user's at or above a frame."""
    while frame is not None:
        if _is_users(frame):
            return _place(frame)
        if frame.f_code.co_filename.startswith(OURS):
            break  # what called capture is nothing to the network
        frame = frame.f_back
    return ""


def _is_users(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(PASSED_OVER)


def _place(frame: FrameType) -> str:
    return f"{short_path(Path(frame.f_code.co_filename))}:{frame.f_lineno}"
