"""Convolutions of one, two and three dimensions, and the blocks that are made of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randomnets.base import (
    BATCH_NORM,
    CONV,
    MAX_CHANNELS,
    MAX_POSITIONS,
    SPATIAL,
    TRANSPOSED,
    Dice,
    Made,
    Shape,
    divisors,
    unary,
    width,
)


@unary(*SPATIAL, times=4)
def conv(dice: Dice, shape: Shape) -> Made:
    """Plain, grouped, dilated, strided; an even kernel pads by itself."""
    c, dims = shape.channels, len(shape.size)
    outs, kernel, dilation = (
        dice.pick([1, 3, *[width(dice)] * 6]),
        dice.pick([1, 3, 3]),
        dice.pick([1, 1, 2]),
    )
    groups = dice.pick([1, 1, *(d for d in (*divisors(c), c) if outs % d == 0)])
    stride = dice.pick([1, 1, 1, 2])
    layer = CONV[dims](
        c,
        outs,
        kernel,
        stride,
        dilation * (kernel // 2),
        dilation,
        groups,
        dice.flag(),
        padding_mode=dice.pick(["zeros", "zeros", "zeros", "replicate"]),
    )
    size = tuple((s - 1) // stride + 1 for s in shape.size)
    return Made(f"conv {layer}", Shape(shape.kind, outs, size), lambda m, x: m(x), [layer])


@unary(*SPATIAL, times=2)
def depthwise(dice: Dice, shape: Shape) -> Made | None:
    c, outs = shape.channels, shape.channels * dice.pick([1, 1, 2])
    if outs > MAX_CHANNELS:
        return None
    layer = CONV[len(shape.size)](c, outs, 3, padding="same", groups=c, bias=dice.flag())
    return Made(f"depthwise {layer}", shape.wide(outs), lambda m, x: m(x), [layer])


@unary(*SPATIAL, times=2)
def transposed(dice: Dice, shape: Shape) -> Made | None:
    c, dims = shape.channels, len(shape.size)
    groups = dice.pick([1, 1, *divisors(c), c])
    outs = groups * dice.whole(1, 3)
    if outs > MAX_CHANNELS:
        return None
    if shape.positions * 2**dims <= MAX_POSITIONS and dice.flag():
        layer: nn.Module = TRANSPOSED[dims](c, outs, 2, 2, groups=groups, bias=dice.flag())
        size = tuple(2 * s for s in shape.size)
    else:
        dilation = dice.pick([1, 2])
        layer = TRANSPOSED[dims](
            c, outs, 3, 1, dilation, groups=groups, bias=dice.flag(), dilation=dilation
        )
        size = shape.size
    return Made(f"transposed {layer}", Shape(shape.kind, outs, size), lambda m, x: m(x), [layer])


@unary(*SPATIAL, times=2)
def residual(dice: Dice, shape: Shape) -> Made:
    """A bottleneck or a basic block, before or after normalisation, with or without a projected
    short cut."""
    c, dims, middle = shape.channels, len(shape.size), width(dice)
    outs = dice.pick([c, c, width(dice)])
    layer, norm = CONV[dims], BATCH_NORM[dims]
    groups = dice.pick([1, 1, *(d for d in (*divisors(middle), middle))])
    branch = nn.Sequential(
        layer(c, middle, 1),
        norm(middle),
        nn.ReLU(),
        layer(middle, middle, 3, padding=1, groups=groups, bias=False),
        norm(middle),
        nn.ReLU(inplace=dice.flag()),
        layer(middle, outs, 1),
    )
    short = nn.Identity() if outs == c else layer(c, outs, 1, bias=False)
    if dice.flag():
        return Made(
            f"residual {c}/{middle}/{outs} g{groups}",
            shape.wide(outs),
            lambda f, s, x: (f(x) + s(x)).relu(),
            [branch, short],
        )
    return Made(
        f"residual {c}/{middle}/{outs} g{groups} in place",
        shape.wide(outs),
        lambda f, s, x: f(x).add_(s(x)).relu_(),
        [branch, short],
    )


@unary(*SPATIAL)
def dense(dice: Dice, shape: Shape) -> Made | None:
    """Every layer reads all before it (DenseNet), or the last part of a split (C2f)."""
    c, dims, grow = shape.channels, len(shape.size), dice.pick([2, 4])
    if dice.flag():
        count = dice.whole(1, 2)
        if c + count * grow > MAX_CHANNELS:
            return None
        layers = nn.ModuleList(CONV[dims](c + i * grow, grow, 3, padding=1) for i in range(count))

        def run(parts: nn.ModuleList, x: Tensor) -> Tensor:
            for part in parts:
                x = torch.cat([x, part(x).relu()], 1)
            return x

        return Made(f"dense +{grow}x{count}", shape.wide(c + count * grow), run, [layers])
    first, inner, last = (
        CONV[dims](c, 2 * grow, 1),
        CONV[dims](grow, grow, 3, padding=1),
        CONV[dims](3 * grow, c, 1),
    )

    def c2f(a: nn.Module, b: nn.Module, z: nn.Module, x: Tensor) -> Tensor:
        left, right = a(x).chunk(2, 1)
        result: Tensor = z(torch.cat([left, right, right + b(right).relu()], 1))
        return result

    return Made(f"c2f {grow}", shape, c2f, [first, inner, last], sized=True)


@unary(*SPATIAL)
def shuffle_unit(dice: Dice, shape: Shape) -> Made | None:
    """Grouped convolution, channel shuffle, grouped convolution; or half of the channels pass by
    (ShuffleNet v2)."""
    c, dims = shape.channels, len(shape.size)
    if not divisors(c):
        return None
    groups = dice.pick(divisors(c))
    first = CONV[dims](c, c, 1, groups=groups)

    def shuffle(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

    if c % 2 == 0 and dice.flag():
        half = CONV[dims](c // 2, c // 2, 3, padding=1)

        def run(f: nn.Module, x: Tensor) -> Tensor:
            left, right = x.chunk(2, 1)
            return shuffle(torch.cat([left, f(right).relu()], 1))

        return Made(f"shuffle v2 g{groups}", shape, run, [half], sized=True)
    second = CONV[dims](c, c, 3, padding=1, groups=dice.pick([groups, c]))
    return Made(
        f"shuffle g{groups} {second.groups}",
        shape,
        lambda f, g, x: x + g(shuffle(f(x).relu())),
        [first, second],
        sized=True,
    )


@unary("image", "series")
def pyramid(dice: Dice, shape: Shape) -> Made | None:
    """Down, up, and joined with what was there before: by addition (FPN), or side by side
    (U-Net)."""
    c, dims, middle = shape.channels, len(shape.size), width(dice)
    if any(s % 2 for s in shape.size):
        return None
    layer = CONV[dims]
    down, up = layer(c, middle, 3, 2, 1), TRANSPOSED[dims](middle, c, 2, 2)
    if dice.flag():
        lateral, top, out = (
            layer(c, middle, 1),
            layer(middle, middle, 1),
            layer(middle, c, 3, padding=1),
        )

        def fpn(d: nn.Module, a: nn.Module, b: nn.Module, z: nn.Module, x: Tensor) -> Tensor:
            """The last layer serves both levels, as in RetinaNet's heads."""
            small = b(d(x).relu())
            large = a(x) + F.interpolate(small, scale_factor=2, mode="nearest")
            result: Tensor = z(large) + F.interpolate(
                z(small), size=large.shape[2:], mode="nearest"
            )
            return result

        return Made(f"fpn {middle}", shape, fpn, [down, lateral, top, out])
    last = layer(2 * c, c, 1)
    return Made(
        f"unet {middle}",
        shape,
        lambda d, u, z, x: z(torch.cat([x, u(d(x).relu())], 1)),
        [down, up, last],
    )
