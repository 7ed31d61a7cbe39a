"""How the axes of every value shrink with the kept units.

A channel axis of a value is as long as the number of its kept elements. Where channels are spread over several axes,
the innermost axis on which a row holds different units shrinks, and the outer ones stay.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import InternalError
from pruneopt.ir.graph import Value
from pruneopt.ir.types import BatchSize, Dim, TensorType
from pruneopt.passes.analysis.coupling import Coupling
from pruneopt.passes.analysis.labels import BATCH
from pruneopt.passes.analysis.units import Slot

__all__ = ["AxisShare", "axis_shares", "gather_kept", "kept_mask", "kept_parts", "shrunk_type", "size_form"]


@dataclass(frozen=True, slots=True)
class AxisShare:
    """A shrinking axis: it is as long as the number of kept ``units`` (-1: always there), divided by ``divisor``.

    Of an axis that holds the batch as well, this is the length for a batch of one.
    """

    axis: int
    units: np.ndarray
    divisor: int

    def size(self, kept: np.ndarray) -> int:
        """The length of the axis for kept units (a boolean per unit)."""
        count = int(_always(kept)[self.units].sum())
        if count % self.divisor:
            raise InternalError(f"{count} kept elements do not divide into {self.divisor} blocks")
        return count // self.divisor


def _always(kept: np.ndarray) -> np.ndarray:
    """Kept flags with one more entry, so that unit -1 (no unit) is always kept."""
    return np.append(kept, True)


def axis_shares(coupling: Coupling, value: Value) -> list[AxisShare]:
    """The shrinking axes of a value."""
    return _shares(coupling.slots_of(value))


def _shares(slots: list[Slot]) -> list[AxisShare]:
    """How each slot of a value shrinks it.

    An axis along which a slot of its own runs (the outputs of a grouped convolution) is no other's to shrink.
    """
    single = {slot.axes[0] for slot in slots if len(slot.axes) == 1}
    return [_share(slot, () if len(slot.axes) == 1 else single) for slot in slots]


def _share(slot: Slot, taken: Collection[int]) -> AxisShare:
    units = slot.units.reshape([slot.units.shape[axis] for axis in slot.axes])
    axes = list(slot.axes)
    while units.ndim > 1 and axes[-2] not in taken and bool((units == units[..., :1]).all()):
        units = units[..., 0]
        axes.pop()
    divisor = int(np.prod(units.shape[:-1], dtype=np.int64))
    if isinstance(slot.value.type.dims[axes[-1]], BatchSize):
        divisor *= BATCH  # the labels are those of a batch of this size
    return AxisShare(axes[-1], units.reshape(-1), divisor)


def shrunk_type(coupling: Coupling, value: Value, kept: np.ndarray) -> TensorType:
    """The type of a value when only ``kept`` units (a boolean per unit) are left; plain sizes."""
    dims: list[Dim] = list(value.type.plain().dims)
    for share in axis_shares(coupling, value):
        size = share.size(kept)
        dims[share.axis] = BatchSize(size) if isinstance(dims[share.axis], BatchSize) else size
    return TensorType(value.type.dtype, tuple(dims))


def kept_mask(slots: list[Slot], shape: tuple[int, ...], kept: np.ndarray) -> Tensor:
    """A boolean tensor of ``shape`` (at the batch size of the analysis): which elements of a value are kept."""
    mask = torch.ones(shape, dtype=torch.bool)
    for part in kept_parts(slots, kept):
        mask &= part
    return mask


def kept_parts(slots: list[Slot], kept: np.ndarray) -> list[Tensor]:
    """The mask of `kept_mask` as boolean tensors that broadcast to the value's shape, one for each plane."""
    flags = _always(kept)
    return [torch.from_numpy(flags[slot.units]) for slot in slots]


def gather_kept(tensor: Tensor, slots: list[Slot], kept: np.ndarray) -> Tensor:
    """The kept elements of a tensor, as many along each axis as are left (the tensor itself where all are)."""
    flags = _always(kept)
    shares = dict(zip(slots, _shares(slots), strict=True))
    cuts = [slot for slot in slots if not flags[slot.units].all()]
    axes = [axis for slot in cuts for axis in slot.axes]
    if len(set(axes)) < len(axes):  # planes over the same axis (a grouped weight)
        sizes = list(tensor.shape)
        for slot in cuts:
            sizes[shares[slot].axis] = shares[slot].size(kept)
        return tensor[kept_mask(cuts, tuple(tensor.shape), kept).to(tensor.device)].reshape(sizes)
    for slot in cuts:
        axis = shares[slot].axis
        places = torch.from_numpy(np.flatnonzero(flags[slot.units])).to(tensor.device)
        if len(slot.axes) == 1:
            tensor = tensor.index_select(axis, places)
            continue
        last = range(tensor.dim() - len(slot.axes), tensor.dim())
        moved = tensor.movedim(slot.axes, tuple(last))
        sizes = list(moved.shape)
        sizes[last[slot.axes.index(axis)]] = -1
        tensor = moved.flatten(last[0]).index_select(last[0], places).reshape(sizes).movedim(tuple(last), slot.axes)
    return tensor


def size_form(coupling: Coupling, share: AxisShare, index: dict[int, int]) -> np.ndarray:
    """The length of an axis as a linear form in the widths: coefficients by ``index`` (group number -> column), and the
    constant last. Frozen groups count as constants.
    """
    form = np.zeros(len(index) + 1)
    inside = share.units[share.units >= 0]
    form[-1] = len(share.units) - len(inside)
    for number, count in zip(*np.unique(coupling.unit_group[inside], return_counts=True), strict=True):
        column = index.get(int(number))
        if column is None:
            form[-1] += count
        else:
            form[column] = count / coupling.groups[number].width
    return form / share.divisor


