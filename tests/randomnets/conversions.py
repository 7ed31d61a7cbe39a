"""From one kind of tensor to another: images to tokens and back, series, volumes, vectors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from randomnets.base import SPATIAL, Dice, Made, Shape, unary, width


@unary("image", times=3)
def from_image(dice: Dice, shape: Shape) -> Made:
    c, (h, w) = shape.channels, shape.size
    name = dice.pick(["tokens", "tokens", "patches", "rows", "pooled", "volume", "columns"])
    if name == "patches" and h % 2 == 0 and w % 2 == 0:
        layer = nn.Conv2d(c, width(dice), 2, 2)
        return Made(
            f"patches {layer.out_channels}",
            Shape("tokens", layer.out_channels, (h * w // 4,)),
            lambda m, x: m(x).flatten(2).transpose(1, 2),
            [layer],
        )
    table: dict[str, tuple[Shape, Callable[[Tensor], Tensor]]] = {
        "tokens": (Shape("tokens", c, (h * w,)), lambda x: x.flatten(2).transpose(1, 2)),
        "patches": (Shape("tokens", c, (h * w,)), lambda x: x.permute(0, 2, 3, 1).flatten(1, 2)),
        "rows": (Shape("series", c, (w,)), lambda x: x.mean(2)),
        "pooled": (Shape("vector", c, ()), lambda x: x.mean((2, 3))),
        "volume": (Shape("volume", c, (2, h, w)), lambda x: x.unsqueeze(2).repeat(1, 1, 2, 1, 1)),
        "columns": (Shape("series", c, (h,)), lambda x: x.amax(-1)),
    }
    return Made(name, *table[name])


@unary("tokens", times=2)
def from_tokens(dice: Dice, shape: Shape) -> Made:
    n, c = shape.size[0], shape.channels
    name = dice.pick(["image", "image", "series", "pooled", "first", "column"])
    side = next(s for s in range(int(n**0.5), 0, -1) if n % s == 0)
    table: dict[str, tuple[Shape, Callable[[Tensor], Tensor]]] = {
        "image": (
            Shape("image", c, (side, n // side)),
            lambda x: x.transpose(1, 2).unflatten(2, (side, -1)),
        ),
        "series": (Shape("series", c, (n,)), lambda x: x.mT),
        "pooled": (Shape("vector", c, ()), lambda x: x.mean(1)),
        "first": (Shape("vector", c, ()), lambda x: x[:, 0]),
        "column": (Shape("image", c, (n, 1)), lambda x: x.permute(0, 2, 1)[..., None]),
    }
    return Made(f"tokens to {name}", *table[name])


@unary("series")
def from_series(dice: Dice, shape: Shape) -> Made:
    c, (n,) = shape.channels, shape.size
    name = dice.pick(["tokens", "image", "pooled"])
    table: dict[str, tuple[Shape, Callable[[Tensor], Tensor]]] = {
        "tokens": (Shape("tokens", c, (n,)), lambda x: x.mT.contiguous()),
        "image": (Shape("image", c, (1, n)), lambda x: x.unsqueeze(2)),
        "pooled": (Shape("vector", c, ()), lambda x: x.amax(2)),
    }
    return Made(f"series to {name}", *table[name])


@unary("volume", times=2)
def from_volume(dice: Dice, shape: Shape) -> Made:
    c, (d, h, w) = shape.channels, shape.size
    name = dice.pick(["image", "first", "tokens", "tall"])
    table: dict[str, tuple[Shape, Callable[[Tensor], Tensor]]] = {
        "image": (Shape("image", c, (h, w)), lambda x: x.mean(2)),
        "first": (Shape("image", c, (h, w)), lambda x: x[:, :, 0]),
        "tokens": (Shape("tokens", c, (d * h * w,)), lambda x: x.flatten(2).permute(0, 2, 1)),
        "tall": (Shape("image", c, (d * h, w)), lambda x: x.flatten(2, 3)),
    }
    return Made(f"volume to {name}", *table[name])


@unary("vector", times=2)
def from_vector(dice: Dice, shape: Shape) -> Made:
    c = shape.channels
    name = dice.pick(["token", "pixel", "generator", "spread"])
    if name == "generator":
        outs = dice.pick([4, 8])
        layer = nn.Linear(c, outs * 4)
        return Made(
            f"generator {outs}",
            Shape("image", outs, (2, 2)),
            lambda m, x: m(x).unflatten(1, (-1, 2, 2)),
            [layer],
        )
    table: dict[str, tuple[Shape, Callable[[Tensor], Tensor]]] = {
        "token": (Shape("tokens", c, (1,)), lambda x: x[:, None]),
        "pixel": (Shape("image", c, (1, 1)), lambda x: x[:, :, None, None]),
        "spread": (Shape("image", c, (2, 2)), lambda x: x[..., None, None].expand(-1, -1, 2, 2)),
    }
    return Made(f"vector to {name}", *table[name])


@unary(*SPATIAL)
def flat_head(dice: Dice, shape: Shape) -> Made | None:
    """All places of all channels into one linear layer (VGG, LeNet)."""
    if shape.positions * shape.channels > 512:
        return None
    layer = nn.Linear(shape.channels * shape.positions, width(dice))
    return Made(
        f"flat head {layer}",
        Shape("vector", layer.out_features, ()),
        lambda m, x: m(x.flatten(1)),
        [layer],
    )
