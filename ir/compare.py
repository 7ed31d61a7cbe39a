"""Comparing two runs: tensors of any type, and nested outputs of tensors or arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pruneopt.errors import VerificationError

__all__ = ["CHUNK", "array_of", "difference", "examined", "same_outputs", "tensor_leaves"]

CHUNK = 1 << 16
"""Elements that a processor compares at once: what comes between then stays in its cache."""


def tensor_leaves(outputs: object) -> list[Tensor]:
    """Return the tensors of a nested output, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the largest absolute difference, and the largest finite element of ``one``.

    Both are absolute values, the difference is infinite for another number of elements. The same
    infinity on both sides is no difference; NaN is no number, and differs by NaN from everything.
    Whole numbers and truth values differ by 1.
    """
    return examined(one, other)[:2]


def examined(one: Tensor, other: Tensor) -> tuple[float, float, bool]:
    """Return `difference`, and whether all is finite."""
    one, other = one.reshape(-1), other.reshape(-1)
    if one.shape != other.shape:
        return math.inf, 0.0, True
    if not one.numel():
        return 0.0, 0.0, True
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    if not one.is_floating_point():
        return float((one != other).any()), 0.0, True
    chunk = CHUNK if one.device.type == "cpu" else one.numel()
    pieces = one.split(chunk)
    error = _largest(a - b for a, b in zip(pieces, other.split(chunk), strict=True))
    size = _largest(pieces)
    if math.isfinite(error) and math.isfinite(size):
        return error, size, True
    apart = torch.where(one == other, 0.0, (one.double() - other.double()).abs())
    finite = torch.nan_to_num(one.double(), nan=0.0, posinf=0.0, neginf=0.0)
    return float(apart.max()), float(finite.abs().max()), False


def _largest(pieces: Iterable[Tensor]) -> float:
    """Return the largest absolute element; NaN where there is one."""
    ends = [end for piece in pieces for end in torch.aminmax(piece)]
    return float(torch.stack(ends).abs().max())


def same_outputs(a: Any, b: Any, atol: float, rtol: float) -> float:
    """Return the largest absolute difference between two (nested) outputs of tensors or arrays.

    `VerificationError` if they differ in number or shape, or anywhere by more than ``atol + rtol *
    |b|``, or if there is NaN in them, even on both sides.
    """
    left, right = ([array_of(leaf) for leaf in pytree.tree_leaves(item)] for item in (a, b))
    if [x.shape for x in left] != [y.shape for y in right]:
        raise VerificationError(
            f"outputs of shape {[x.shape for x in left]} against {[y.shape for y in right]}"
        )
    largest = 0.0
    for index, (x, y) in enumerate(zip(left, right, strict=True)):
        x, y = (z.astype(np.complex128 if np.iscomplexobj(z) else np.float64) for z in (x, y))
        with np.errstate(invalid="ignore"):
            error = np.where(x == y, 0.0, np.abs(x - y))
            close = (error == 0) | (error <= atol + rtol * np.abs(y))
        worst = float(error.max(initial=0.0))
        if not np.all(close):
            raise VerificationError(
                f"output {index} is off by {worst:.3g} (atol {atol:g}, rtol {rtol:g})"
            )
        largest = max(largest, worst)
    return largest


def array_of(item: Any) -> np.ndarray[Any, Any]:
    """Return a tensor, on any device, or what NumPy takes, as an array; bfloat16 as float32."""
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    array: np.ndarray[Any, Any] = np.asarray(item)
    return array
