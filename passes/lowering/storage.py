"""The values of a lowered graph while it runs on the kernels: one buffer each, with a part for
every segment.

A buffer is laid out once, for the widest candidate. Another one uses the beginning of every part:
its channels are fewer, and stored as close together as its own width says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruneopt.kernels.segments import padded

__all__ = ["Activation", "Loose", "Memory", "Stored", "Table"]


@dataclass(frozen=True, slots=True)
class Activation:
    """Activations of every segment, channels last and padded; several segments may share a part.

    Attributes:
        buffer: flat.
        starts: where each segment's part `[images, height, width, padded(channels)]` begins.
        channels, images: of each segment, at most.
        height, width: of all.
    """

    buffer: Tensor
    starts: tuple[int, ...]
    channels: tuple[int, ...]
    images: tuple[int, ...]
    height: int
    width: int

    @classmethod
    def empty(
        cls,
        images: Sequence[int],
        channels: Sequence[int],
        size: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        memory: Memory | None = None,
    ) -> Activation:
        """Return parts one after another, not written yet; their buffer is taken from ``memory``
        where there is one."""
        sizes = [
            count * size[0] * size[1] * padded(width)
            for count, width in zip(images, channels, strict=True)
        ]
        starts, total = _laid_out(sizes)
        buffer = (memory or Memory(device)).take(total, dtype)
        return cls(buffer, starts, tuple(channels), tuple(images), *size)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def stored(
        self, segment: int, images: int | None = None, channels: int | None = None
    ) -> Tensor:
        """Return a view of a segment's part, `[images, height, width, padded(channels)]`."""
        count = self.images[segment] if images is None else images
        width = self.channels[segment] if channels is None else channels
        shape = (count, self.height, self.width, padded(width))
        start = self.starts[segment]
        return self.buffer[start : start + torch.Size(shape).numel()].view(shape)

    def part(self, segment: int, images: int | None = None, channels: int | None = None) -> Tensor:
        """Return a view of a segment's part, `[images, channels, height, width]`."""
        width = self.channels[segment] if channels is None else channels
        return self.stored(segment, images, width)[..., :width].permute(0, 3, 1, 2)

    def fill(self, segment: int, values: Tensor) -> None:
        """Write a segment's part, `[images, channels, height, width]`, and its pads."""
        images, channels = values.shape[:2]
        stored = self.stored(segment, images, channels)
        stored[..., :channels].permute(0, 3, 1, 2).copy_(values)
        stored[..., channels:].zero_()


@dataclass(frozen=True, slots=True)
class Table:
    """A number per channel of every segment, such as a scale.

    Attributes:
        buffer: flat.
        starts: where each segment's part `[padded(channels)]` begins.
    """

    buffer: Tensor
    starts: tuple[int, ...]

    @classmethod
    def zeros(cls, channels: Sequence[int], dtype: torch.dtype, device: torch.device) -> Table:
        starts, total = _laid_out([padded(width) for width in channels])
        return cls(torch.zeros(total, dtype=dtype, device=device), starts)

    def part(self, segment: int, channels: int) -> Tensor:
        """Return a segment's numbers `[channels]`; a view."""
        start = self.starts[segment]
        return self.buffer[start : start + channels]

    def fill(self, segment: int, values: Tensor) -> None:
        """Write a segment's numbers `[channels]`, and the pads behind them."""
        stored = self.part(segment, padded(len(values)))
        stored[: len(values)].copy_(values)
        stored[len(values) :].zero_()


@dataclass(slots=True)
class Loose:
    """Results of PyTorch, a tensor for every segment that has work; empty before it ran and after
    its last reader.

    Attributes:
        fixed: it depends on weights alone, and stays until others are loaded.
    """

    tensors: dict[int, Tensor] = field(default_factory=dict)
    fixed: bool = False


Stored = Activation | Table | Loose
"""A value of all segments: in a kernel's buffer, or as PyTorch's tensors."""


class Memory:
    """Memory for activations; what is given back is used again, in part or together with what lies
    beside it.

    Attributes:
        bytes: taken from the device in all.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._blocks: list[Tensor] = []
        self._free: list[_Span] = []
        self._taken: dict[int, tuple[Tensor, _Span]] = {}

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return a flat buffer of ``count`` elements, not written yet; they are a multiple of
        `ALIGNMENT`."""
        size = count * dtype.itemsize
        fitting = [span for span in self._free if span.size >= size]
        if fitting:
            span = min(fitting, key=lambda span: span.size)
            self._free.remove(span)
        else:
            self._blocks.append(torch.empty(size, dtype=torch.uint8, device=self.device))
            self.bytes += size
            span = _Span(len(self._blocks) - 1, 0, size)
        end = span.start + size
        if span.end > end:
            self._free.append(_Span(span.block, end, span.end))
        buffer = self._blocks[span.block][span.start : end].view(dtype)
        self._taken[id(buffer)] = buffer, _Span(span.block, span.start, end)
        return buffer

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back whose contents nobody reads any more."""
        _, span = self._taken.pop(id(buffer))
        for other in [item for item in self._free if item.block == span.block]:
            if other.end == span.start or span.end == other.start:
                self._free.remove(other)
                span = _Span(span.block, min(span.start, other.start), max(span.end, other.end))
        self._free.append(span)


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes of a block, ``start`` to ``end``."""

    block: int
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def _laid_out(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Return the starts of parts one after another, and their total."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += size
    return tuple(starts), total
