"""One convolution of a lowered statistics pass: its weights packed, its launches, its batch norm found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.ir.graph import Op
from pruneopt.kernels.operands import Affine, Partials, Prologue, tiles
from pruneopt.kernels.segments import padded
from pruneopt.kernels.window import Window
from pruneopt.passes.lowering.storage import Activation, Table
from pruneopt.passes.lowering.work import Work

__all__ = ["Convolution", "norm_of", "window_of", "writes_input"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution of every candidate: what its launches share."""

    work: Work
    raw: Activation
    prologue: Prologue
    columns: Mapping[str, Sequence[int]]
    kernels: Sequence[Tensor]
    window: Window
    made: Activation
    tables: Sequence[Table]
    gamma: Table | None
    beta: Table | None

    def launch(self, groups: int, chosen: Sequence[int], eps: float) -> None:
        """The segments of one number of groups (0: depthwise)."""
        work, window, backend = self.work, self.window, self.work.backend
        weight, starts = self._packed(groups, chosen)
        widest = max(self.made.channels[number] for number in chosen)
        rows = backend.tile_rows(widest, max(self.raw.channels[number] for number in chosen), groups)
        sizes = [tiles(work.images[n], window.out_pixels, rows) * padded(self.made.channels[n]) for n in chosen]
        partials, total = [0] * len(work.images), 0
        for number, size in zip(chosen, sizes, strict=True):
            partials[number], total = total, total + size
        columns = {**self.columns, "w": starts, "partials": partials}
        if not groups:
            columns["w_rows"] = [1] * len(work.images)
        segments = work.table(self.raw.channels, self.made.channels, columns, chosen)
        mean, m2 = (torch.empty(total, dtype=backend.sums, device=work.device) for _ in range(2))
        parts = Partials(mean, m2, rows)
        backend.conv(self.raw.buffer, weight, self.made.buffer, segments, window, self.prologue, parts, groups)
        means, variances, scale, shift = (table.buffer for table in self.tables)
        backend.finalize(
            parts,
            means,
            variances,
            segments,
            window.out_pixels,
            gamma=None if self.gamma is None else self.gamma.buffer,
            beta=None if self.beta is None else self.beta.buffer,
            affine=None if self.gamma is None else Affine(scale, shift),
            eps=eps,
        )

    def _packed(self, groups: int, chosen: Sequence[int]) -> tuple[Tensor, list[int]]:
        """The candidates' weights in the kernels' layout, one after another, and where each segment's begins."""
        work, taps = self.work, self.window.taps
        wanted = sorted({work.candidates[number] for number in chosen})
        shapes = {}
        for number in wanted:
            kernel = self.kernels[number]
            shapes[number] = (taps, padded(kernel.shape[1]) if groups else 1, padded(len(kernel)))
        starts, total = {}, 0
        for number in wanted:
            starts[number] = total
            total += torch.Size(shapes[number]).numel()
        buffer = torch.empty(total, dtype=work.backend.dtype, device=work.device)
        for number in wanted:
            size = torch.Size(shapes[number]).numel()
            packed = buffer[starts[number] : starts[number] + size].view(shapes[number])
            kernel = self.kernels[number].to(work.backend.dtype).contiguous()
            every, own = torch.arange(len(kernel)), torch.arange(kernel.shape[1])
            work.backend.pack(kernel, every, own.expand(groups, -1) if groups > 1 else own, packed)
        return buffer, [starts.get(number, 0) for number in work.candidates]


def writes_input(op: Op) -> bool:
    """Whether a convolution's kernel can write its input: one group, or depthwise."""
    groups, source = op.attrs["groups"], op.needed(0)
    return groups in (1, source.type.plain().dims[1])


def window_of(raw: Activation, kernel: Tensor, op: Op) -> Window:
    pairs: list[Any] = [op.attrs[name] for name in ("stride", "padding", "dilation")]
    return Window(raw.height, raw.width, (kernel.shape[2], kernel.shape[3]), *pairs)


def norm_of(op: Op) -> Op | None:
    """The batch norm that a convolution's statistics are for, if its parameters are weights."""
    _, mean, variance, _ = op.results
    for user in mean.users:
        own = user.base == "pruneopt.norm_affine" and (user.value(0), user.value(1)) == (mean, variance)
        if own and all(value is None or value.is_weight for value in (user.value(2), user.value(3))):
            return user
    return None
