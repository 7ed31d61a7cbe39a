"""Gates: a small network of one tensor scales its channels or places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from randomnets.base import CONV, SPATIAL, Dice, Free, Made, Shape, unary, width


@unary(*SPATIAL, times=2)
def excite(dice: Dice, shape: Shape) -> Made:
    """Squeeze and excitation, by linear layers or by convolutions of single places."""
    c, dims, middle = shape.channels, len(shape.size), dice.pick([2, 4])
    spatial = tuple(range(2, 2 + dims))
    if dice.flag():
        parts = [nn.Linear(c, middle), nn.Linear(middle, c)]
        return Made(
            f"excite {middle}",
            shape,
            lambda a, b, x: (
                x
                * shape.along(torch.ones(1).to(x))
                * b(a(x.mean(spatial)).relu()).sigmoid()[(..., *[None] * dims)]
            ),
            parts,
        )
    layers = [CONV[dims](c, middle, 1), CONV[dims](middle, c, 1)]
    return Made(
        f"excite by convolution {middle}",
        shape,
        lambda a, b, x: x * b(a(x.mean(spatial, keepdim=True)).relu()).sigmoid(),
        layers,
    )


@unary("image", "series")
def select_kernel(dice: Dice, shape: Shape) -> Made:
    """Branches with different kernels, mixed by a softmax over branches for each channel (SKNet,
    ResNeSt)."""
    c, dims, outs = shape.channels, len(shape.size), width(dice)
    branches = [CONV[dims](c, outs, 3, padding=1), CONV[dims](c, outs, 3, padding=2, dilation=2)]
    squeeze, spread = nn.Linear(outs, 4), nn.Linear(4, 2 * outs)
    spatial = tuple(range(2, 2 + dims))
    written = dice.flag()

    def run(a: nn.Module, b: nn.Module, f: nn.Module, g: nn.Module, x: Tensor) -> Tensor:
        maps = torch.stack([a(x), b(x)], 1)
        scores = g(f(maps.sum(1).mean(spatial)).relu())
        weights = (
            scores.reshape(-1, 2, outs) if written else scores.unflatten(1, (2, -1))
        ).softmax(1)
        result: Tensor = (maps * weights[(..., *[None] * dims)]).sum(1)
        return result

    return Made(
        f"select kernel {outs}", shape.wide(outs), run, [*branches, squeeze, spread], sized=written
    )


@unary("image", "series")
def spatial_gate(dice: Dice, shape: Shape) -> Made:
    """Mean and maximum over channels, a convolution of the two, a gate for each place (CBAM)."""
    dims = len(shape.size)
    layer = CONV[dims](2, 1, 3, padding=1)
    return Made(
        "spatial gate",
        shape,
        lambda m, x: (
            x * m(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        ),
        [layer],
    )


@unary("image", "series")
def neighbour_gate(dice: Dice, shape: Shape) -> Made:
    """A convolution along channels (ECA), or a simple gate of two halves (NAFNet)."""
    c, dims = shape.channels, len(shape.size)
    spatial = tuple(range(2, 2 + dims))
    if dice.flag():
        return Made(
            "eca",
            shape,
            lambda m, x: (
                x * m(x.mean(spatial).unsqueeze(1)).sigmoid().squeeze(1)[(..., *[None] * dims)]
            ),
            [nn.Conv1d(1, 1, 3, padding=1)],
        )
    layers = [CONV[dims](c, 2 * c, 1), CONV[dims](c, c, 1)]

    def run(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        left, right = a(x).chunk(2, 1)
        result: Tensor = x + b(left * right)
        return result

    return Made("simple gate", shape, run, layers)


@unary("image")
def channel_products(dice: Dice, shape: Shape) -> Made:
    """Channels attend to channels (a Gram matrix), or places to places (non-local)."""
    c, middle = shape.channels, dice.pick([2, 4, 6])
    h, w = shape.size
    if dice.flag():
        return Made(
            "gram",
            shape,
            lambda p, x: (
                x
                + p.weight[0]
                * (((y := x.flatten(2)) @ y.mT / 8).softmax(-1) @ y).unflatten(2, (h, w))
            ),
            [Free(1)],
            product=True,
        )
    layers = [nn.Conv2d(c, middle, 1), nn.Conv2d(c, middle, 1), nn.Conv2d(c, c, 1)]

    def run(q: nn.Module, k: nn.Module, v: nn.Module, x: Tensor) -> Tensor:
        scores = torch.bmm(q(x).flatten(2).mT, k(x).flatten(2)).softmax(-1)
        return x + torch.bmm(v(x).flatten(2), scores.mT).unflatten(2, (h, w))

    return Made(f"non-local {middle}", shape, run, layers, product=True)


@unary("image")
def competing_scales(dice: Dice, shape: Shape) -> Made:
    """An inverted residual with its gate inside, as MobileNet v3 and EfficientNet have it."""
    c, middle = shape.channels, dice.pick([8, 12, 16])
    grow, deep = (
        nn.Conv2d(c, middle, 1, bias=False),
        nn.Conv2d(middle, middle, 3, padding=1, groups=middle),
    )
    norm, squeeze, spread, last = (
        nn.BatchNorm2d(middle),
        nn.Conv2d(middle, 3, 1),
        nn.Conv2d(3, middle, 1),
        nn.Conv2d(middle, c, 1),
    )

    def run(
        g: nn.Module,
        d: nn.Module,
        n: nn.Module,
        a: nn.Module,
        b: nn.Module,
        z: nn.Module,
        x: Tensor,
    ) -> Tensor:
        y = n(d(g(x).relu())).relu()
        y = y * b(a(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        result: Tensor = z(y) + x
        return result

    return Made(
        f"inverted residual {middle}", shape, run, [grow, deep, norm, squeeze, spread, last]
    )
