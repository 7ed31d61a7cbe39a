"""Norms, with and without weights, over every set of axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randomnets.base import (
    BATCH_NORM,
    INSTANCE_NORM,
    KINDS,
    SPATIAL,
    Dice,
    Free,
    Made,
    Shape,
    divisors,
    unary,
)


class FrozenBatchNorm(nn.Module):
    """Statistics and scales in buffers, as detection networks keep them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = self.weight.reshape(shape) * (self.running_var.reshape(shape).abs() + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale)


@unary(*SPATIAL, times=3)
def norm(dice: Dice, shape: Shape) -> Made | None:
    c, dims = shape.channels, len(shape.size)
    kind = dice.pick(
        ["batch", "batch", "frozen", "group", "instance", "all", "bare batch", "local"]
    )
    if kind in ("instance", "all") and shape.positions < 3:
        return None
    if kind == "group" and shape.positions == 1 and not divisors(c):
        return None  # torch refuses a group of a single number
    layers: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: BATCH_NORM[dims](c),
        "frozen": lambda: FrozenBatchNorm(c),
        "group": lambda: nn.GroupNorm(
            dice.pick([1, *divisors(c), *([c] if shape.positions > 1 else [])]), c
        ),
        "instance": lambda: INSTANCE_NORM[dims](
            c, affine=dice.flag(), track_running_stats=dice.flag()
        ),
        "all": lambda: nn.LayerNorm((c, *shape.size)),
        "bare batch": lambda: BATCH_NORM[dims](c, affine=False),
        "local": lambda: nn.LocalResponseNorm(dice.pick([3, 5])),
    }
    layer = layers[kind]()
    return Made(f"{kind} norm {layer}", shape, lambda m, x: m(x), [layer])


@unary(*SPATIAL)
def layer_norm_2d(dice: Dice, shape: Shape) -> Made:
    """A layer norm over channels that do not come last: by permuting, or written out (ConvNeXt,
    NAFNet)."""
    c = shape.channels
    if dice.flag():
        return Made(
            "channels-first layer norm",
            shape,
            lambda m, x: m(x.movedim(1, -1)).movedim(-1, 1),
            [nn.LayerNorm(c)],
        )

    def run(scale: Free, shift: Free, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return shape.along(scale.weight) * ((x - mean) / (variance + 1e-2).sqrt()) + shape.along(
            shift.weight
        )

    return Made("written-out layer norm", shape, run, [Free(c), Free(c)])


@unary("tokens", times=3)
def token_norm(dice: Dice, shape: Shape) -> Made | None:
    c = shape.channels
    kind = dice.pick(["layer", "layer", "rms", "bare", "batch", "group", "written rms", "both"])
    if kind == "group" and shape.positions < 3:
        return None  # a statistic of one number, once one channel of each group is left
    if kind == "written rms":
        return Made(
            "written-out rms norm",
            shape,
            lambda p, x: p.weight * (x * (x.pow(2).mean(-1, keepdim=True) + 1e-2).rsqrt()),
            [Free(c)],
        )
    if kind == "bare":
        return Made(
            "layer norm without weights", shape, lambda x: F.layer_norm(x, x.shape[-1:]), []
        )
    layers: dict[str, Callable[[], nn.Module]] = {
        "layer": lambda: nn.LayerNorm(c, bias=dice.flag()),
        "rms": lambda: nn.RMSNorm(c, eps=1e-3),
        "batch": lambda: nn.BatchNorm1d(c),
        "group": lambda: nn.GroupNorm(dice.pick([1, *divisors(c)]), c),
        "both": lambda: nn.LayerNorm((*shape.size, c)),
    }
    layer = layers[kind]()
    if kind in ("batch", "group"):
        return Made(f"{kind} norm of tokens {layer}", shape, lambda m, x: m(x.mT).mT, [layer])
    return Made(f"{kind} norm {layer}", shape, lambda m, x: m(x), [layer])


@unary("vector")
def vector_norm(dice: Dice, shape: Shape) -> Made:
    c = shape.channels
    layer: nn.Module = dice.pick([nn.BatchNorm1d, nn.LayerNorm])(c)
    return Made(f"norm of a vector {layer}", shape, lambda m, x: m(x), [layer])


@unary(*KINDS)
def by_length(dice: Dice, shape: Shape) -> Made:
    """Divided by a norm, standardised, or normalised by a global response (ConvNeXt v2)."""
    axis = shape.axis
    name = dice.pick(
        ["l2", "l1", "standard", "global response", "largest", "softmax", "log softmax"]
    )
    spatial = tuple(a for a in range(1, shape.rank) if a != axis)
    ways: dict[str, Callable[..., Tensor]] = {
        "l2": lambda x: F.normalize(x, dim=axis, eps=1e-3),
        "l1": lambda x: x / (x.abs().sum(axis, keepdim=True) + 1.0),
        "standard": lambda x: (
            (x - x.mean(axis, keepdim=True))
            / (x.var(axis, keepdim=True, correction=0) + 1.0).sqrt()
        ),
        "global response": lambda p, q, x: (
            x + shape.along(p.weight) * (x * _response(x, spatial, axis)) + shape.along(q.weight)
        ),
        "largest": lambda x: x / (x.abs().amax(axis, keepdim=True) + 1.0),
        "softmax": lambda x: x.softmax(axis),
        "log softmax": lambda x: x.log_softmax(axis),
    }
    run = ways[name]
    parts = [Free(shape.channels), Free(shape.channels)] if name == "global response" else []
    return Made(f"{name} of channels", shape, run, parts)


def _response(x: Tensor, spatial: tuple[int, ...], axis: int) -> Tensor:
    length = (x.pow(2).sum(spatial, keepdim=True) + 1e-2).sqrt() if spatial else x.abs()
    return length / (length.mean(axis, keepdim=True) + 1e-2)
