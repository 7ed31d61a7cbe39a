"""Whole structures, written small: gates, skips, decoders, parametrised weights, structured
outputs; each proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from nets import Net
from nets import conv as c
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

IMAGE = (2, 3, 8, 8)
TOKENS = (2, 6, 12)


# Convolutional structures


def selective_kernel() -> nn.Module:
    """SKNet: two branches, weighed against each other by a softmax."""

    def forward(s: Any, x: Tensor) -> Tensor:
        branches = torch.stack([s.small(x).relu(), s.large(x).relu()], 1)
        gate = s.up(s.down(branches.sum(1).mean((2, 3), keepdim=True)).relu())
        weights = gate.view(x.shape[0], 2, 8, 1, 1).softmax(1)
        return s.out((branches * weights).sum(1))

    return Net(
        forward, small=c(3, 8), large=c(3, 8, 5), down=c(8, 4, 1), up=c(4, 16, 1), out=c(8, 5, 1)
    )


def split_attention() -> nn.Module:
    """ResNeSt: one grouped convolution, whose halves are weighed against each other."""

    def forward(s: Any, x: Tensor) -> Tensor:
        b = x.shape[0]
        y = s.b(s.a(x).relu()).relu().reshape(b, 2, 8, 8, 8)
        gate = s.up(s.down(y.sum(1).mean((2, 3), keepdim=True)).relu())
        return s.out((y * gate.reshape(b, 2, 8, 1, 1).softmax(1)).sum(1))

    return Net(
        forward, a=c(3, 8), b=c(8, 16, groups=2), down=c(8, 4, 1), up=c(4, 16, 1), out=c(8, 5, 1)
    )


def dense_concats() -> nn.Module:
    """Every layer reads all before it, and concatenations are concatenated."""

    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        x = torch.cat([x, s.b(x.relu())], 1)
        x = torch.cat([x, s.d(x.relu())], 1)
        return s.out(torch.cat([torch.cat([x, x[:, :6]], 1), x], 1))

    return Net(forward, a=c(3, 8), b=c(8, 4), d=c(12, 4), out=c(16 + 6 + 16, 5, 1))


def unet() -> nn.Module:
    """Skips that are cropped and joined to what is upsampled."""

    def forward(s: Any, x: Tensor) -> Tensor:
        first = s.a(x).relu()
        second = s.b(F.max_pool2d(first, 2)).relu()
        deep = s.d(F.max_pool2d(second, 2)).relu()
        up = s.e(torch.cat([F.interpolate(deep, scale_factor=2), second], 1)).relu()
        return s.out(torch.cat([s.t(up)[:, :, :8, :8], first], 1))

    return Net(
        forward,
        a=c(3, 6),
        b=c(6, 8),
        d=c(8, 10),
        e=c(18, 8),
        t=nn.ConvTranspose2d(8, 4, 2, 2),
        out=c(10, 5, 1),
    )


def pyramid() -> nn.Module:
    """FPN: levels added from above, and one head for all of them."""

    def forward(s: Any, x: Tensor) -> list[Tensor]:
        low = s.a(x).relu()
        high = s.b(low).relu()
        top = s.lateral_high(high)
        levels = [s.lateral_low(low) + F.interpolate(top, size=low.shape[-2:], mode="nearest"), top]
        return [s.out(s.head(level).relu()) for level in levels]

    return Net(
        forward,
        a=c(3, 6),
        b=c(6, 8, stride=2),
        lateral_low=c(6, 10, 1),
        lateral_high=c(8, 10, 1),
        head=c(10, 7),
        out=c(7, 5, 1),
    )


# Weights that are computed, shared or tied


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


def parametrised() -> nn.Module:
    b = nn.Linear(8, 8)
    parametrize.register_parametrization(b, "weight", Symmetric())
    return Net(lambda s, x: s.out(s.b(s.a(x)).relu()), a=nn.Linear(12, 8), b=b, out=nn.Linear(8, 5))


def hooked_weight_norm() -> nn.Module:
    """The norm of old, in a hook."""
    b = torch.nn.utils.weight_norm(nn.Conv2d(8, 6, 3))
    return Net(lambda s, x: s.out(s.b(s.a(x)).relu()), a=c(3, 8), b=b, out=c(6, 5, 1))


def weight_norm_over_inputs() -> nn.Module:
    b = parametrizations.weight_norm(nn.Conv2d(8, 6, 3), dim=1)
    return Net(lambda s, x: s.out(s.b(s.a(x)).relu()), a=c(3, 8), b=b, out=c(6, 5, 1))


def tied_layers() -> nn.Module:
    """Two layers with one weight, and an autoencoder whose decoder is its encoder transposed."""
    net = Net(
        lambda s, x: s.out(F.linear(s.e(s.b(s.a(x)).relu()).relu(), s.e.weight.t())),
        a=nn.Linear(12, 8),
        b=nn.Linear(8, 8),
        e=nn.Linear(8, 6),
        out=nn.Linear(8, 5),
    )
    net.a2 = nn.Linear(8, 8)
    net.a2.weight = net.b.get_parameter("weight")
    net._forward = lambda s, x: s.out(
        F.linear(s.e(s.a2(s.b(s.a(x)).relu()).relu()).relu(), s.e.weight.t())
    )
    return net


# Transformers


class Rotary(nn.Module):
    """A decoder layer of LLaMA's kind: RMS norms, grouped queries, rotary positions, a causal mask,
    SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(12), nn.RMSNorm(12)
        self.q, self.k, self.v = (nn.Linear(12, width, bias=False) for width in (24, 12, 12))
        self.o = nn.Linear(24, 12, bias=False)
        self.gate, self.up, self.down = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        q, k, v = (m(y).view(b, n, -1, 6).transpose(1, 2) for m in (self.q, self.k, self.v))
        q, k = (t * cos + torch.cat([-t[..., 3:], t[..., :3]], -1) * sin for t in (q, k))
        k, v = (t[:, :, None].expand(b, 2, 2, n, 6).reshape(b, 4, n, 6) for t in (k, v))
        y = (
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
            .transpose(1, 2)
            .reshape(b, n, 24)
        )
        x = x + self.o(y)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Two such layers between an embedding and the head that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 12)
        self.layers = nn.ModuleList([Rotary(), Rotary()])
        self.norm, self.head = nn.RMSNorm(12), nn.Linear(12, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed((x.abs() * 3).long().clamp(max=9))
        angles = torch.outer(torch.arange(y.shape[1]).float(), 0.5 ** torch.arange(3)).repeat(1, 2)
        for layer in self.layers:
            y = layer(y, angles.cos(), angles.sin())
        return self.head(self.norm(y))


class Encoder(nn.Module):
    """BERT's kind: three embeddings added, a padding mask, norms after the sums, a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (
            nn.Embedding(10, 12),
            nn.Embedding(6, 12),
            nn.Embedding(2, 12),
        )
        self.norm, self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.pool, self.out = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        words = (x.abs() * 3).long().clamp(max=9)
        y = self.words(words) + self.places(torch.arange(6)) + self.kinds(torch.zeros_like(words))
        y = self.norm(y)
        q, k, v = (m(y).view(-1, 6, 3, 4).permute(0, 2, 1, 3) for m in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / 2 + (1 - (mask > 0).float())[:, None, None, :] * -100.0
        y = self.norm1(y + self.o((scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(-1, 6, 12)))
        y = self.norm2(y + self.down(F.gelu(self.up(y))))
        return self.out(self.pool(y[:, 0]).tanh())


# Outputs


@dataclass
class Found:
    features: Tensor
    logits: Tensor


torch.export.register_dataclass(Found)


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


def returning(kind: Callable[[Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda s, x: kind((y := s.b(s.a(x).relu())), s.out(y.mean((2, 3)))),
        a=c(3, 8),
        b=c(8, 6),
        out=nn.Linear(6, 5),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], list[int]]] = {
    "selective kernel": (selective_kernel, (IMAGE,), [4, 8]),
    "split attention": (split_attention, (IMAGE,), [4, 8, 8]),
    "dense concats": (dense_concats, (IMAGE,), [2, 4, 4, 6]),
    "u-net": (unet, (IMAGE,), [4, 6, 8, 8, 10]),
    "pyramid": (pyramid, (IMAGE,), [6, 7, 8, 10]),
    "symmetric weight": (parametrised, (TOKENS,), []),
    "weight norm in a hook": (hooked_weight_norm, (IMAGE,), [6, 8]),
    "weight norm over inputs": (weight_norm_over_inputs, (IMAGE,), [6, 8]),
    "tied layers": (tied_layers, (TOKENS,), [6, 8]),
    "decoder": (Decoder, ((2, 6),), [12, 12, 12, 16, 16]),
    "encoder": (Encoder, ((2, 6), (2, 6)), [8, 12, 12, 12, 20]),
    "dataclass": (returning(Found), (IMAGE,), [8]),
    "named tuple": (returning(Pair), (IMAGE,), [8]),
    "dict": (returning(lambda y, z: {"y": y, "z": [z]}), (IMAGE,), [8]),
}


@pytest.mark.parametrize("name", NETS)
def test_structure(name: str, prove: Callable[..., Any]) -> None:
    make, shapes, free = NETS[name]
    torch.manual_seed(0)
    coupling = prove(make(), *[torch.randn(shape) for shape in shapes], seeds=(None, 0))
    assert sorted(group.width for group in coupling.free) == free


def test_a_decoder_loses_heads(prove: Callable[..., Any]) -> None:
    """Both query heads of a key head go with it: two such units in each layer."""
    coupling = prove(Decoder(), torch.randn(2, 6), seeds=(None, 0), heads="count")
    assert sorted(group.width for group in coupling.free) == [2, 2, 12, 16, 16]
