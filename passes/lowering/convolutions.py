"""One convolution of every candidate: its weights packed, and a launch for each number of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.ir.graph import Op
from pruneopt.kernels.operands import Output, Partials, Prologue, tiles
from pruneopt.kernels.segments import Segments, padded
from pruneopt.kernels.window import Window
from pruneopt.passes.lowering.run import Run
from pruneopt.passes.lowering.storage import Activation
from pruneopt.passes.lowering.work import Work

__all__ = ["Convolution"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """What the launches of one convolution share.

    Attributes:
        work: the segments.
        raw, made: what is read and what is written.
        prologue: how it is finished while it is read.
        columns: of the launches' tables, where operands begin.
        kernels: the weight of every candidate, as PyTorch has it.
        window: its geometry.
        groups: of every segment; 0 where it is depthwise.
    """

    work: Work
    raw: Activation
    made: Activation
    prologue: Prologue
    columns: dict[str, tuple[int, ...]]
    kernels: Sequence[Tensor]
    window: Window
    groups: Sequence[int]

    @classmethod
    def of(
        cls,
        run: Run,
        ops: Sequence[Op],
        weight: int,
        raw: Activation,
        prologue: Prologue,
        columns: dict[str, tuple[int, ...]],
    ) -> Convolution:
        """The convolution that ``ops`` are; ``weight`` is the number of their operand."""
        kernels = [run.weights[number][op.needed(weight).name] for number, op in enumerate(ops)]
        pairs: list[Any] = [ops[0].attrs[name] for name in ("stride", "padding", "dilation")]
        window = Window(raw.height, raw.width, (kernels[0].shape[2], kernels[0].shape[3]), *pairs)
        channels = [len(kernels[number]) for number in run.work.candidates]
        made = run.empty(run.work.images, channels, (window.out_height, window.out_width))
        groups = []
        for segment, number in enumerate(run.work.candidates):
            given, n_in = ops[number].attrs["groups"], raw.channels[segment]
            assert isinstance(given, int)
            groups.append(0 if given == n_in == channels[segment] and n_in > 1 else given)
        return cls(run.work, raw, made, prologue, {**columns, "y": made.starts}, kernels, window, groups)

    def measured(self) -> Iterator[tuple[Partials, Segments]]:
        """Launch with statistics; gives the partial statistics of each launch and its table."""
        backend = self.work.backend
        for groups, chosen in self._launches():
            n_out, n_in = (max(side.channels[number] for number in chosen) for side in (self.made, self.raw))
            rows = backend.tile_rows(n_out, n_in, groups)
            starts, total = [0] * len(self.work.images), 0
            for number in chosen:
                starts[number] = total
                count = tiles(self.work.images[number], self.window.out_pixels, rows)
                total += count * padded(self.made.channels[number])
            mean, m2 = (torch.empty(total, dtype=backend.sums, device=self.work.device) for _ in range(2))
            partials = Partials(mean, m2, rows)
            yield partials, self._launch(groups, chosen, partials, partials=tuple(starts))

    def finished(self, output: Output) -> None:
        """Launch with an epilogue of evaluation."""
        for groups, chosen in self._launches():
            self._launch(groups, chosen, output)

    def _launches(self) -> Iterator[tuple[int, list[int]]]:
        """The segments of each launch, by their number of groups."""
        for groups in dict.fromkeys(self.groups):
            yield groups, [number for number, own in enumerate(self.groups) if own == groups]

    def _launch(
        self, groups: int, chosen: Sequence[int], epilogue: Partials | Output, **more: tuple[int, ...]
    ) -> Segments:
        weight, starts = self._packed(groups, chosen)
        columns = {**self.columns, "w": starts, **more}
        if not groups:
            columns["w_rows"] = (1,) * len(self.groups)
        segments = self.work.table(self.raw.channels, self.made.channels, columns, chosen)
        self.work.backend.conv(
            self.raw.buffer, weight, self.made.buffer, segments, self.window, self.prologue, epilogue, groups
        )
        return segments

    def _packed(self, groups: int, chosen: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """The candidates' weights in the kernels' layout, one after another, and where each segment's begins."""
        backend, starts, total = self.work.backend, {}, 0
        wanted = dict.fromkeys(self.work.candidates[number] for number in chosen)
        shapes = {number: self._shape(self.kernels[number], groups) for number in wanted}
        for number, shape in shapes.items():
            starts[number] = total
            total += shape.numel()
        buffer = torch.empty(total, dtype=backend.dtype, device=self.work.device)
        for number, shape in shapes.items():
            packed = buffer[starts[number] : starts[number] + shape.numel()].view(shape)
            kernel = self.kernels[number].to(backend.dtype).contiguous()
            every, own = torch.arange(len(kernel)), torch.arange(kernel.shape[1])
            backend.pack(kernel, every, own.expand(groups, -1) if groups > 1 else own, packed)
        return buffer, tuple(starts.get(number, 0) for number in self.work.candidates)

    def _shape(self, kernel: Tensor, groups: int) -> torch.Size:
        rows = padded(kernel.shape[1]) if groups else 1
        return torch.Size((self.window.taps, rows, padded(len(kernel))))
