"""Token networks but for attention: MLPs, mixers, class tokens, embeddings of places, merges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randomnets.base import Dice, Free, Held, Made, Shape, divisors, unary, width


@unary("tokens", "vector", times=3)
def linear(dice: Dice, shape: Shape) -> Made:
    outs = dice.pick([1, *[width(dice)] * 6])
    layer = nn.Linear(shape.channels, outs, bias=dice.flag())
    return Made(f"{layer}", shape.wide(outs), lambda m, x: m(x), [layer])


@unary("tokens", "vector", times=3)
def mlp(dice: Dice, shape: Shape) -> Made:
    """Two layers and an activation, a gated unit of two layers or of the halves of one, with or
    without norm."""
    c, middle = shape.channels, width(dice)
    kind = dice.pick(["plain", "swiglu", "fused", "geglu"])
    norm = dice.pick([nn.LayerNorm, nn.RMSNorm])(c) if dice.flag() else nn.Identity()
    last = nn.Linear(middle, c, bias=dice.flag())
    bias = dice.flag()
    if kind == "plain":
        return Made(
            f"mlp {middle}",
            shape,
            lambda n, a, z, x: x + z(F.gelu(a(n(x)))),
            [norm, nn.Linear(c, middle, bias), last],
        )
    if kind == "swiglu":
        return Made(
            f"swiglu {middle}",
            shape,
            lambda n, a, b, z, x: x + z(F.silu(a(n(x))) * b(n(x))),
            [norm, nn.Linear(c, middle, bias), nn.Linear(c, middle, bias), last],
        )
    halves = [norm, nn.Linear(c, 2 * middle, bias), last]
    if kind == "fused":
        return Made(
            f"fused swiglu {middle}",
            shape,
            lambda n, a, z, x: x + z(F.silu((p := a(n(x)).chunk(2, -1))[0]) * p[1]),
            halves,
        )
    return Made(
        f"geglu {middle}",
        shape,
        lambda n, a, z, x: x + z((p := a(n(x)).split(middle, -1))[1] * F.gelu(p[0])),
        halves,
        sized=True,
    )


@unary("tokens")
def mix(dice: Dice, shape: Shape) -> Made:
    """Layers along the tokens (MLP-Mixer), a gate along them (gMLP), a depthwise convolution
    (ConvMixer of tokens)."""
    n, c = shape.size[0], shape.channels
    kind = dice.pick(["mixer", "gate", "convolution", "pool"])
    if kind == "mixer":
        return Made(
            "mixer",
            shape,
            lambda a, b, x: x + b(F.gelu(a(x.mT))).mT,
            [nn.Linear(n, 5), nn.Linear(5, n)],
        )
    if kind == "gate":
        return Made(
            "spatial gating",
            shape,
            lambda a, x: x * a(x.transpose(1, 2)).transpose(1, 2),
            [nn.Linear(n, n)],
        )
    if kind == "pool":
        return Made("pool former", shape, lambda x: F.avg_pool1d(x.mT, 3, 1, 1).mT - x)
    return Made(
        "token convolution",
        shape,
        lambda m, x: x + m(x.transpose(1, 2)).transpose(1, 2),
        [nn.Conv1d(c, c, 3, padding=1, groups=dice.pick([1, c, *divisors(c)]))],
    )


@unary("tokens", times=2)
def places(dice: Dice, shape: Shape) -> Made:
    """Embeddings of places, class tokens, registers."""
    n, c = shape.size[0], shape.channels
    kind = dice.pick(
        [
            "parameter",
            "embedding",
            "class token",
            "sinus",
            "registers",
            "segment",
            "forget first",
            "empty prefix",
        ]
    )
    if kind == "forget first" and n < 2:
        kind = "parameter"
    more = shape.sized(n + 1)
    steps = Held(torch.arange(n))
    wave = Held((torch.arange(n)[:, None] / 3 + torch.arange(c)).sin())
    kinds: dict[str, tuple[Shape, Callable[..., Tensor], Sequence[nn.Module], bool]] = {
        "parameter": (shape, lambda p, x: x + p.weight, [Free(1, n, c)], False),
        "embedding": (shape, lambda m, x: x + m(torch.arange(n)), [nn.Embedding(n, c)], False),
        "class token": (
            more,
            lambda p, x: torch.cat([p.weight.expand(x.shape[0], -1, -1), x], 1),
            [Free(1, 1, c)],
            False,
        ),
        "sinus": (shape, lambda p, x: x + p.constant, [wave], True),
        "registers": (
            more,
            lambda p, x: torch.cat([x, p.weight.repeat(x.shape[0], 1, 1)], 1),
            [Free(1, 1, c)],
            False,
        ),
        "segment": (
            shape,
            lambda m, p, x: x + m((p.constant % 2)[None].expand(x.shape[0], -1)),
            [nn.Embedding(2, c), steps],
            False,
        ),
        "empty prefix": (shape, lambda x: torch.cat([x[:, :0], x], 1), [], False),
        "forget first": (shape.sized(n - 1), lambda x: x[:, 1:], [], False),
    }
    out, run, parts, sized = kinds[kind]
    return Made(f"token {kind}", out, run, parts, sized=sized)


@unary("tokens")
def merge(dice: Dice, shape: Shape) -> Made | None:
    """Neighbours joined into wider tokens (Swin), or strided, pooled, repeated, rolled."""
    n, c = shape.size[0], shape.channels
    kind = dice.pick(["merge", "merge by view", "strided", "doubled", "rolled", "sorted"])
    if (kind in ("merge", "merge by view", "strided") and n % 2) or (kind == "doubled" and n > 32):
        return None
    if kind.startswith("merge"):
        layer = nn.Linear(2 * c, width(dice), bias=False)
        after = Shape("tokens", layer.out_features, (n // 2,))
        norm = nn.LayerNorm(2 * c) if dice.flag() else nn.Identity()
        if kind == "merge":
            return Made(
                "merge",
                after,
                lambda m, z, x: z(m(torch.cat([x[:, ::2], x[:, 1::2]], -1))),
                [norm, layer],
            )
        return Made(
            "merge by view",
            after,
            lambda m, z, x: z(m(x.reshape(x.shape[0], n // 2, 2 * c))),
            [norm, layer],
            sized=True,
        )
    size, run = {
        "strided": (n // 2, lambda x: x[:, ::2] - x[:, 1::2]),
        "doubled": (2 * n, lambda x: x.repeat_interleave(2, 1)),
        "rolled": (n, lambda x: x.roll(1, 1) + x),
        "sorted": (n, lambda x: x.sort(1).values),
    }[kind]
    return Made(f"tokens {kind}", shape.sized(size), run)


@unary("tokens")
def experts(dice: Dice, shape: Shape) -> Made:
    """A mixture of experts, all computed, weighted by a router's softmax; the weights stand in one
    tensor each."""
    c, middle = shape.channels, width(dice)
    router, first, second = (
        nn.Linear(c, 2),
        Free(2, c, middle, scale=0.3),
        Free(2, middle, c, scale=0.3),
    )

    def run(r: nn.Module, a: Free, b: Free, x: Tensor) -> Tensor:
        hidden = torch.einsum("bnc,ecm->benm", x, a.weight).relu()
        outs = torch.einsum("benm,emc->benc", hidden, b.weight)
        return (outs * r(x).softmax(-1).permute(0, 2, 1).unsqueeze(-1)).sum(1)

    return Made(f"experts {middle}", shape, run, [router, first, second])
