"""Pooling, interpolation, pixel shuffles, padding and windows: places change, channels mostly
stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from randomnets.base import MAX_CHANNELS, MAX_POSITIONS, SPATIAL, Dice, Made, Shape, unary

POOLS = {
    1: (F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
    2: (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    3: (F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@unary(*SPATIAL)
def pool(dice: Dice, shape: Shape) -> Made | None:
    dims = len(shape.size)
    if any(s % 2 for s in shape.size):
        return None
    half = tuple(s // 2 for s in shape.size)
    kind = dice.whole(0, 3)
    function: Callable[..., Tensor] = POOLS[dims][kind]
    size = half[0] if dims == 1 else half
    return Made(
        function.__name__, shape.sized(*half), lambda x: function(x, 2 if kind < 2 else size)
    )


@unary(*SPATIAL)
def enlarge(dice: Dice, shape: Shape) -> Made | None:
    dims = len(shape.size)
    if shape.positions * 2**dims > MAX_POSITIONS:
        return None
    mode = dice.pick(["nearest", LINEAR[dims]])
    double = tuple(2 * s for s in shape.size)
    if dice.flag():
        return Made(
            f"enlarge {mode}",
            shape.sized(*double),
            lambda x: F.interpolate(x, scale_factor=2, mode=mode),
        )
    return Made(
        f"enlarge to size {mode}",
        shape.sized(*double),
        lambda x: F.interpolate(x, double, mode=mode),
    )


@unary(*SPATIAL)
def border(dice: Dice, shape: Shape) -> Made | None:
    """Padding around, of every kind, and cut off again."""
    dims, mode = len(shape.size), dice.pick(["constant", "replicate", "circular", "reflect"])
    if min(shape.size) < 2:
        return None

    def run(x: Tensor) -> Tensor:
        y = F.pad(x, (1, 1) * dims, mode=mode).sin()
        for axis in range(2, 2 + dims):
            y = y.narrow(axis, 1, x.shape[axis])
        return y

    return Made(f"border {mode}", shape, run)


@unary("image", times=2)
def rearrange(dice: Dice, shape: Shape) -> Made | None:
    """Places to channels and back."""
    c, (h, w) = shape.channels, shape.size
    name = dice.pick(["shuffle", "unshuffle", "unpool", "fold", "focus", "depth to space"])
    if name in ("shuffle", "depth to space"):
        if c % 4 or shape.positions * 4 > MAX_POSITIONS:
            return None
    elif h % 2 or w % 2 or c * 4 > MAX_CHANNELS:
        return None
    small, large = Shape("image", 4 * c, (h // 2, w // 2)), Shape("image", c // 4, (2 * h, 2 * w))
    table: dict[str, tuple[Shape, Callable[[Tensor], Tensor], bool]] = {
        "shuffle": (large, lambda x: F.pixel_shuffle(x, 2), False),
        "unshuffle": (small, lambda x: F.pixel_unshuffle(x, 2), False),
        "unpool": (
            shape,
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), (2, 2)),
            False,
        ),
        "fold": (
            shape,
            lambda x: F.fold(F.unfold(x, 2, stride=2).sin(), (h, w), 2, stride=2),
            False,
        ),
        "focus": (small, _focus, False),
        "depth to space": (large, _depth_to_space, False),
    }
    after, run, sized = table[name]
    return Made(name, after, run, sized=sized)


def _focus(x: Tensor) -> Tensor:
    return torch.cat(
        [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1
    )


def _depth_to_space(x: Tensor) -> Tensor:
    """A pixel shuffle written by hand, the places outermost."""
    y = x.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)
    return y.flatten(4).flatten(2, 3)


@unary(*SPATIAL)
def places(dice: Dice, shape: Shape) -> Made:
    """Move places and leave channels."""
    axis = dice.whole(2, shape.rank - 1)
    size = shape.size[axis - 2]
    name = dice.pick(["flip", "roll", "swap", "softmax", "cumsum", "shift", "sort"])
    run: Callable[[Tensor], Tensor] = {
        "flip": lambda x: x.flip(axis),
        "roll": lambda x: x.roll(1, axis),
        "swap": lambda x: x.transpose(axis, shape.rank - 1).sin().transpose(axis, shape.rank - 1),
        "softmax": lambda x: x.softmax(axis),
        "cumsum": lambda x: x.cumsum(axis) / size,
        "shift": lambda x: torch.cat(
            [x.narrow(axis, size - 1, 1), x.narrow(axis, 0, size - 1)], axis
        ),
        "sort": lambda x: x.sort(axis).values,
    }[name]
    return Made(f"{name} along {axis}", shape, run)


@unary("image", "series")
def windows(dice: Dice, shape: Shape) -> Made | None:
    """Sliding windows over the last axis, and a statistic of each."""
    if shape.size[-1] < 3:
        return None
    return Made(
        "windows",
        shape.sized(*shape.size[:-1], shape.size[-1] - 2),
        lambda x: x.unfold(-1, 3, 1).amax(-1),
    )
