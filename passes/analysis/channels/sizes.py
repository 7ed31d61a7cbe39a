"""How the axes of every value shrink with the kept units.

A channel axis of a value is as long as the number of its kept elements. Where channels are spread
over several axes, the innermost axis on which a row holds different units shrinks, and the outer
ones stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import InternalError
from pruneopt.ir.graph import Value
from pruneopt.ir.types import BatchSize, Dim, TensorType
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.labels import BATCH
from pruneopt.passes.analysis.channels.units import Slot

__all__ = [
    "AxisShare",
    "KeptSizes",
    "axis_shares",
    "gather_kept",
    "kept_mask",
    "kept_parts",
    "shrunk_type",
    "size_form",
]


@dataclass(frozen=True, slots=True)
class AxisShare:
    """A shrinking axis: it is as long as the number of kept ``units`` (-1: always there), divided
    by ``divisor``.

    Of an axis that holds the batch as well, this is the length for a batch of one.
    """

    axis: int
    units: np.ndarray
    divisor: int

    def size(self, kept: np.ndarray) -> int:
        """Return the length of the axis for kept units (a boolean per unit)."""
        return self._size(int(_always(kept)[self.units].sum()))

    def _size(self, count: int) -> int:
        if count % self.divisor:
            raise InternalError(f"{count} kept elements do not divide into {self.divisor} blocks")
        return count // self.divisor


def _always(kept: np.ndarray) -> np.ndarray:
    """Kept flags with one more entry, so that unit -1 (no unit) is always kept."""
    return np.append(kept, True)


def axis_shares(coupling: Coupling, value: Value) -> list[AxisShare]:
    """Return the shrinking axes of a value."""
    return _shares(coupling.slots_of(value))


def _shares(slots: list[Slot]) -> list[AxisShare]:
    """Return how each slot of a value shrinks it.

    An axis along which a slot of its own runs (the outputs of a grouped convolution) is no other's
    to shrink.
    """
    if len(slots) == 1:
        return [_share(slots[0], ())]
    single = {slot.axes[0] for slot in slots if len(slot.axes) == 1}
    return [_share(slot, () if len(slot.axes) == 1 else single) for slot in slots]


def _share(slot: Slot, taken: Collection[int]) -> AxisShare:
    axes, units = slot.axes, slot.units
    divisor = 1
    if len(axes) > 1:
        units = units.reshape([units.shape[axis] for axis in axes])
        while units.ndim > 1 and axes[-2] not in taken and bool((units == units[..., :1]).all()):
            units = units[..., 0]
            axes = axes[:-1]
        divisor = math.prod(units.shape[:-1])
    if isinstance(slot.value.type.dims[axes[-1]], BatchSize):
        divisor *= BATCH  # the labels are those of a batch of this size
    return AxisShare(axes[-1], units.reshape(-1), divisor)


class KeptSizes:
    """How long the axes of values are when only ``kept`` units (a boolean per unit) are left, for
    many values: slots with the same labels share their units, and these are looked up once.
    """

    def __init__(self, kept: np.ndarray) -> None:
        self._flags = _always(kept)
        self._known: dict[_Units, tuple[np.ndarray, np.ndarray]] = {}
        self._places: dict[int, tuple[np.ndarray, Tensor]] = {}

    def type_of(self, coupling: Coupling, value: Value) -> TensorType:
        """Return the type that is left of a value; plain sizes."""
        slots = coupling.slots_of(value)
        plain = value.type.plain()
        if not slots:
            return plain
        dims: list[Dim] = list(plain.dims)
        if len(slots) == 1 and len(slots[0].axes) == 1 and isinstance(dims[slots[0].axes[0]], int):
            dims[slots[0].axes[0]] = len(
                self._places_of(slots[0].units)
            )  # as below, by far the most common
            return TensorType(value.type.dtype, tuple(dims))
        for share in _shares(slots):
            size = self._size(share)
            dims[share.axis] = BatchSize(size) if isinstance(dims[share.axis], BatchSize) else size
        return TensorType(value.type.dtype, tuple(dims))

    def gather(self, tensor: Tensor, slots: list[Slot]) -> Tensor:
        """Return the kept elements of a tensor, as many along each axis as are left (the tensor
        itself where all are)."""
        cuts = [slot for slot in slots if len(self._places_of(slot.units)) < slot.units.size]
        axes = [axis for slot in cuts for axis in slot.axes]
        if len(set(axes)) < len(axes):  # planes over the same axis (a grouped weight)
            shares = dict(zip(slots, _shares(slots), strict=True))
            sizes = list(tensor.shape)
            for slot in cuts:
                sizes[shares[slot].axis] = self._size(shares[slot])
            return tensor[
                kept_mask(cuts, tuple(tensor.shape), self._flags[:-1]).to(tensor.device)
            ].reshape(sizes)
        if len(axes) == len(cuts):
            return _picked(
                tensor,
                [(slot.axes[0], self._places_of(slot.units).to(tensor.device)) for slot in cuts],
            )
        for slot, share in zip(slots, _shares(slots), strict=True):
            if slot in cuts:
                tensor = _cut(
                    tensor, slot, share.axis, self._places_of(slot.units).to(tensor.device)
                )
        return tensor

    def _size(self, share: AxisShare) -> int:
        return share._size(len(self._kept(share.units)))

    def _places_of(self, units: np.ndarray) -> Tensor:
        """Return which elements of a slot stay, by number; slots with the same labels hold one
        array of units."""
        if id(units) not in self._places:
            self._places[id(units)] = units, torch.from_numpy(self._kept(units))
        return self._places[id(units)][1]

    def _kept(self, units: np.ndarray) -> np.ndarray:
        """Return which elements stay, by number."""
        key = units.__array_interface__["data"][0], units.shape, units.strides
        if key not in self._known:
            # The units are held as well: nothing else may come to lie where they do.
            self._known[key] = units, np.flatnonzero(self._flags[units])
        return self._known[key][1]


PART = 2**17
"""Elements picked at a time along the first axis of a large weight: few enough for the cache."""


def _picked(tensor: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    """Return the places that stay of each of some axes.

    Of large weights, rows and columns are picked for some rows at a time: no copy with all columns
    is ever made whole.
    """
    places = sorted(places, key=lambda item: item[0])
    if len(places) != 2 or places[0][0] != 0 or tensor.numel() < 8 * PART:
        for axis, kept in places:
            tensor = tensor.index_select(axis, kept)
        return tensor
    (_, rows), (axis, columns) = places
    sizes = list(tensor.shape)
    sizes[0], sizes[axis] = len(rows), len(columns)
    result = tensor.new_empty(sizes)
    step = max(1, PART * tensor.shape[0] // tensor.numel())
    for first in range(0, len(rows), step):
        part = tensor.index_select(0, rows[first : first + step])
        torch.index_select(part, axis, columns, out=result[first : first + step])
    return result


_Units = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Equal for views of the same units in the same form, as long as they are alive."""


def shrunk_type(coupling: Coupling, value: Value, kept: np.ndarray) -> TensorType:
    """Return the type of a value when only ``kept`` units (a boolean per unit) are left; plain
    sizes."""
    return KeptSizes(kept).type_of(coupling, value)


def kept_mask(slots: list[Slot], shape: tuple[int, ...], kept: np.ndarray) -> Tensor:
    """Return a boolean tensor of ``shape`` (at the batch size of the analysis): which elements of a
    value are kept."""
    mask = torch.ones(shape, dtype=torch.bool)
    for part in kept_parts(slots, kept):
        mask &= part
    return mask


def kept_parts(slots: list[Slot], kept: np.ndarray) -> list[Tensor]:
    """Return the mask of `kept_mask` as boolean tensors that broadcast to the value's shape, one
    for each plane."""
    flags = _always(kept)
    return [torch.from_numpy(flags[slot.units]) for slot in slots]


def gather_kept(tensor: Tensor, slots: list[Slot], kept: np.ndarray) -> Tensor:
    """Return the kept elements of a tensor, as many along each axis as are left (the tensor itself
    where all are)."""
    return KeptSizes(kept).gather(tensor, slots)


def _cut(tensor: Tensor, slot: Slot, axis: int, places: Tensor) -> Tensor:
    """Return the elements of a tensor at some places of a slot, whose ``axis`` shrinks."""
    if len(slot.axes) == 1:
        return tensor.index_select(axis, places)
    last = range(tensor.dim() - len(slot.axes), tensor.dim())
    moved = tensor.movedim(slot.axes, tuple(last))
    sizes = list(moved.shape)
    others = math.prod(tensor.shape[other] for other in slot.axes if other != axis)
    sizes[last[slot.axes.index(axis)]] = len(places) // others  # not -1: another axis may be empty
    return (
        moved.flatten(last[0])
        .index_select(last[0], places)
        .reshape(sizes)
        .movedim(tuple(last), slot.axes)
    )


def size_form(coupling: Coupling, share: AxisShare, index: dict[int, int]) -> np.ndarray:
    """Return the length of an axis as a linear form in the widths: coefficients by ``index`` (group
    number -> column), and the constant last. Frozen groups count as constants."""
    form = np.zeros(len(index) + 1)
    inside = share.units[share.units >= 0]
    form[-1] = len(share.units) - len(inside)
    counts = np.bincount(coupling.unit_group[inside])
    for number in np.flatnonzero(counts).tolist():
        column = index.get(number)
        if column is None:
            form[-1] += counts[number]
        else:
            form[column] = counts[number] / coupling.groups[number].width
    return form / share.divisor
