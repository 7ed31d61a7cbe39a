"""Weights that are no plain layer's: functional, computed, parametrised, tied, shared, made by
another network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from randomnets.base import CONV, SPATIAL, Dice, Free, Made, Shape, divisors, unary, width


class Symmetric(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.5 * weight.tanh()


@unary(*SPATIAL, times=2)
def parametrised(dice: Dice, shape: Shape) -> Made:
    """Weight norm (new and old), spectral norm, a parametrisation of one's own, around a
    convolution."""
    c, dims = shape.channels, len(shape.size)
    outs = width(dice)
    layer = CONV[dims](
        c, outs, 3, padding=1, groups=dice.pick([1, 1, *(d for d in divisors(c) if outs % d == 0)])
    )
    return Made(*_wrapped(dice, layer, f"{layer}"), shape.wide(outs), lambda m, x: m(x), [layer])


def _wrapped(dice: Dice, layer: nn.Module, text: str) -> tuple[str]:
    name = dice.pick(["weight norm", "old weight norm", "spectral norm", "own", "orthogonal"])
    if name == "weight norm":
        parametrizations.weight_norm(layer, dim=dice.pick([0, 0, 1]))
    elif name == "old weight norm":
        torch.nn.utils.weight_norm(layer)
    elif name == "spectral norm":
        parametrizations.spectral_norm(layer)
    elif name == "own":
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    else:
        torch.nn.utils.spectral_norm(layer)
    return (f"{name} {text}",)


@unary("tokens", "vector")
def parametrised_linear(dice: Dice, shape: Shape) -> Made:
    layer = nn.Linear(shape.channels, width(dice))
    text = f"{layer}"
    return Made(
        *_wrapped(dice, layer, text), shape.wide(layer.out_features), lambda m, x: m(x), [layer]
    )


@unary("tokens", "vector", times=3)
def computed(dice: Dice, shape: Shape) -> Made:
    """Weights of a linear map that are computed from parameters."""
    c, outs, rank = shape.channels, width(dice), dice.pick([1, 2, 3])
    name = dice.pick(
        [
            "bare",
            "matmul",
            "einsum",
            "low rank",
            "lora",
            "masked",
            "tied",
            "centred",
            "scaled",
            "cat",
            "bilinear",
            "sliced",
            "twice",
        ]
    )
    sizes: dict[str, list[tuple[int, ...]]] = {
        "bare": [(outs, c), (outs,)],
        "matmul": [(c, outs)],
        "einsum": [(c, outs)],
        "low rank": [(outs, rank), (rank, c)],
        "lora": [(outs, c), (outs, rank), (rank, c)],
        "masked": [(outs, c), (outs, c)],
        "tied": [(outs, c)],
        "centred": [(outs, c)],
        "scaled": [(outs, c), (outs, 1)],
        "cat": [(outs - 2, c), (2, c)],
        "bilinear": [(c, c)],
        "sliced": [(outs + 2, c)],
        "twice": [(outs, c), (outs,)],
    }
    ways: dict[str, Callable[..., Tensor]] = {
        "bare": lambda p, b, x: F.linear(x, p.weight, b.weight),
        "matmul": lambda p, x: x @ p.weight,
        "einsum": lambda p, x: (
            torch.einsum("b...c,co->b...o", x, p.weight)
            if shape.kind == "vector"
            else torch.einsum("bnc,co->bno", x, p.weight)
        ),
        "low rank": lambda p, q, x: F.linear(x, p.weight @ q.weight),
        "lora": lambda p, a, b, x: (
            F.linear(x, p.weight) + 0.5 * F.linear(F.linear(x, b.weight), a.weight)
        ),
        "masked": lambda p, m, x: F.linear(x, p.weight * (m.weight > 0)),
        "tied": lambda p, x: F.linear(F.linear(x, p.weight).relu(), p.weight.t()),
        "centred": lambda p, x: F.linear(x, p.weight - p.weight.mean(1, keepdim=True)),
        "scaled": lambda p, s, x: F.linear(x, p.weight * s.weight.exp()),
        "cat": lambda p, q, x: F.linear(x, torch.cat([p.weight, q.weight])),
        "bilinear": lambda p, x: x * (x @ p.weight).tanh(),
        "sliced": lambda p, x: F.linear(x, p.weight[1:-1]),
        "twice": lambda p, b, x: (
            F.linear(x, p.weight, b.weight).relu() - F.linear(x * 0.5, p.weight)
        ),
    }
    run = ways[name]
    parts = [
        Free(*size, scale=0.4, buffer=name == "masked" and i == 1)
        for i, size in enumerate(sizes[name])
    ]
    after = shape if name in ("tied", "bilinear") else shape.wide(outs)
    return Made(
        f"{name} weight {c}->{outs}",
        after,
        run,
        parts,
        sized=name == "sliced",
        product=name == "bilinear",
    )


@unary("image", "series", times=2)
def computed_conv(dice: Dice, shape: Shape) -> Made:
    """Weights of a convolution that are computed: standardised, shared by two dilations, sums of
    two, tied."""
    c, dims, outs = shape.channels, len(shape.size), width(dice)
    call: Any = {1: F.conv1d, 2: F.conv2d}[dims]
    kernel = (3,) * dims
    name = dice.pick(["standard", "two dilations", "sum", "tied", "buffer", "branches"])
    axes = tuple(range(1, dims + 2))
    weight = Free(outs, c, *kernel, scale=0.3, buffer=name == "buffer")
    table: dict[str, tuple[Callable[..., Tensor], list[nn.Module]]] = {
        "standard": (
            lambda p, x: call(
                x,
                (p.weight - p.weight.mean(axes, keepdim=True))
                / (p.weight.var(axes, keepdim=True) + 1e-2).sqrt(),
                padding=1,
            ),
            [weight],
        ),
        "two dilations": (
            lambda p, b, x: (
                call(x, p.weight, b.weight, padding=1)
                + call(x, p.weight, b.weight, padding=2, dilation=2)
            ),
            [weight, Free(outs)],
        ),
        "sum": (
            lambda p, q, x: call(x, p.weight + F.pad(q.weight, (1, 1) * dims), padding=1),
            [weight, Free(outs, c, *[1] * dims)],
        ),
        "tied": (
            lambda p, x: call(
                call(x, p.weight, padding=1).relu(), p.weight.transpose(0, 1), padding=1
            ),
            [weight],
        ),
        "buffer": (lambda p, x: call(x, p.weight, padding=1), [weight]),
        "branches": (
            lambda p, q, x: call(x, torch.cat([p.weight, q.weight]), padding=1),
            [weight, Free(2, c, *kernel)],
        ),
    }
    run, parts = table[name]
    after = {"tied": c, "branches": outs + 2}.get(name, outs)
    return Made(f"{name} convolution {c}->{outs}", shape.wide(after), run, parts)


@unary(*SPATIAL, "tokens", "vector", times=2)
def shared(dice: Dice, shape: Shape) -> Made:
    """One module at several places: in a row, side by side, under different inputs."""
    c, dims = shape.channels, len(shape.size)
    layer: nn.Module = (
        nn.Linear(c, c) if shape.kind in ("tokens", "vector") else CONV[dims](c, c, 3, padding=1)
    )
    axis = shape.axis
    name = dice.pick(["twice", "recursive", "both halves", "siamese", "with a norm"])
    if name == "both halves" and c % 2 == 0:
        half: nn.Module = (
            nn.Linear(c // 2, 4) if shape.kind in ("tokens", "vector") else CONV[dims](c // 2, 4, 1)
        )
        return Made(
            "shared by both halves",
            shape.wide(8),
            lambda m, x: torch.cat([m(y) for y in x.chunk(2, axis)], axis),
            [half],
        )
    norm = (
        nn.PReLU(1)
        if shape.kind in ("tokens", "vector") or shape.positions < 3
        else nn.GroupNorm(1, c)
    )
    ways: dict[str, Callable[..., Tensor]] = {
        "twice": lambda m, n, x: m(m(x).relu()),
        "recursive": lambda m, n, x: x + m(x + m(x).tanh()).tanh(),
        "both halves": lambda m, n, x: m(x),
        "siamese": lambda m, n, x: (m(x) - m(-x)).abs(),
        "with a norm": lambda m, n, x: n(m(n(m(x))).relu()),
    }
    run = ways[name]
    return Made(f"shared {name}", shape, run, [layer, norm])


@unary("tokens", "image")
def dynamic(dice: Dice, shape: Shape) -> Made:
    """A network makes the weights of another for every input."""
    c, outs = shape.channels, 4
    if shape.kind == "tokens":
        make = nn.Linear(c, c * outs)
        return Made(
            "dynamic linear",
            shape.wide(outs),
            lambda m, x: torch.bmm(x, m(x.mean(1)).tanh().reshape(-1, c, outs)),
            [make],
            sized=True,
            product=True,
        )
    h, w = shape.size
    make = nn.Linear(c, 9 * c)
    return Made(
        "dynamic depthwise",
        shape,
        lambda m, x: torch.einsum(
            "bcnl,bcn->bcl",
            F.unfold(x, 3, padding=1).unflatten(1, (-1, 9)),
            m(x.mean((2, 3))).unflatten(1, (-1, 9)),
        ).unflatten(2, (h, w)),
        [make],
        product=True,
    )
