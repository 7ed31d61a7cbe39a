"""The shipped configurations as launches on the meta device, built for GPUs that need not be there.

`python -m ragged.compiled fast 90 commonest 80` prints what the compiler made of each group for
each architecture as JSON, one object per line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from pruneopt.kernels import convolution, elementwise, head, statistics
from pruneopt.kernels.compiling import build, compiled
from pruneopt.kernels.launch import Launch
from pruneopt.kernels.operands import Affine, Output, Partials, Prologue, Scores
from pruneopt.kernels.segments import Pool, Pools, Segment, Segments
from pruneopt.kernels.stem import stem_launch
from pruneopt.kernels.tiles import (
    Precision,
    Tile,
    conv_tile,
    depthwise_tile,
    elementwise_tile,
    stem_tile,
)
from pruneopt.kernels.window import Window

BF16 = torch.bfloat16


def empty(dtype: torch.dtype = torch.float32) -> Tensor:
    """A buffer that is large enough for anything and takes no memory."""
    return torch.empty(2**33, dtype=dtype, device="meta")


def table() -> Affine:
    return Affine(empty(), empty())


def conv(
    architecture: int,
    *,
    n_in: int = 256,
    n_out: int = 256,
    kernel: int = 3,
    prologue: str | None = "relu",
    residual: bool = False,
    evaluation: bool = False,
    dtype: torch.dtype = BF16,
    precision: Precision = "ieee",
    groups: int = 1,
    depthwise: bool = False,
) -> Launch:
    window = Window(14, 14, (kernel, kernel), padding=(kernel // 2, kernel // 2))
    segments = Segments([Segment(n_in=n_in, n_out=n_out, images=256)], "meta")
    tile: Tile = conv_tile(n_out, n_in, dtype, architecture, precision, groups)
    if depthwise:
        tile = depthwise_tile(n_out, architecture)
    before = Prologue(table(), prologue) if prologue else None
    if residual and prologue:
        before = Prologue(table(), prologue, empty(dtype), None, empty(dtype))
    after = (
        Output(empty(), "relu", empty(dtype))
        if evaluation
        else Partials(empty(), empty(), tile.rows)
    )
    buffers = empty(dtype), empty(dtype), empty(dtype)
    if depthwise:
        return convolution.dwconv_launch(
            *buffers, segments, window, prologue=before, epilogue=after, tile=tile
        )
    return convolution.conv_launch(
        *buffers,
        segments,
        window,
        prologue=before,
        epilogue=after,
        groups=groups,
        precision=precision,
        tile=tile,
    )


def first(architecture: int) -> Launch:
    window = Window(224, 224, (7, 7), (2, 2), (3, 3))
    segments = Segments([Segment(n_in=3, n_out=64, images=64)], "meta")
    tile = stem_tile(64, architecture)
    pictures = torch.empty(64, 224, 224, 3, dtype=torch.uint8, device="meta")
    colours = Affine(torch.empty(3, device="meta"), torch.empty(3, device="meta"))
    after = Partials(empty(), empty(), tile.rows)
    return stem_launch(
        pictures,
        empty(BF16),
        empty(BF16),
        segments,
        window,
        normalise=colours,
        epilogue=after,
        tile=tile,
    )


def finalize(architecture: int) -> Launch:
    segments = Segments([Segment(n_in=1, n_out=256, images=256)], "meta")
    partials = Partials(empty(), empty(), 128)
    after: dict[str, Any] = {"gamma": empty(), "beta": empty(), "affine": table()}
    return statistics.finalize_launch(partials, empty(), empty(), segments, 196, **after)


def pool(architecture: int) -> Launch:
    pools = Pools(
        [Pool(first=0, count=1, out_table=0)],
        Segments([Segment(n_in=1, n_out=256, images=256)], "meta"),
    )
    after: dict[str, Any] = {"gamma": empty(), "beta": empty(), "affine": table()}
    return statistics.pool_launch(empty(), empty(), empty(), empty(), pools, 196, **after)


def add_act(architecture: int) -> Launch:
    segments = Segments([Segment(n_in=256, n_out=256, images=256)], "meta")
    prologue = Prologue(table(), "relu", empty(BF16), table(), empty(BF16))
    return elementwise.add_act_launch(
        empty(BF16), segments, 196, prologue, tile=elementwise_tile(256, architecture)
    )


def pack(architecture: int) -> Launch:
    # Indices lie on the host, and pack copies them to the weight's device, here the meta device.
    weight, packed = (
        torch.empty(shape, dtype=BF16, device="meta") for shape in ((256, 256, 3, 3), (9, 256, 256))
    )
    return elementwise.pack_launch(weight, torch.arange(256), torch.arange(256), packed)


def mean(architecture: int) -> Launch:
    segments = Segments([Segment(n_in=512, n_out=512, images=256)], "meta")
    tile = elementwise_tile(512, architecture)
    return head.mean_pixels_launch(
        empty(BF16),
        empty(BF16),
        segments,
        49,
        prologue=Prologue(table(), "relu", empty(BF16)),
        tile=tile,
    )


def score(which: int) -> Callable[[int], Launch]:
    def launch(architecture: int) -> Launch:
        segments = Segments([Segment(n_in=512, n_out=1000, images=256)], "meta")
        integer, double = torch.int32, torch.float64
        scores = Scores(
            empty(integer), empty(), empty(integer), empty(double), empty(), empty(double)
        )
        teacher = torch.empty(256, 1000, device="meta")
        return head.score_launches(empty(), empty(torch.int64), scores, segments, teacher=teacher)[
            which
        ]

    return launch


def configured(**settings: object) -> Callable[[int], Launch]:
    return lambda architecture: conv(architecture, **settings)  # type: ignore[arg-type]


COMMONEST: dict[str, Callable[[int], Launch]] = {"conv 3x3, 256 to 256": configured()}
FAST: dict[str, Callable[[int], Launch]] = {
    **COMMONEST,
    "conv 1x1, 64 to 64": configured(kernel=1, n_in=64, n_out=64),
    "conv 1x1, residual, written": configured(kernel=1, residual=True),
    "dwconv 3x3": configured(depthwise=True, prologue="relu6"),
    "finalize": finalize,
}
SLOW: dict[str, Callable[[int], Launch]] = {
    "conv 3x3, raw": configured(prologue=None),
    "conv 3x3, 64 to 64": configured(n_in=64, n_out=64),
    "conv 3x3, 32 to 32": configured(n_in=32, n_out=32),
    "conv 3x3, 16 to 16": configured(n_in=16, n_out=16),
    "conv 1x1, silu": configured(kernel=1, prologue="silu"),
    "conv 1x1, evaluation": configured(kernel=1, prologue=None, evaluation=True),
    "conv 3x3, float16": configured(dtype=torch.float16),
    "conv 3x3, float32": configured(dtype=torch.float32),
    "conv 3x3, tf32": configured(dtype=torch.float32, precision="tf32"),
    "conv 3x3, 32 groups of 4": configured(n_in=128, n_out=128, groups=32),
    "conv 3x3, 4 groups of 64": configured(groups=4),
    "dwconv 5x5, hardswish": configured(depthwise=True, kernel=5, prologue="hardswish"),
    "dwconv 3x3, evaluation": configured(depthwise=True, evaluation=True, prologue=None),
    "dwconv 3x3, float32": configured(depthwise=True, dtype=torch.float32),
    "stem 7x7": first,
    "pool": pool,
    "add_act": add_act,
    "pack": pack,
    "mean_pixels": mean,
    "score": score(0),
    "score, sums": score(1),
}


class NoGpu:
    """A driver that answers what Triton asks before a launch starts anything."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def as_launched(launch: Launch, architecture: int) -> str:
    """The code that a launch with these very arguments compiles."""
    triton.runtime.driver.set_active(NoGpu(architecture))
    made = launch.kernel.warmup(
        **launch.arguments, **launch.constants, **launch.options, grid=launch.grid
    )
    code: str = made.asm["ptx"]
    return code


if __name__ == "__main__":
    if sys.argv[1] == "launched":
        launches = [add_act(80), finalize(80), pack(80), score(0)(80)]
        print(
            all(as_launched(launch, 80) == compiled(launch, 80).asm["ptx"] for launch in launches)
        )
        sys.exit()
    groups = {"commonest": COMMONEST, "fast": FAST, "slow": SLOW, "all": FAST | SLOW}
    for group, number in zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True):
        for name, launch in groups[group].items():
            made = dataclasses.asdict(build(launch(number), number))
            print(json.dumps({"name": name, "architecture": number, **made}), flush=True)
