"""Sizes that a tensor may have: what a text says is checked before anything is reserved for it."""

from __future__ import annotations

import math

from pruneopt.ir.types import Axis, BatchSize, Dim, TensorType

__all__ = ["type_problem"]

ELEMENTS = 2**40
"""Of one tensor of one sample: four terabytes in float32."""
RANK = 64
"""What PyTorch takes."""


def type_problem(type: TensorType) -> str | None:
    """Return in words why no tensor can be of a type, None if one can."""
    if len(type.dims) > RANK:
        return f"a tensor has at most {RANK} dimensions, not {len(type.dims)}"
    if not all(map(_in_range, type.dims)):
        return "a size is below 0, or too large for any tensor"
    # An empty axis must not hide the others.
    if math.prod(max(1, size) for size in type.shape()) > ELEMENTS:
        return f"a tensor of more than {ELEMENTS} numbers"
    return None


def _in_range(dim: Dim) -> bool:
    if isinstance(dim, BatchSize):
        return (
            dim.divisor != 0 and max(abs(dim.scale), abs(dim.offset)) <= ELEMENTS and dim.at(1) >= 0
        )
    if isinstance(dim, Axis):
        numbers = [n for part in dim.parts for n in (part.count, part.start, part.repeat)]
        return all(0 <= number <= ELEMENTS for number in numbers)
    return 0 <= (dim if isinstance(dim, int) else dim.size) <= ELEMENTS
