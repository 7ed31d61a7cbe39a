"""What a lowered graph's values are while it runs on the kernels: one buffer each, with a part for every segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.kernels.segments import padded

__all__ = ["Activation", "Table"]


@dataclass(frozen=True, slots=True)
class Activation:
    """Activations of every segment, channels last and padded; several segments may share a part.

    Attributes:
        buffer: flat.
        starts: where each segment's part `[images, height, width, padded(channels)]` begins.
        channels, images: of each segment.
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
    ) -> Activation:
        """Parts one after another, not written yet."""
        sizes = [count * size[0] * size[1] * padded(width) for count, width in zip(images, channels, strict=True)]
        starts, total = _laid_out(sizes)
        return cls(torch.empty(total, dtype=dtype, device=device), starts, tuple(channels), tuple(images), *size)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def stored(self, segment: int) -> Tensor:
        """A segment's part with its pads, `[images, height, width, padded(channels)]`; a view."""
        shape = (self.images[segment], self.height, self.width, padded(self.channels[segment]))
        start = self.starts[segment]
        return self.buffer[start : start + torch.Size(shape).numel()].view(shape)

    def part(self, segment: int) -> Tensor:
        """A segment's part as PyTorch has it, `[images, channels, height, width]`; a view."""
        return self.stored(segment)[..., : self.channels[segment]].permute(0, 3, 1, 2)

    def fill(self, segment: int, values: Tensor) -> None:
        """Write a segment's part, `[images, channels, height, width]`, and its pads."""
        self.part(segment).copy_(values)
        self.stored(segment)[..., self.channels[segment] :].zero_()


@dataclass(frozen=True, slots=True)
class Table:
    """A number per channel of every segment, such as a scale.

    Attributes:
        buffer: flat.
        starts: where each segment's part `[padded(channels)]` begins.
        channels: of each segment.
    """

    buffer: Tensor
    starts: tuple[int, ...]
    channels: tuple[int, ...]

    @classmethod
    def zeros(cls, channels: Sequence[int], dtype: torch.dtype, device: torch.device) -> Table:
        starts, total = _laid_out([padded(width) for width in channels])
        return cls(torch.zeros(total, dtype=dtype, device=device), starts, tuple(channels))

    def part(self, segment: int) -> Tensor:
        """A segment's numbers `[channels]`; a view."""
        start = self.starts[segment]
        return self.buffer[start : start + self.channels[segment]]

    @classmethod
    def of(cls, parts: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Table:
        """The table of given parts `[channels]`."""
        table = cls.zeros([len(part) for part in parts], dtype, device)
        for segment, part in enumerate(parts):
            table.part(segment).copy_(part)
        return table


def _laid_out(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Starts of parts one after another, and their total."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += size
    return tuple(starts), total
