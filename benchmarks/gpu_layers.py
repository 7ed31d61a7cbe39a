"""Single convolutions: the fused kernel against cuDNN's plain one, and ways to apply what comes
before a 3x3."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_device import Device, Run, interleaved
from gpu_guard import Row, Skipped, guarded
from gpu_networks import Sizes
from torch import Tensor

from pruneopt.kernels.operands import Affine, Partials, Prologue, tiles
from pruneopt.kernels.segments import Segment, Segments, padded
from pruneopt.kernels.window import Window
from pruneopt.passes.lowering.storage import Activation

__all__ = ["layers_part"]


@dataclass(frozen=True)
class Shape:
    """A convolution with stride 1 that keeps the size of its input; ``side`` pixels square."""

    kernel: int
    n_in: int
    n_out: int
    side: int
    depthwise: bool = False

    def __str__(self) -> str:
        kind = " depthwise" if self.depthwise else ""
        return f"{self.kernel}x{self.kernel}{kind} {self.n_in} to {self.n_out} at {self.side}"

    @property
    def window(self) -> Window:
        around = self.kernel // 2
        return Window(self.side, self.side, (self.kernel, self.kernel), padding=(around, around))


SHAPES = (
    *(Shape(3, width, width, side) for width, side in ((48, 56), (64, 56), (96, 28), (128, 28))),
    *(Shape(1, n_in, n_out, 56) for n_in, n_out in ((64, 64), (48, 192), (192, 48), (96, 96))),
    Shape(3, 96, 96, 56, depthwise=True),
)
TOYS = (Shape(3, 10, 12, 4), Shape(1, 12, 10, 4), Shape(3, 12, 12, 4, depthwise=True))
OPEN = {
    "stem kept for all candidates": "not there: every candidate computes its own stem",
}


def layers_part(device: Device, sizes: Sizes, save: Callable[[], None], row: Row) -> None:
    """Measure every shape by every way; times are of one launch."""
    row |= {"images": sizes.layer_images, "not measured": OPEN, "shapes": {}}
    for shape in TOYS if device.rehearsal else SHAPES:
        found: Row = row["shapes"].setdefault(str(shape), {})
        guarded(found, partial(_measure, shape, device, sizes, found))
        save()


def _measure(shape: Shape, device: Device, sizes: Sizes, row: Row) -> None:
    problem = _Problem(shape, device, sizes.layer_images)
    rows: dict[str, Row] = {name: {} for name in (*problem.ways, "B6 fp16", "B6 bf16")}
    runs = dict(problem.ways)

    def add(name: str, dtype: torch.dtype) -> None:
        runs[name] = genstats(problem, dtype)

    guarded(rows["B6 fp16"], partial(add, "B6 fp16", torch.float16))
    guarded(rows["B6 bf16"], partial(add, "B6 bf16", torch.bfloat16))

    def often(run: Run) -> None:
        for _ in range(sizes.launches):
            run()

    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        times = interleaved(
            device,
            {name: partial(often, run) for name, run in runs.items()},
            sizes.warmups,
            sizes.repeats,
        )
    finally:
        torch.backends.cudnn.benchmark = before
    for name, found in times.items():
        rows[name] |= {
            key: value / sizes.launches if key.endswith("ms") else value
            for key, value in found.items()
        }
    row["ways"] = rows
    row |= {"bytes": problem.bytes, "operations": problem.operations, "off": problem.error()}
    plain = rows["cuDNN plain"].get("ms")
    for found in rows.values():
        if "ms" in found:
            found["operations_per_s"] = round(1e3 * problem.operations / found["ms"])
            found["bytes_per_s"] = round(1e3 * problem.bytes / found["ms"])
            if plain:
                found["times cuDNN plain"] = round(plain / found["ms"], 4)


class _Problem:
    """The operands of a convolution for the kernels and for cuDNN, and the ways to run it."""

    def __init__(self, shape: Shape, device: Device, images: int) -> None:
        # Triton is imported where kernels run.
        from pruneopt.kernels.elementwise import pack
        from pruneopt.kernels.launch import architecture
        from pruneopt.kernels.tiles import conv_tile, depthwise_tile

        self.shape, self.images, self.dtype, place = shape, images, device.half, device.place
        size, rows = (shape.side, shape.side), 1 if shape.depthwise else shape.n_in
        generator = torch.Generator(place).manual_seed(0)
        draw = partial(torch.randn, generator=generator, device=place)
        x, w = draw(images, shape.n_in, *size), draw(shape.n_out, rows, shape.kernel, shape.kernel)
        w /= (rows * shape.kernel**2) ** 0.5
        self.x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        self.w = w.to(self.dtype).contiguous(memory_format=torch.channels_last)
        self.affine = Affine(
            *(self._table(around + 0.1 * draw(shape.n_in)) for around in (1.0, 0.1))
        )
        empty = partial(Activation.empty, [images], size=size, dtype=self.dtype, device=place)
        self.raw, self.finished, self.y = (
            empty([shape.n_in]),
            empty([shape.n_in]),
            empty([shape.n_out]),
        )
        self.raw.fill(0, self.x)
        stored = 1 if shape.depthwise else padded(shape.n_in)
        self.packed = torch.empty(
            shape.kernel**2, stored, padded(shape.n_out), dtype=self.dtype, device=place
        )
        pack(self.w.contiguous(), torch.arange(shape.n_out), torch.arange(rows), self.packed)
        own = Segment(
            n_in=shape.n_in, n_out=shape.n_out, images=images, w_rows=1 if shape.depthwise else 0
        )
        self.segments = Segments([own], place)
        chip = architecture(place)
        tile = (
            depthwise_tile(shape.n_out, chip)
            if shape.depthwise
            else conv_tile(shape.n_out, shape.n_in, self.dtype, chip)
        )
        total = tiles(images, shape.window.out_pixels, tile.rows) * padded(shape.n_out)
        self.partials = Partials(
            torch.empty(total, device=place), torch.empty(total, device=place), tile.rows
        )

    @staticmethod
    def _table(values: Tensor) -> Tensor:
        made = torch.zeros(padded(len(values)), device=values.device)
        made[: len(values)] = values
        return made

    @property
    def bytes(self) -> int:
        """Input, weight and output, once each."""
        return (
            self.x.numel() + self.w.numel() + self.images * self.shape.n_out * self.shape.side**2
        ) * 2

    @property
    def operations(self) -> int:
        return 2 * self.images * self.shape.side**2 * self.w.numel()

    @property
    def ways(self) -> dict[str, Run]:
        before = Prologue(self.affine, "relu")
        kept = replace(before, materialised=self.finished.buffer)
        fused = self._conv(self.raw, before, self.partials)
        finish, follow = self._finish(kept), self._conv(self.finished, None, self.partials)

        def apart() -> None:
            finish()
            follow()

        groups = self.shape.n_out if self.shape.depthwise else 1
        return {
            "cuDNN plain": partial(
                F.conv2d, self.x, self.w, padding=self.shape.kernel // 2, groups=groups
            ),
            "plain": self._conv(self.raw, None, None),
            "fused": fused,
            "fused, in a grid for twice the widths": self._in_room(before),
            "fused, input written on the way": self._conv(self.raw, kept, self.partials),
            "input finished first": apart,
        }

    def _conv(self, source: Activation, before: Prologue | None, after: Partials | None) -> Run:
        from pruneopt.kernels.convolution import conv_launch, dwconv_launch

        launch = dwconv_launch if self.shape.depthwise else conv_launch
        operands = source.buffer, self.packed, self.y.buffer, self.segments, self.shape.window
        return launch(*operands, prologue=before, epilogue=after).run

    def _in_room(self, before: Prologue) -> Run:
        """Return the launch of a network twice as wide, whose table then says what this one is:
        half its programs exit."""
        from pruneopt.kernels.convolution import conv_launch, dwconv_launch
        from pruneopt.kernels.launch import architecture
        from pruneopt.kernels.tiles import conv_tile, depthwise_tile

        shape, place = self.shape, self.x.device
        n_in, n_out, rows = (
            2 * shape.n_in,
            2 * shape.n_out,
            1 if shape.depthwise else padded(2 * shape.n_in),
        )
        chip, window = architecture(place), shape.window
        tile = (
            depthwise_tile(n_out, chip)
            if shape.depthwise
            else conv_tile(n_out, n_in, self.dtype, chip)
        )

        def larger(tensor: Tensor, count: int) -> Tensor:
            made = torch.zeros(count, dtype=tensor.dtype, device=place)
            made[: tensor.numel()] = tensor.flatten()
            return made

        pixels = self.images * window.in_pixels
        x, y = (
            larger(item.buffer, pixels * padded(n))
            for item, n in ((self.raw, n_in), (self.y, n_out))
        )
        weight = larger(self.packed, window.taps * rows * padded(n_out))
        affine = Affine(
            *(larger(item, padded(n_in)) for item in (self.affine.scale, self.affine.shift))
        )
        count = tiles(self.images, window.out_pixels, tile.rows) * padded(n_out)
        partials = Partials(
            torch.empty(count, device=place), torch.empty(count, device=place), tile.rows
        )
        room = Segments([Segment(n_in=n_in, n_out=n_out, images=self.images, w_rows=rows)], place)
        launch = dwconv_launch if shape.depthwise else conv_launch
        run = launch(
            x,
            weight,
            y,
            room,
            window,
            prologue=replace(before, affine=affine),
            epilogue=partials,
            tile=tile,
        )
        room.table.copy_(self.segments.table)
        return run.run

    def _finish(self, before: Prologue) -> Run:
        from pruneopt.kernels.elementwise import add_act_launch

        return add_act_launch(
            self.raw.buffer, self.segments, self.shape.window.in_pixels, before
        ).run

    def error(self) -> float:
        """Return the plain kernel's largest difference from cuDNN, relative to its largest
        value."""
        ways = self.ways
        ways["plain"]()
        wanted: Any = ways["cuDNN plain"]()
        return float(
            (self.y.part(0).float() - wanted.float()).abs().max() / wanted.float().abs().max()
        )


def genstats(problem: _Problem, dtype: torch.dtype) -> Run:
    """Return way B6: scale, shift, ReLU, convolution and sums of its output as one graph of cuDNN.

    Raises:
        Skipped: a depthwise convolution, or cuDNN's Python frontend is not installed.
    """
    if problem.shape.depthwise:
        raise Skipped("cuDNN's graph has no depthwise convolution")
    if importlib.util.find_spec("cudnn") is None:
        raise Skipped("the package cudnn (nvidia-cudnn-frontend) is not installed")
    cudnn: Any = importlib.import_module("cudnn")
    shape, place = problem.shape, problem.x.device
    types = {torch.float16: cudnn.data_type.HALF, torch.bfloat16: cudnn.data_type.BFLOAT16}
    graph = cudnn.pygraph(
        io_data_type=types[dtype],
        intermediate_data_type=types[dtype],
        compute_data_type=cudnn.data_type.FLOAT,
    )

    def channels(table: Tensor) -> Tensor:
        made = table[: shape.n_in].to(dtype).reshape(1, -1, 1, 1)
        return made.contiguous(memory_format=torch.channels_last)

    given = {
        "X": problem.x.to(dtype),
        "W": problem.w.to(dtype),
        "S": channels(problem.affine.scale),
        "B": channels(problem.affine.shift),
    }
    known = {
        name: graph.tensor(
            name=name, dim=list(t.size()), stride=list(t.stride()), data_type=types[dtype]
        )
        for name, t in given.items()
    }
    scaled = graph.scale(name="scale", input=known["X"], scale=known["S"])
    shifted = graph.bias(name="bias", input=scaled, bias=known["B"])
    around = [shape.kernel // 2] * 2
    out = graph.conv_fprop(
        image=graph.relu(name="relu", input=shifted),
        weight=known["W"],
        padding=around,
        stride=[1, 1],
        dilation=[1, 1],
    )
    out.set_output(True)
    sums = graph.genstats(name="genstats", input=out)
    for item in sums:
        item.set_output(True).set_data_type(cudnn.data_type.FLOAT)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    workspace = torch.empty(max(1, graph.get_workspace_size()), device=place, dtype=torch.uint8)
    made = torch.empty(
        problem.images, shape.n_out, shape.side, shape.side, device=place, dtype=dtype
    )
    buffers = {known[name]: tensor for name, tensor in given.items()}
    buffers[out] = made.contiguous(memory_format=torch.channels_last)
    buffers |= {item: torch.empty(1, shape.n_out, 1, 1, device=place) for item in sums}
    return lambda: graph.execute(buffers, workspace)
