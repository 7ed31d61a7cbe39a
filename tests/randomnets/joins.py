"""Operators of two tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randomnets.attention import MAX_TOKENS, Attention
from randomnets.base import MAX_CHANNELS, SPATIAL, Dice, Made, Shape, join


@join
def elementwise(dice: Dice, a: Shape, b: Shape) -> Made | None:
    """Of two tensors of one size."""
    if a != b:
        return None
    axis, c = a.axis, a.channels
    name = dice.pick(
        [
            "add",
            "add",
            "mul",
            "max",
            "where",
            "stack",
            "swap",
            "lerp",
            "in place",
            "interleave",
            "sub",
            "stack first",
            "gate",
            "mixed",
        ]
    )
    first = dice.whole(1, c)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "add": torch.add,
        "mul": lambda x, y: x * y.tanh(),
        "max": torch.maximum,
        "where": lambda x, y: torch.where(x > y, x, y.sin()),
        "stack": lambda x, y: torch.stack([x, y], axis).amax(axis),
        "swap": lambda x, y: (
            torch.stack([x, y], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, c)
        ),
        "lerp": lambda x, y: torch.lerp(x, y, 0.3),
        "in place": lambda x, y: (x + 1).add_(y).mul_(0.5),
        "interleave": lambda x, y: torch.stack([x, y], -1).flatten(-2)[..., ::2],
        "sub": lambda x, y: x - 2 * y,
        "stack first": lambda x, y: torch.stack([x, y]).mean(0),
        "gate": lambda x, y: x * y.softmax(axis),
        "mixed": lambda x, y: torch.cat(
            [x.narrow(axis, 0, first), y.narrow(axis, first, c - first)], axis
        ),
    }
    run = ways[name]
    return Made(f"{name} {first}", a, run, sized=name in ("swap", "mixed"))


@join
def side_by_side(dice: Dice, a: Shape, b: Shape) -> Made | None:
    """Concatenated along channels; where they differ in places, pooled or repeated first."""
    if a.kind != b.kind or a.channels + b.channels > MAX_CHANNELS:
        return None
    axis, after = a.axis, a.wide(a.channels + b.channels)
    if a.size != b.size:
        if a.kind not in SPATIAL:
            return None
        return Made(
            "enlarged cat", after, lambda x, y: torch.cat([x, F.interpolate(y, x.shape[2:])], axis)
        )
    if dice.flag():
        return Made("cat", after, lambda x, y: torch.cat([x, y], axis))
    return Made(
        "cat of cats",
        a.wide(2 * a.channels + b.channels)
        if 2 * a.channels + b.channels <= MAX_CHANNELS
        else after,
        (lambda x, y: torch.cat([torch.cat([x, y], axis), x], axis))
        if 2 * a.channels + b.channels <= MAX_CHANNELS
        else (lambda x, y: torch.cat([x, y], axis)),
    )


@join
def along_places(dice: Dice, a: Shape, b: Shape) -> Made | None:
    """Concatenated along tokens or another axis of places."""
    if (
        a.kind != b.kind
        or a.channels != b.channels
        or a.kind == "vector"
        or a.size[1:] != b.size[1:]
    ):
        return None
    if a.positions + b.positions > 96:
        return None
    axis = 1 if a.kind == "tokens" else 2
    return Made(
        "cat of places",
        a.sized(a.size[0] + b.size[0], *a.size[1:]),
        lambda x, y: torch.cat([x, y], axis),
    )


@join
def modulate(dice: Dice, a: Shape, b: Shape) -> Made | None:
    """A vector scales and shifts a tensor: as it is, or through a layer (FiLM, adaptive norm)."""
    if b.kind != "vector":
        return None
    dims = len(a.size)

    def spread(y: Tensor) -> Tensor:
        return y[(slice(None), *[None] * dims)] if a.kind == "tokens" else y[(..., *[None] * dims)]

    if a.channels == b.channels and dice.flag():
        return Made("broadcast", a, lambda x, y: x * spread(y.sigmoid()) + spread(y))
    layer = nn.Linear(b.channels, 2 * a.channels)

    def film(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = m(y).chunk(2, 1)
        return x * (1 + spread(scale)) + spread(shift)

    return Made("film", a, film, [layer])


@join
def cross_attention(dice: Dice, a: Shape, b: Shape) -> Made | None:
    if a.kind != "tokens" or b.kind != "tokens" or max(a.size[0], b.size[0]) > MAX_TOKENS:
        return None
    if dice.whole(0, 2) == 0:
        heads = dice.pick([h for h in (1, 2) if a.channels % h == 0])
        layer: Any = nn.MultiheadAttention(
            a.channels, heads, batch_first=True, kdim=b.channels, vdim=b.channels
        )
        return Made(
            f"nn cross attention {heads}", a, lambda m, x, y: x + m(x, y, y)[0], [layer], True, True
        )
    layer = Attention(dice, a.channels, b.channels, a.channels, own=False)
    return Made(f"cross {layer}", a, lambda m, x, y: x + m(x, y), [layer], layer.sized, True)


@join
def products(dice: Dice, a: Shape, b: Shape) -> Made | None:
    """Activations times activations."""
    if (
        a.kind != b.kind
        or a.positions != b.positions
        or a.positions > MAX_TOKENS
        or a.channels * b.channels > 200
    ):
        return None
    if a.kind == "tokens":
        if a.channels == b.channels and dice.flag():
            return Made(
                "similarity",
                Shape("tokens", b.size[0], a.size),
                lambda x, y: (x @ y.mT / 4).softmax(-1),
                product=True,
            )
        return Made(
            "second order",
            Shape("tokens", b.channels, (a.channels,)),
            lambda x, y: torch.einsum("bnc,bnd->bcd", x, y).tanh(),
            product=True,
        )
    if a.kind == "vector":
        return (
            Made(
                "outer",
                Shape("vector", a.channels * b.channels, ()),
                lambda x, y: (x[:, :, None] * y[:, None]).flatten(1),
                product=True,
            )
            if a.channels * b.channels <= MAX_CHANNELS
            else None
        )
    if a.size != b.size:
        return None
    return Made(
        "gram of two",
        a,
        lambda x, y: ((x.flatten(2) @ y.flatten(2).mT / 8).softmax(-1) @ y.flatten(2)).unflatten(
            2, x.shape[2:]
        ),
        product=True,
    )


@join
def bilinear(dice: Dice, a: Shape, b: Shape) -> Made | None:
    """torch's bilinear layer, and a masked choice between two."""
    if (
        a.kind != b.kind
        or a.size != b.size
        or a.kind not in ("tokens", "vector")
        or a.channels * b.channels > 128
    ):
        return None
    return Made(
        "bilinear",
        a.wide(4),
        lambda m, x, y: m(x, y),
        [nn.Bilinear(a.channels, b.channels, 4)],
        product=True,
    )
