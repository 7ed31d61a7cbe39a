"""Channels cut, copied, padded, moved, and spread over several axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from randomnets.base import KINDS, MAX_CHANNELS, Dice, Held, Made, Shape, divisors, unary


@unary(*KINDS, times=3)
def cut(dice: Dice, shape: Shape) -> Made | None:
    """Pieces of the channels, and the pieces put together again."""
    c, axis = shape.channels, shape.axis
    start = dice.whole(0, c - 1)
    stop, step, at = dice.whole(start + 1, c), dice.whole(1, 3), dice.whole(1, max(1, c - 1))
    name = dice.pick(
        [
            "slice",
            "narrow",
            "chunk",
            "split",
            "swap",
            "halves",
            "drop first",
            "tensor split",
            "glu",
            "index",
        ]
    )
    if (name in ("halves", "glu") and c % 2) or (name in ("split", "swap", "drop first") and c < 2):
        return None
    place = [slice(None)] * axis
    ways: dict[str, Callable[..., Tensor]] = {
        "slice": lambda x: x[(*place, slice(start, stop, step))],
        "narrow": lambda x: x.narrow(axis, start, stop - start),
        "chunk": lambda x: x.chunk(3, axis)[-1],
        "split": lambda x: x.split([at, c - at], axis)[0].sin(),
        "swap": lambda x: torch.cat(x.split([at, c - at], axis)[::-1], axis),
        "halves": lambda x: (p := x.chunk(2, axis))[0] * p[1].sigmoid(),
        "drop first": lambda x: x[(*place, slice(1, None))],
        "tensor split": lambda x: x.tensor_split(3, axis)[0],
        "glu": lambda x: F.glu(x, axis),
        "index": lambda p, x: x.index_select(axis, p.constant),
    }
    run = ways[name]
    parts = [Held(torch.arange(c).flip(0)[start:stop])] if name == "index" else []
    outs = run(*parts, torch.zeros(shape.full(1))).shape[axis]
    sized = name not in ("halves", "glu")
    return Made(f"{name} {start}:{stop}:{step} at {at}", shape.wide(outs), run, parts, sized)


@unary(*KINDS, times=2)
def copy(dice: Dice, shape: Shape) -> Made | None:
    """More channels than there were, or the same in another order."""
    c, axis = shape.channels, shape.axis
    before, after = dice.whole(0, 3), dice.whole(0, 3)
    name = dice.pick(
        ["pad", "interleave", "repeat", "twice", "mirror", "flip", "roll", "stack", "negative pad"]
    )
    if name == "negative pad" and c < 3:
        return None
    inner = [0, 0] * (shape.rank - 1 - axis)
    side = dice.whole(0, 1)
    twice = [2 if a == axis else 1 for a in range(shape.rank)]
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "pad": lambda x: F.pad(x, (*inner, before, after)),
        "interleave": lambda x: x.repeat_interleave(2, axis),
        "repeat": lambda x: x.repeat(twice),
        "twice": lambda x: torch.cat([x, x.sin()], axis),
        "mirror": lambda x: torch.cat([x, x.flip(axis)], axis),
        "flip": lambda x: x.flip(axis),
        "roll": lambda x: x.roll(before, axis),
        "stack": lambda x: torch.stack([x, -x], axis + side).flatten(axis, axis + 1),
        "negative pad": lambda x: F.pad(x, (*inner, -1, -1)),
    }
    run = ways[name]
    outs = run(torch.zeros(shape.full(1))).shape[axis]
    if outs > MAX_CHANNELS:
        return None
    return Made(
        f"{name} {before}+{after} {side}",
        shape.wide(outs),
        run,
        sized=name in ("pad", "negative pad", "roll"),
    )


@unary(*KINDS, times=3)
def blocks(dice: Dice, shape: Shape) -> Made | None:
    """Channels spread over two axes, (n, c / n) or (c / n, n), something done there, and back."""
    c, first = shape.channels, shape.axis
    if not divisors(c):
        return None
    n = dice.pick(divisors(c))
    axis = dice.pick([first, first + 1])
    name = dice.pick(
        [
            "transpose",
            "softmax",
            "mean",
            "amax",
            "slice",
            "stride",
            "select",
            "glu",
            "unbind",
            "flip",
            "roll",
            "normalise",
            "sum of rows",
            "cumsum",
            "argmax",
            "std",
        ]
    )
    size = (n, c // n)[axis - first]
    start, step = dice.whole(0, size - 1), dice.whole(1, 2)
    stop, place = dice.whole(start + 1, size), dice.whole(0, size - 1)
    if name == "glu" and size % 2:
        return None
    taken = (*[slice(None)] * axis, slice(start, stop, step if name == "stride" else 1))
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "transpose": lambda y: y.transpose(first, first + 1),
        "softmax": lambda y: y.softmax(axis),
        "mean": lambda y: y.mean(axis),
        "amax": lambda y: y.amax(axis),
        "slice": lambda y: y[taken],
        "stride": lambda y: y[taken],
        "select": lambda y: y.select(axis, place),
        "glu": lambda y: F.glu(y, axis),
        "unbind": lambda y: (p := y.unbind(axis))[0] * p[-1],
        "flip": lambda y: y.flip(axis),
        "roll": lambda y: y.roll(1, axis),
        "normalise": lambda y: F.normalize(y, dim=axis, eps=1e-2),
        "sum of rows": lambda y: y + y.sum(axis, keepdim=True),
        "cumsum": lambda y: y.cumsum(axis),
        "argmax": lambda y: y * y.argmax(axis, keepdim=True),
        "std": lambda y: y / (1 + y.std(axis, keepdim=True, correction=0)),
    }
    run = ways[name]
    spread = [*shape.full(0)[:first], n, c // n, *shape.full(0)[first + 1 :]][1:]
    after = run(torch.zeros(1, *spread))
    outs = after.numel() // shape.positions
    sizes = shape.wide(outs).full(0)[1:]
    text = f"{name} in ({n}, {c // n}) axis {axis} [{start}:{stop}:{step}] {place}"
    return Made(
        text,
        shape.wide(outs),
        lambda x: run(x.reshape(-1, *spread)).reshape(-1, *sizes),
        sized=True,
    )


@unary(*KINDS)
def fold_into_batch(dice: Dice, shape: Shape) -> Made:
    """Channels or places take part in the batch for a while."""
    sizes, c = shape.full(0)[1:], shape.channels
    if shape.kind == "image" and dice.flag():
        h, w = shape.size
        return Made(
            "channels in the batch",
            shape,
            lambda x: F.avg_pool2d(x.reshape(-1, 1, h, w), 1).reshape(-1, c, h, w).sin(),
            sized=True,
        )
    if shape.kind == "tokens":
        return Made(
            "tokens in the batch",
            shape,
            lambda x: x.reshape(-1, c).softmax(-1).reshape(-1, *sizes),
            sized=True,
        )
    return Made(
        "all in one row", shape, lambda x: x.flatten(1).tanh().unflatten(1, sizes), sized=True
    )
