"""One convolution of every candidate: room for its weights, and a launch for each number of
groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.ir.graph import Op, Value
from pruneopt.kernels.operands import Output, Partials, Prologue, tiles
from pruneopt.kernels.segments import Segments, padded
from pruneopt.kernels.window import Window
from pruneopt.passes.lowering.backends import Convolve
from pruneopt.passes.lowering.layout import Layout, Pair
from pruneopt.passes.lowering.shape_match import depthwise
from pruneopt.passes.lowering.storage import Activation

__all__ = ["Convolution"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """Settings that the launches of one convolution share.

    Attributes:
        layout: what it is laid out for.
        op: what it is; ``weight`` is the number of that operand.
        raw, made: what is read and what is written.
        prologue: how it is finished while it is read.
        columns: of the launches' tables, where operands begin.
        window: its geometry.
        groups: of every candidate; 0 where it is depthwise.
    """

    layout: Layout
    op: Op
    weight: int
    raw: Activation
    made: Activation
    prologue: Prologue
    columns: dict[str, tuple[int, ...]]
    window: Window
    groups: tuple[int, ...]

    @classmethod
    def of(
        cls,
        layout: Layout,
        op: Op,
        weight: int,
        raw: Activation,
        prologue: Prologue,
        columns: dict[str, tuple[int, ...]],
    ) -> Convolution:
        """Return the convolution that an op is; ``weight`` is the number of that operand."""
        height, width = op.needed(weight).type.shape(1)[2:]
        pairs: list[Any] = [op.attrs[name] for name in ("stride", "padding", "dilation")]
        window = Window(raw.height, raw.width, (height, width), *pairs)
        made = layout.make(op.results[0], (window.out_height, window.out_width))
        groups = tuple(
            0 if depthwise(own) else _number(own.attrs["groups"]) for own in layout.own(op)
        )
        return cls(
            layout, op, weight, raw, made, prologue, {**columns, "y": made.starts}, window, groups
        )

    @property
    def sides(self) -> tuple[Value, Value]:
        """The value that tells the channels of both sides."""
        return self.op.needed(0), self.op.results[0]

    def measured(self) -> Iterator[tuple[Partials, Segments]]:
        """Launch with statistics; gives the partial statistics of each launch and its table."""
        layout, backend = self.layout, self.layout.backend
        for groups, chosen in self._launches():
            n_out, n_in = (
                max(side.channels[number] for number in chosen) for side in (self.made, self.raw)
            )
            rows = backend.tile_rows(n_out, n_in, self.window, groups)
            starts, total = [0] * len(layout.images), 0
            for number in chosen:
                starts[number] = total
                count = tiles(layout.images[number], self.window.out_pixels, rows)
                total += count * padded(self.made.channels[number])
            mean, m2 = (layout.memory.take(total, backend.sums) for _ in range(2))
            partials = Partials(mean, m2, rows)
            yield partials, self._launch(groups, chosen, partials, partials=tuple(starts))
            for buffer in (mean, m2):
                layout.memory.give(buffer)

    def finished(self, output: Output) -> None:
        """Launch with an epilogue of evaluation."""
        for groups, chosen in self._launches():
            self._launch(groups, chosen, output)

    def _launches(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the segments of each launch, by their number of groups."""
        own = [self.groups[candidate] for candidate in self.layout.candidates]
        for groups in dict.fromkeys(own):
            yield groups, [number for number, its in enumerate(own) if its == groups]

    def _launch(
        self,
        groups: int,
        chosen: Sequence[int],
        epilogue: Partials | Output,
        **more: tuple[int, ...],
    ) -> Segments:
        weight, places = self._packed(groups, chosen)
        columns = {**self.columns, **places, **more}
        segments = self.layout.table(self.sides, columns, chosen)
        operands = Convolve(
            self.raw.buffer,
            weight,
            self.made.buffer,
            segments,
            self.window,
            self.prologue,
            epilogue,
            groups,
        )
        self.layout.launch(self.layout.backend.conv(operands))
        return segments

    def _packed(
        self, groups: int, chosen: Sequence[int]
    ) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
        """Return room for the candidates' weights in the kernels' layout, and where each segment's
        stands and how wide."""
        layout, starts, total = self.layout, {}, 0
        wanted = dict.fromkeys(layout.candidates[number] for number in chosen)
        own = layout.own(self.op)
        shapes = {number: self._shape(own[number], groups) for number in wanted}
        for number, shape in shapes.items():
            starts[number] = total
            total += shape.numel()
        buffer = torch.zeros(total, dtype=layout.backend.dtype, device=layout.device)

        def copies() -> Iterator[Pair]:
            for number, shape in shapes.items():
                if number >= len(layout.weights):
                    continue
                kernel = layout.weight(self.op, self.weight, number)
                assert kernel is not None
                stored = buffer[starts[number] : starts[number] + shape.numel()].view(shape)
                packed = kernel.flatten(2).permute(2, 1, 0)  # [taps, rows, columns]
                yield stored[:, : packed.shape[1], : packed.shape[2]], packed

        layout.load(copies, buffer)
        of = layout.candidates
        places = {
            "w": tuple(starts.get(number, 0) for number in of),
            "w_rows": tuple(shapes[number][1] if number in shapes else 1 for number in of),
            "w_columns": tuple(shapes[number][2] if number in shapes else 0 for number in of),
        }
        return buffer, places

    def _shape(self, op: Op, groups: int) -> torch.Size:
        n_out, n_in = op.needed(self.weight).type.shape(1)[:2]
        return torch.Size((self.window.taps, padded(n_in) if groups else 1, padded(n_out)))


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
