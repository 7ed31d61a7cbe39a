"""Label planes: integer tensors that say which channel every element of a tensor belongs to.

A plane has the rank of its tensor and size 1 along every axis on which the labels do not vary, so a
feature map costs as many integers as it has channels. Label 0 belongs to no channel: such elements
are always there.
"""

from __future__ import annotations

import math
from functools import cache

from torch import Tensor

__all__ = ["Plane", "align", "compress", "expand", "reshape", "varying"]

Plane = Tensor


def varying(plane: Plane) -> tuple[int, ...]:
    """Return the axes along which a compressed plane varies."""
    return _long_axes(plane.shape)


@cache
def _long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis, size in enumerate(shape) if size > 1)


def compress(plane: Plane) -> Plane:
    """Return the plane with every axis on which it is constant reduced to size 1."""
    for axis in varying(plane):
        if plane.stride(axis) == 0:
            plane = plane.narrow(axis, 0, 1)
        elif not _starts_with_two(plane, axis):
            first = plane.narrow(axis, 0, 1)
            if bool((plane == first).all()):
                plane = first
    return plane


def _starts_with_two(plane: Plane, axis: int) -> bool:
    """Return whether the first two elements along an axis differ: mostly so, and soon seen."""
    labels = plane.numpy()
    return bool(labels.item(0) != labels.item(math.prod(labels.shape[axis + 1 :])))


def expand(plane: Plane, shape: tuple[int, ...]) -> Plane:
    """Return the plane at the full shape of its tensor (a view)."""
    return plane.expand(shape)


def align(plane: Plane, rank: int) -> Plane:
    """Return the plane of a tensor that broadcasts to ``rank`` axes, with leading axes of size 1
    added."""
    return plane.reshape((1,) * (rank - plane.dim()) + tuple(plane.shape))


def reshape(plane: Plane, before: tuple[int, ...], after: tuple[int, ...]) -> Plane:
    """Return the plane of ``tensor.reshape(after)``; only the axes that labels vary on are ever
    spread out."""
    sizes: list[int] = []
    axes: list[int] = []
    for old, new in _factor(before, after):
        if all(plane.shape[axis] == 1 for axis in old):
            axes.extend([1] * len(old))
            sizes.extend([1] * len(new))
        else:
            axes.extend(before[axis] for axis in old)
            sizes.extend(after[axis] for axis in new)
    return compress(plane.expand(axes).reshape(sizes))


def _factor(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return runs of old and new axes with equal numbers of elements, smallest first: what a
    reshape leaves independent."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        size_old = size_new = 1
        if i < len(before):
            old, size_old, i = [i], before[i], i + 1
        if j < len(after):
            new, size_new, j = [j], after[j], j + 1
        while size_old != size_new:
            if (size_old < size_new and i < len(before)) or j >= len(after):
                old.append(i)
                size_old *= before[i]
                i += 1
            else:
                new.append(j)
                size_new *= after[j]
                j += 1
        runs.append((old, new))
    return runs
