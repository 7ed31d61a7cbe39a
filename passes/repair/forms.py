"""Layers as matrix products: what a layer reads for every output position as a row, its weight as a
matrix.

For a layer of g groups, the rows of one batch are ``[g, n, f]``, the weight ``[g, f, o]``, and
their product plus the bias are the outputs ``[g, n, o]``: n positions, f inputs and o outputs of a
group.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pruneopt.passes.analysis.channels.labels import number, numbers
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.repair.layers import Site

__all__ = ["Form", "form_of"]

GEOMETRY = ("stride", "padding", "dilation")
"""What a convolution must say for its windows to be known: a user's op may lack some of them."""


class Form(ABC):
    """How one call of a layer is a matrix product. Positions are numbered as they lie in the output
    without channels.

    Attributes:
        groups, features, outputs: g, f and o.
    """

    groups: int
    features: int
    outputs: int

    @abstractmethod
    def positions(self, y: Tensor) -> int:
        """Return how many output positions a result of the layer has, over the whole batch."""

    @abstractmethod
    def rows(self, x: Tensor, picks: Tensor) -> Tensor:
        """Return what the layer reads for the positions ``picks`` (int64 [n]): [g, n, f]."""

    @abstractmethod
    def targets(self, y: Tensor, picks: Tensor) -> Tensor:
        """Return the elements of a result at these positions: [g, n, o]."""

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as [g, f, o]."""

    @abstractmethod
    def weight(self, matrix: Tensor) -> Tensor:
        """Return the inverse of `matrix`."""


def form_of(site: Site) -> Form | str:
    """Return the form of a layer; a string says why it has none."""
    op, met = site.op, site.met
    if has_trait(op, Trait.CONVOLUTION):
        if met.result_axis != 1:
            return "it convolves without a batch"
        unsaid = next((name for name in GEOMETRY if name not in op.attrs), None)
        return f"it has no argument {unsaid!r}" if unsaid else _Convolution(site)
    last = (op.needed(met.operand).type.rank - 1, op.result.type.rank - 1)
    if site.weight.type.rank != 2 or (met.axis, met.result_axis) != last:
        return "its weight is not one matrix behind the activation"
    if any(op.attrs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return "its product is scaled"
    return _Linear(site)


class _Linear(Form):
    """linear, and products of an activation with a matrix: every leading axis is a position."""

    def __init__(self, site: Site) -> None:
        shape = site.weight.type.shape()
        self._turned = site.layer.out_axis == 0
        self.groups = 1
        self.features, self.outputs = (shape[1], shape[0]) if self._turned else (shape[0], shape[1])

    def positions(self, y: Tensor) -> int:
        return y.numel() // self.outputs

    def rows(self, x: Tensor, picks: Tensor) -> Tensor:
        return x.reshape(-1, self.features)[picks].unsqueeze(0)

    def targets(self, y: Tensor, picks: Tensor) -> Tensor:
        return y.reshape(-1, self.outputs)[picks].unsqueeze(0)

    def matrix(self, weight: Tensor) -> Tensor:
        return (weight.t() if self._turned else weight).unsqueeze(0)

    def weight(self, matrix: Tensor) -> Tensor:
        return matrix[0].t() if self._turned else matrix[0]


class _Convolution(Form):
    """Convolutions in one to three dimensions, grouped or not; a transposed one is a plain one on a
    stretched input.

    Stretched: stride - 1 zeros between neighbours, the kernel turned round, and padding to match.
    """

    def __init__(self, site: Site) -> None:
        op, shape = site.op, site.weight.type.shape()
        rank = len(shape) - 2
        self._kernel = shape[2:]
        self._transposed = site.layer.out_axis == 1
        self._stride, self._dilation = (
            _each(numbers(op, name), rank) for name in ("stride", "dilation")
        )
        self._padding = self._paddings(site)
        self.groups = number(op, "groups")
        self._inputs, self.outputs = shape[1], shape[0] // self.groups
        if self._transposed:
            self._inputs, self.outputs = self.outputs, self._inputs
        self.features = self._inputs * math.prod(self._kernel)

    def _paddings(self, site: Site) -> list[tuple[int, int]]:
        """Return the padding before and after, by dimension."""
        op, rank = site.op, len(self._kernel)
        reach = [step * (size - 1) for step, size in zip(self._dilation, self._kernel, strict=True)]
        if op.attrs["padding"] == "same":
            return [(total // 2, total - total // 2) for total in reach]
        if op.attrs["padding"] == "valid":
            return [(0, 0)] * rank
        padding = _each(numbers(op, "padding"), rank)
        if not self._transposed:
            return [(size, size) for size in padding]
        extra = _each(numbers(op, "output_padding") or (0,), rank)
        return [
            (total - size, total - size + more)
            for total, size, more in zip(reach, padding, extra, strict=True)
        ]

    def positions(self, y: Tensor) -> int:
        return y.numel() // y.shape[1]

    def rows(self, x: Tensor, picks: Tensor) -> Tensor:
        windows = self._windows(x)
        found = _at(windows, picks, windows.shape[2 : 2 + len(self._kernel)])
        return found.reshape(len(picks), self.groups, self.features).transpose(0, 1)

    def _windows(self, x: Tensor) -> Tensor:
        """Return what the kernel sees at every position, as a view: [N, C, positions...,
        kernel...]."""
        rank = len(self._kernel)
        stride = (1,) * rank if self._transposed else self._stride
        if self._transposed and max(self._stride) > 1:
            sizes = [
                (size - 1) * step + 1 for size, step in zip(x.shape[2:], self._stride, strict=True)
            ]
            stretched = x.new_zeros(*x.shape[:2], *sizes)
            stretched[_every(self._stride)] = x
            x = stretched
        if any(size for pair in self._padding for size in pair):
            x = F.pad(x, [size for pair in reversed(self._padding) for size in pair])
        for axis in range(rank):
            x = x.unfold(
                2 + axis, self._dilation[axis] * (self._kernel[axis] - 1) + 1, stride[axis]
            )
        return x[_every(self._dilation)]

    def targets(self, y: Tensor, picks: Tensor) -> Tensor:
        found = _at(y, picks, y.shape[2:])
        return found.reshape(len(picks), self.groups, self.outputs).transpose(0, 1)

    def matrix(self, weight: Tensor) -> Tensor:
        g, f, o = self.groups, self.features, self.outputs
        if self._transposed:
            parted = weight.reshape(g, self._inputs, o, *self._kernel).transpose(1, 2)
            return parted.flip(self._spatial).reshape(g, o, f).transpose(1, 2)
        return weight.reshape(g, o, f).transpose(1, 2)

    def weight(self, matrix: Tensor) -> Tensor:
        parted = matrix.transpose(1, 2).reshape(
            self.groups, self.outputs, self._inputs, *self._kernel
        )
        if self._transposed:
            parted = parted.flip(self._spatial).transpose(1, 2)
        return parted.reshape(-1, parted.shape[2], *self._kernel)

    @property
    def _spatial(self) -> list[int]:
        return list(range(3, 3 + len(self._kernel)))


def _at(tensor: Tensor, picks: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return the numbers of [N, C, positions..., rest...] at flat numbers of (N, positions...): [n,
    C, rest...]."""
    index: Any = list(torch.unravel_index(picks, (tensor.shape[0], *sizes)))
    return tensor[(index[0], slice(None), *index[1:])]


def _every(steps: tuple[int, ...]) -> Any:
    """Return the index that takes every n-th entry of the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


def _each(values: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return a setting for every dimension, where one number may stand for all."""
    return values * rank if len(values) == 1 else values
