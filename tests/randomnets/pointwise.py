"""Element by element: activations, constants and parameters per channel, gates, in-place edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randomnets.base import KINDS, SPATIAL, Dice, Free, Made, Shape, unary


@unary(*KINDS, times=2)
def activation(dice: Dice, shape: Shape) -> Made:
    name = dice.pick(
        [
            "relu",
            "sigmoid",
            "gelu",
            "silu",
            "hardswish",
            "softplus",
            "clamp",
            "where",
            "leaky",
            "elu",
            "mish",
            "dropout",
            "exp",
            "half",
        ]
    )
    ways: dict[str, Callable[..., Tensor]] = {
        "where": lambda x: torch.where(x > 0, x, 0.1 * x),
        "clamp": lambda x: x.clamp(-1, 1),
        "leaky": lambda x: F.leaky_relu(x, 0.2),
        "dropout": lambda m, x: m(x),
        "exp": lambda x: (-x.abs()).exp(),
        "half": lambda x: x * 0.5 + torch.tensor(0.25),
    }
    run = ways.get(name, getattr(F, name, None) or torch.sigmoid)
    return Made(name, shape, run, [nn.Dropout(0.3)] if name == "dropout" else [])


@unary(*SPATIAL)
def prelu(dice: Dice, shape: Shape) -> Made:
    return Made("prelu", shape, lambda m, x: m(x), [nn.PReLU(dice.pick([1, shape.channels]))])


@unary(*KINDS, times=2)
def per_channel(dice: Dice, shape: Shape) -> Made:
    """A parameter, a buffer or a constant for each channel."""
    c = shape.channels
    name = dice.pick(
        ["scale", "shift", "buffer", "constant", "layer scale", "mask", "both", "arange"]
    )
    constant = torch.linspace(-1, 1, c)
    ways: dict[str, Callable[..., Tensor]] = {
        "scale": lambda p, x: x * shape.along(p.weight),
        "shift": lambda p, x: shape.along(p.weight) + x,
        "buffer": lambda p, x: (x - shape.along(p.weight)) / 2,
        "constant": lambda p, x: x + shape.along(constant.to(x)),
        "layer scale": lambda p, x: x + shape.along(p.weight).expand(x.shape) * x.tanh(),
        "mask": lambda p, x: x * (shape.along(p.weight) > 0),
        "both": lambda p, x: torch.addcmul(
            x, shape.along(p.weight), shape.along(p.weight).sigmoid()
        ),
        "arange": lambda p, x: x + shape.along(torch.arange(x.shape[shape.axis]).to(x) / 8),
    }
    run = ways[name]
    return Made(
        f"{name} per channel",
        shape,
        run,
        [Free(c, buffer=name in ("buffer", "mask"))],
        sized=name in ("constant", "arange"),
    )


@unary(*KINDS)
def per_place(dice: Dice, shape: Shape) -> Made:
    """A parameter for each place, for each channel and place, or one number."""
    name = dice.pick(["place", "all", "one"])
    sizes = {
        "place": shape.wide(1).full(1),
        "all": shape.full(1),
        "one": (1,),
    }[name]
    if dice.flag():
        return Made(f"parameter per {name}", shape, lambda p, x: x + p.weight, [Free(*sizes)])
    return Made(f"parameter per {name} times", shape, lambda p, x: x * p.weight, [Free(*sizes)])


@unary(*KINDS)
def statistic(dice: Dice, shape: Shape) -> Made:
    """Apply one statistic over channels to all of them."""
    axis, name = (
        shape.axis,
        dice.pick(["gate", "mean", "max", "sum", "std", "logsumexp", "cumsum", "first"]),
    )
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "gate": lambda x: x * x.amax(axis, keepdim=True).sigmoid().expand(x.shape),
        "mean": lambda x: x - x.mean(axis, keepdim=True),
        "max": lambda x: x - x.max(axis, keepdim=True).values,
        "sum": lambda x: x + x.sum(axis).unsqueeze(axis).tanh(),
        "std": lambda x: x / (1 + x.std(axis, keepdim=True, correction=0)),
        "logsumexp": lambda x: x - torch.logsumexp(x, axis, keepdim=True),
        "cumsum": lambda x: x.cumsum(axis) / 4,
        "first": lambda x: x - x.narrow(axis, 0, 1),
    }
    run = ways[name]
    return Made(f"{name} over channels", shape, run, sized=name == "first")


@unary(*KINDS)
def in_place(dice: Dice, shape: Shape) -> Made:
    """Edits of a tensor that is read before and after, through views or as a whole."""
    axis, c = shape.axis, shape.channels
    k = dice.whole(1, c)
    name = dice.pick(["relu", "part", "view", "copy", "mask", "fill", "slots", "chain"])

    def part(x: Tensor) -> Tensor:
        y = x * 2
        y.narrow(axis, 0, k).mul_(0.5).add_(1)
        return y

    def view(x: Tensor) -> Tensor:
        y = -x
        z = y.sin()
        y.flatten().add_(0.1)
        return y + z

    def copy(x: Tensor) -> Tensor:
        y = x.clone()
        y.narrow(axis, 0, k).copy_(x.narrow(axis, c - k, k))
        return y

    def slots(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :1] = x[:, :1].relu()
        y[:, 1:] += x[:, 1:]
        return y

    def chain(x: Tensor) -> Tensor:
        y = x + 1
        z = y.mul_(2).sub_(x)
        y.clamp_(max=3)
        return z * y.sigmoid()

    run: dict[str, Any] = {
        "relu": lambda x: (x + 0.1).relu_().mul_(x),
        "part": part,
        "view": view,
        "copy": copy,
        "mask": lambda x: x.clone().masked_fill_(x < -0.5, 0.25),
        "fill": lambda x: torch.empty_like(x).fill_(0.5).mul_(x),
        "slots": slots,
        "chain": chain,
    }
    return Made(f"in place {name} {k}", shape, run[name], sized=name in ("part", "copy", "slots"))
