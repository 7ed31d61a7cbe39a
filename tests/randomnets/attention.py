"""Attention in every form: how queries, keys and values are made, how they meet, and what is done
in between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randomnets.base import Dice, Free, Held, Made, Shape, unary, width

MAX_TOKENS = 64
SOURCES = ("3hd", "h3d", "hd3", "chunk", "split", "separate", "separate", "kv")
CORES = (
    "sdpa",
    "sdpa scaled",
    "causal",
    "mask",
    "manual",
    "einsum",
    "linear",
    "cosine",
    "sigmoid",
    "between channels",
)
SHARED = ("all", "all", "interleave", "expand", "flag")
ROTARY = ("no", "no", "no", "halves", "pairs")


class Attention(nn.Module):
    """Drawn from all forms. ``forward(x, y)``: queries of ``x``, keys and values of ``y``; tokens
    last but one."""

    def __init__(self, dice: Dice, channels: int, context: int, outs: int, own: bool) -> None:
        super().__init__()
        self.heads, self.dim = dice.pick([1, 2, 3]), dice.pick([2, 4, 4])
        self.value_dim = dice.pick([self.dim, self.dim, 3])
        self.source = dice.pick(SOURCES if own else ("separate", "kv"))
        self.core, self.rotary = dice.pick(CORES), dice.pick(ROTARY)
        self.shared = dice.pick(SHARED) if self.source == "separate" and self.heads > 1 else "all"
        self.merged = dice.pick(["flatten", "reshape", "einsum"])
        if self.core == "between channels" and (self.shared == "flag" or not own):
            self.core = "manual"
        if self.source != "separate" or self.core == "between channels":
            self.value_dim = self.dim
        qk, bias = self.heads * self.dim, dice.flag()
        if self.source in ("3hd", "h3d", "hd3", "chunk", "split"):
            self.qkv = nn.Linear(channels, 3 * qk, bias=bias)
        else:
            groups = self.heads if self.shared == "all" else 1
            self.query = nn.Linear(channels, qk, bias=bias)
            if self.source == "kv":
                self.both = nn.Linear(context, 2 * qk, bias=bias)
            else:
                self.key = nn.Linear(context, groups * self.dim, bias=dice.flag())
                self.value = nn.Linear(context, groups * self.value_dim, bias=bias)
        self.norm = dice.pick(["no", "no", "layer", "rms", "l2"])
        if self.norm in ("layer", "rms"):
            kind = nn.LayerNorm if self.norm == "layer" else nn.RMSNorm
            self.norm_q, self.norm_k = kind(self.dim), kind(self.dim)
        self.talk = (
            nn.Linear(self.heads, self.heads)
            if dice.whole(0, 7) == 0 and self.core == "manual"
            else None
        )
        self.gate = nn.Linear(channels, self.heads) if dice.whole(0, 7) == 0 else None
        if self.merged == "einsum":
            self.out = Free(self.heads, self.value_dim, outs, scale=0.5)
        else:
            self.proj = nn.Linear(self.heads * self.value_dim, outs, bias=dice.flag())
        self.temperature = nn.Parameter(torch.ones(self.heads, 1, 1))

    @property
    def sized(self) -> bool:
        return (
            self.source in ("split", "chunk", "kv")
            or self.core in ("mask", "sdpa")
            or self.merged == "reshape"
            or self.rotary != "no"
        )

    def __repr__(self) -> str:
        words = [
            self.source,
            self.core,
            self.shared,
            f"rotary {self.rotary}",
            f"norm {self.norm}",
            self.merged,
        ]
        words += ["talking"] * (self.talk is not None) + ["gated"] * (self.gate is not None)
        return f"attention({self.heads} x {self.dim}/{self.value_dim}, {', '.join(words)})"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = self.parts(x, y)
        if self.norm in ("layer", "rms"):
            q, k = self.norm_q(q), self.norm_k(k)
        elif self.norm == "l2":
            q, k = F.normalize(q, dim=-1, eps=1e-3), F.normalize(k, dim=-1, eps=1e-3)
        if self.rotary != "no":
            q, k = rotate(q, self.rotary), rotate(k, self.rotary)
        if self.shared == "interleave":
            k, v = k.repeat_interleave(self.heads, 1), v.repeat_interleave(self.heads, 1)
        elif self.shared == "expand":
            k, v = (z[:, :, None].expand(-1, -1, self.heads, -1, -1).flatten(1, 2) for z in (k, v))
        z = self.meet(q, k, v)
        if self.gate is not None:
            z = z * self.gate(x).sigmoid().transpose(1, 2).unsqueeze(-1)
        if self.merged == "einsum":
            return torch.einsum("bhnd,hdc->bnc", z, self.out.weight)
        z = z.transpose(1, 2)
        result: Tensor = self.proj(
            z.flatten(2)
            if self.merged == "flatten"
            else z.reshape(*x.shape[:2], self.heads * self.value_dim)
        )
        return result

    def parts(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, tokens, channels)."""
        h = self.heads
        if self.source in ("3hd", "h3d", "hd3"):
            sizes = {"3hd": (3, h, -1), "h3d": (h, 3, -1), "hd3": (h, -1, 3)}[self.source]
            order = {"3hd": (2, 0, 3, 1, 4), "h3d": (3, 0, 2, 1, 4), "hd3": (4, 0, 2, 1, 3)}[
                self.source
            ]
            q, k, v = self.qkv(x).unflatten(-1, sizes).permute(order).unbind(0)
            return q, k, v
        if self.source == "chunk":
            pieces = self.qkv(x).chunk(3, -1)
        elif self.source == "split":
            pieces = self.qkv(x).split([h * self.dim] * 3, dim=2)
        elif self.source == "kv":
            pieces = (self.query(x), *self.both(y).chunk(2, -1))
        else:
            groups = h if self.shared == "all" else 1
            return (
                self.query(x).unflatten(-1, (h, -1)).transpose(1, 2),
                self.key(y).unflatten(-1, (groups, -1)).transpose(1, 2),
                self.value(y).unflatten(-1, (groups, -1)).transpose(1, 2),
            )
        q, k, v = (piece.unflatten(-1, (h, -1)).transpose(1, 2) for piece in pieces)
        return q, k, v

    def meet(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = self.shared == "flag"
        if self.core in ("sdpa", "sdpa scaled", "causal", "mask"):
            mask = (
                torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(1)
                if self.core == "mask"
                else None
            )
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                mask,
                is_causal=self.core == "causal",
                scale=None if self.core in ("sdpa", "mask") else 0.4,
                enable_gqa=grouped,
            )
        if self.core == "linear":
            context = k.softmax(-2).mT @ v
            return q.softmax(-1) @ context
        if self.core == "between channels":
            return ((q.mT @ k * self.temperature / q.shape[-2]).softmax(-1) @ v.mT).mT
        if self.core == "cosine":
            q, k = F.normalize(q, dim=-1, eps=1e-2), F.normalize(k, dim=-1, eps=1e-2)
        if self.core == "einsum":
            if grouped:
                k, v = (
                    k.expand(q.shape[0], self.heads, -1, -1),
                    v.expand(q.shape[0], self.heads, -1, -1),
                )
            scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            return torch.einsum("bhij,bhjd->bhid", scores, v)
        scores = q @ k.transpose(-2, -1) * self.temperature / 2
        if self.talk is not None:
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (scores.sigmoid() / 4 if self.core == "sigmoid" else scores.softmax(dim=-1)) @ v


def rotate(x: Tensor, form: str) -> Tensor:
    """Rotary embedding: of the two halves of a head, or of pairs of neighbours."""
    n, pairs = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(n).to(x)[:, None] / (1 + torch.arange(pairs).to(x))
    cos, sin = angle.cos(), angle.sin()
    if form == "halves":
        left, right = x.chunk(2, -1)
        return x * torch.cat([cos, cos], -1) + torch.cat([-right, left], -1) * torch.cat(
            [sin, sin], -1
        )
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


@unary("tokens", times=5)
def self_attention(dice: Dice, shape: Shape) -> Made | None:
    if shape.size[0] > MAX_TOKENS:
        return None
    c, residual = shape.channels, dice.flag()
    outs = c if residual else width(dice)
    layer = Attention(dice, c, c, outs, own=True)
    norm = nn.LayerNorm(c) if dice.flag() else nn.Identity()
    if residual:
        return Made(
            f"x + {layer}",
            shape,
            lambda n, m, x: x + m(y := n(x), y),
            [norm, layer],
            layer.sized,
            True,
        )
    return Made(
        f"{layer}",
        shape.wide(outs),
        lambda n, m, x: m(y := n(x), y),
        [norm, layer],
        layer.sized,
        True,
    )


@unary("tokens")
def builtin(dice: Dice, shape: Shape) -> Made | None:
    """torch's own modules."""
    c, n = shape.channels, shape.size[0]
    heads = dice.pick([h for h in (1, 2, 4) if c % h == 0])
    if n > MAX_TOKENS:
        return None
    first = dice.flag()
    kind = dice.pick(["attention", "attention", "encoder"])
    if kind == "encoder":
        layer: nn.Module = nn.TransformerEncoderLayer(
            c, heads, 8, 0.1, batch_first=True, norm_first=dice.flag()
        )
        return Made(f"encoder layer {heads}", shape, lambda m, x: m(x), [layer], True, True)
    layer = nn.MultiheadAttention(
        c, heads, batch_first=first, bias=dice.flag(), add_zero_attn=dice.whole(0, 5) == 0
    )
    weights = dice.flag()

    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = x if first else x.transpose(0, 1)
        z: Tensor = m(y, y, y, need_weights=weights)[0]
        return z if first else z.transpose(0, 1)

    return Made(
        f"nn attention {heads} first={first} weights={weights}", shape, run, [layer], True, True
    )


@unary("image", times=2)
def windows(dice: Dice, shape: Shape) -> Made | None:
    """Attention within windows, shifted or not, with a table of relative places (Swin)."""
    c, (h, w) = shape.channels, shape.size
    if h % 2 or w % 2 or h * w > MAX_TOKENS:
        return None
    heads, d, shift = dice.pick([1, 2]), dice.pick([2, 4]), dice.flag()
    qkv, proj, table = nn.Linear(c, 3 * heads * d), nn.Linear(heads * d, c), Free(9, heads)
    steps = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
    place = (
        ((steps[:, :, None] - steps[:, None, :]) + 1)
        .mul(torch.tensor([3, 1])[:, None, None])
        .sum(0)
    )
    reshape: Callable[[Tensor], Tensor] = (
        (lambda y: y.reshape(-1, 4, 3, heads, d))
        if dice.flag()
        else (lambda y: y.unflatten(-1, (3, heads, -1)))
    )

    def run(m: nn.Module, p: nn.Module, t: Free, i: Held, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        y = torch.roll(y, (-1, -1), (1, 2)) if shift else y
        y = (
            y.reshape(-1, h // 2, 2, w // 2, 2, y.shape[-1])
            .permute(0, 1, 3, 2, 4, 5)
            .flatten(0, 2)
            .flatten(1, 2)
        )
        q, k, v = reshape(m(y)).permute(2, 0, 3, 1, 4)
        bias = t.weight[i.constant.reshape(-1)].reshape(4, 4, -1).permute(2, 0, 1)
        y = p(((q * 0.5 @ k.mT) + bias[None]).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
        y = (
            y.reshape(-1, h // 2, w // 2, 2, 2, y.shape[-1])
            .permute(0, 1, 3, 2, 4, 5)
            .flatten(3, 4)
            .flatten(1, 2)
        )
        y = torch.roll(y, (1, 1), (1, 2)) if shift else y
        return x + y.reshape(-1, h, w, y.shape[-1]).permute(0, 3, 1, 2)

    parts = [qkv, proj, table, Held(place)]
    return Made(f"windows {heads} x {d} shift={shift}", shape, run, parts, sized=True, product=True)


@unary("image", times=2)
def maps(dice: Dice, shape: Shape) -> Made | None:
    """Attention made by convolutions (MobileViT, EfficientViT, XCiT): over places, or over the
    channels of a head."""
    c, (h, w) = shape.channels, shape.size
    if h * w > MAX_TOKENS:
        return None
    heads, d, crossed = dice.pick([1, 2, 3]), dice.pick([2, 4]), dice.flag()
    qkv, proj = nn.Conv2d(c, 3 * heads * d, 1, bias=dice.flag()), nn.Conv2d(heads * d, c, 1)
    heat = Free(heads, 1, 1)
    written = dice.flag()

    def run(m: nn.Module, p: nn.Module, t: Free, x: Tensor) -> Tensor:
        y = m(x)
        if written:
            q, k, v = y.reshape(-1, 3, heads, d, h * w).unbind(1)
        else:
            q, k, v = (z.unflatten(1, (heads, -1)).flatten(3) for z in y.chunk(3, 1))
        if crossed:
            q, k = F.normalize(q, dim=-1, eps=1e-3), F.normalize(k, dim=-1, eps=1e-3)
            z = (q @ k.mT * t.weight).softmax(-1) @ v
        else:
            z = v @ (q.mT @ k * t.weight).softmax(-1).mT
        result: Tensor = p(
            z.reshape(-1, heads * d, h, w) if written else z.flatten(1, 2).unflatten(2, (h, w))
        )
        return x + result

    text = f"map attention {heads} x {d} crossed={crossed}"
    return Made(text, shape, run, [qkv, proj, heat], sized=True, product=True)
