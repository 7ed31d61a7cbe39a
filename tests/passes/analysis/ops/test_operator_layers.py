"""Norms, attention, weights and reductions that break pruners, as small networks: how free each is,
and a proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.operator_cases import Case, check_case
from nets import Net
from nets import later as net
from torch import nn
from torch.nn import functional as F

TOKENS = (2, 6, 12)


def c(ins: int, outs: int, kernel: int = 3, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(ins, outs, kernel, padding=kernel // 2, **options)


def lin(ins: int, outs: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(ins, outs, **options)


def rand(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.rand(shape)


def through(*parts: Callable[[], nn.Module], channels: int = 8) -> Callable[[], nn.Module]:
    """A convolution, the modules under test, and a head."""

    def make() -> nn.Module:
        a, out = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 5, 1)
        return Net(
            lambda s, x: s.out(s.m(s.a(x))),
            a=a,
            m=nn.Sequential(*[part() for part in parts]),
            out=out,
        )

    return make


def frozen_norm() -> nn.Module:
    norm = nn.BatchNorm2d(8, affine=False)
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    norm.training = False
    return norm


def standardised(s: Any, x: torch.Tensor) -> Any:
    weight = s.w - s.w.mean((1, 2, 3), keepdim=True)
    weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
    return s.out(F.conv2d(s.a(x).relu(), weight, padding=1))


def cbam(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x)
    return s.out(
        y * s.g(torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1)).sigmoid()
    )


def gram(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x).flatten(2)
    return s.out((y @ y.transpose(1, 2)).flatten(1))


def fused(s: Any, x: torch.Tensor, heads: int = 3, einsum: bool = False) -> Any:
    """Attention as timm writes it."""
    x = s.a(x)
    b, n, _ = x.shape
    q, k, v = s.qkv(x).reshape(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if einsum:
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.5
        mixed = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return s.out(s.norm(x + s.proj(mixed.transpose(1, 2).reshape(b, n, -1))))


def chunked_heads(s: Any, x: torch.Tensor) -> Any:
    """Each head holds its query, key and value beside each other."""
    b, n, _ = x.shape
    q, k, v = s.qkv(x).view(b, n, 3, 12).transpose(1, 2).chunk(3, -1)
    scores = (q @ k.transpose(-2, -1) / 2 + s.bias).softmax(-1)
    return s.out((scores @ v).transpose(1, 2).reshape(b, n, 12))


def relative(s: Any, x: torch.Tensor) -> Any:
    """Relative position bias, picked from a table by a constant index."""
    b, n, _ = x.shape
    q, k, v = (m(x).view(b, n, 3, 4).transpose(1, 2) for m in (s.q, s.k, s.v))
    bias = s.table[s.index.view(-1)].view(n, n, 3).permute(2, 0, 1)
    return s.out(((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))


def grouped_queries(s: Any, x: torch.Tensor, how: str = "repeat") -> Any:
    b, n, _ = x.shape
    q, k, v = (
        s.q(x).view(b, n, 6, 4).transpose(1, 2),
        s.k(x).view(b, n, 2, 4),
        s.v(x).view(b, n, 2, 4),
    )
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if how == "repeat":
        k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
    if how == "expand":
        k, v = (t[:, :, None].expand(-1, 2, 3, -1, -1).reshape(b, 6, n, 4) for t in (k, v))
    return s.out(
        F.scaled_dot_product_attention(q, k, v, enable_gqa=how == "sdpa").transpose(1, 2).flatten(2)
    )


def multihead() -> nn.Module:
    def forward(s: Any, x: torch.Tensor) -> Any:
        x = s.a(x)
        return s.out(x + s.m(x, x, x, need_weights=False)[0])

    return Net(
        forward,
        a=nn.Linear(12, 12),
        m=nn.MultiheadAttention(12, 3, batch_first=True),
        out=nn.Linear(12, 5),
    )


def cosine(s: Any, x: torch.Tensor) -> Any:
    """Attention by cosine, as Swin V2."""
    b, n, _ = x.shape
    q, k, v = s.qkv(x).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * s.scale.clamp(max=4).exp()
    return s.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def kernel_for_each_row(s: Any, x: torch.Tensor, transposed: bool = False) -> Any:
    y = s.b(s.a(x))
    b, n, h, w = y.shape
    kernels = (s.route(y.mean((2, 3))).softmax(-1) @ s.experts).reshape(b * n, n, 1, 1)
    conv = F.conv_transpose2d if transposed else F.conv2d
    return s.out(conv(y.reshape(1, b * n, h, w), kernels, groups=b).view(b, n, h, w))


def lstm(s: Any, x: torch.Tensor) -> Any:
    return s.out(s.m(s.a(x).flatten(2).transpose(1, 2))[0])


def partly_zero(s: Any, x: torch.Tensor) -> Any:
    """As Swin V2 clears the bias of its keys."""
    bias = s.b.clone()
    bias[4:8].zero_()
    return s.out(F.linear(s.a(x), s.w, bias).relu())


def half_replaced(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x).clone()
    y[:, 2:6] = s.b(x)
    return s.out(y)


def half_filled(s: Any, x: torch.Tensor) -> Any:
    y = s.a(x).clone()
    y[:, 2:6] = 1.0
    return s.out(y)


class Tokens(nn.Module):
    """An embedding whose input the tests make from float tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.b = nn.Embedding(10, 12), nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.e((x.abs() * 3).long().clamp(max=9))
        return F.linear(self.b(y).relu(), self.e.weight)


def early_buffer(s: Any, x: torch.Tensor) -> Any:
    scale = s.scale.view(1, -1, 1, 1).exp()
    return s.out(s.a(x) * scale)


QKV = {"q": lin(12, 12), "k": lin(12, 12), "v": lin(12, 12), "out": lin(12, 5)}
FUSED = {
    "a": lin(12, 12),
    "qkv": lin(12, 36),
    "proj": lin(12, 12),
    "norm": lambda: nn.LayerNorm(12),
    "out": lin(12, 5),
}

CASES = {
    # Norms and per-channel parameters
    "frozen batch norm": Case(through(frozen_norm), {"a": 8}),
    "batch norm without scale": Case(
        through(lambda: nn.BatchNorm2d(8, affine=False), nn.ReLU), {"a": 8}
    ),
    "instance norm": Case(through(lambda: nn.InstanceNorm2d(8, affine=True)), {"a": 8}),
    "group norm": Case(through(lambda: nn.GroupNorm(4, 16), channels=16), {"a": 16}, noted=1),
    "group norm, one group": Case(through(lambda: nn.GroupNorm(1, 8)), {"a": 8}, noted=1),
    "group norm, a group each": Case(through(lambda: nn.GroupNorm(8, 8)), {"a": 8}),
    "layer norm over channels": Case(
        net(
            lambda s, x: s.out(s.n(s.a(x))),
            a=lin(12, 16),
            n=lambda: nn.LayerNorm(16),
            out=lin(16, 5),
        ),
        {"a": 16},
        shapes=(TOKENS,),
        noted=1,
    ),
    "rms norm over channels": Case(
        net(
            lambda s, x: s.out(s.n(s.a(x))), a=lin(12, 16), n=lambda: nn.RMSNorm(16), out=lin(16, 5)
        ),
        {"a": 16},
        shapes=(TOKENS,),
        noted=1,
    ),
    "layer norm over channels and space": Case(
        through(lambda: nn.LayerNorm((8, 8, 8))), {"a": 8}, noted=1
    ),
    "layer norm over space": Case(through(lambda: nn.LayerNorm((8, 8))), {"a": 8}),
    "prelu": Case(through(lambda: nn.PReLU(8), lambda: nn.PReLU()), {"a": 8}),
    "layer scale": Case(
        net(
            lambda s, x: s.out(x + s.b(s.a(x)) * s.g),
            a=lin(12, 16),
            b=lin(16, 12),
            g=rand(12),
            out=lin(12, 5),
        ),
        {"a": 16},
        {"b": "combined"},
        shapes=(TOKENS,),
    ),
    "learned per-channel parameter": Case(
        net(lambda s, x: s.out(s.a(x) * s.p), a=c(3, 8), p=rand(1, 8, 1, 1), out=c(8, 5, 1)),
        {"a": 8},
    ),
    "parameter used twice": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x) * s.p) + s.p),
            a=c(3, 8),
            b=c(8, 8),
            p=rand(8, 1, 1),
            out=c(8, 5, 1),
        ),
        {"a": 8},
    ),
    "buffer read before a layer labels it": Case(
        net(early_buffer, a=c(3, 8), scale=lambda: nn.Buffer(torch.rand(8)), out=c(8, 5, 1)),
        {"a": 8},
    ),
    "learned spatial gate": Case(
        net(lambda s, x: s.out(s.a(x) * s.p), a=c(3, 8), p=rand(1, 1, 8, 8), out=c(8, 5, 1)),
        {"a": 8},
    ),
    "spatial gate": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * s.g(y).sigmoid()),
            a=c(3, 8),
            g=c(8, 1),
            out=c(8, 5, 1),
        ),
        {"a": 8},
    ),
    # Statistics over channels
    "cbam": Case(net(cbam, a=c(3, 8), g=c(2, 1), out=c(8, 5, 1)), {"a": 8}, noted=2),
    "softmax over channels": Case(through(lambda: nn.Softmax(1)), {"a": 8}, noted=1),
    "normalised over channels": Case(
        net(lambda s, x: s.out(F.normalize(s.a(x), dim=1)), a=c(3, 8), out=c(8, 5, 1)),
        {"a": 8},
        noted=1,
    ),
    "cumsum over channels": Case(
        net(lambda s, x: s.out(s.a(x).cumsum(1)), a=c(3, 8), out=c(8, 5, 1)), {"a": 8}, noted=1
    ),
    "argmax over channels": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * y.argmax(1, keepdim=True)), a=c(3, 8), out=c(8, 5, 1)
        ),
        {},
        {"a": "places along channels are numbered"},
    ),
    "where the maximum is": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * y.max(1, keepdim=True)[1]), a=c(3, 8), out=c(8, 5, 1)
        ),
        {},
        {"a": "channels are numbered"},
    ),
    "gram matrix": Case(net(gram, a=c(3, 8), out=lin(64, 5)), {}, {"a": "two kinds"}),
    "product of two branches": Case(
        net(
            lambda s, x: s.out(torch.bmm(s.a(x).flatten(2).mT, s.b(x).flatten(2)).flatten(1)),
            a=c(3, 8),
            b=c(3, 8),
            out=lin(4096, 5),
        ),
        {"a": 8},
    ),
    "channels as batch of a product": Case(
        net(lambda s, x: s.out(s.a(x) @ s.b(x).mT), a=c(3, 8), b=c(3, 8), out=c(8, 5, 1)), {"a": 8}
    ),
    "channels as batch of a product with the input": Case(
        net(lambda s, x: s.out(s.a(x) @ x.repeat(1, 2, 1, 1).mT), a=c(3, 6), out=c(6, 5, 1)),
        {},
        {"a": "combined"},
    ),
    # Computed and shared weights
    "weight-standardised": Case(
        net(standardised, a=c(3, 8), w=rand(6, 8, 3, 3), out=c(6, 5, 1)), {"a": 8, "w": 6}, noted=2
    ),
    "weight norm": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x))),
            a=c(3, 8),
            b=lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3)),
            out=c(6, 5, 1),
        ),
        {"a": 8, "b": 6},
        noted=1,
    ),
    "spectral norm": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x))),
            a=c(3, 8),
            b=lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)),
            out=c(6, 5, 1),
        ),
        {"a": 8, "b": 6},
        noted=2,  # the largest singular value is taken of what is left
    ),
    "factorised weight": Case(
        net(
            lambda s, x: s.out(F.linear(s.a(x), s.u @ s.v).relu()),
            a=lin(12, 8),
            u=rand(6, 4),
            v=rand(4, 8),
            out=lin(6, 5),
        ),
        {"v": 8, "u": 6},
        shapes=(TOKENS,),
    ),
    "mixed over tokens by a Fourier transform": Case(
        net(
            lambda s, x: s.out(torch.fft.fft(s.a(x), dim=1, norm="ortho").real),
            a=lin(12, 8),
            out=lin(8, 5),
        ),
        {"a": 8},
        shapes=(TOKENS,),
    ),
    "global filter": Case(
        net(
            lambda s, x: s.out(
                torch.fft.irfft2(torch.fft.rfft2(s.a(x)) * torch.view_as_complex(s.w), s=(8, 8))
            ),
            a=c(3, 8),
            w=rand(8, 5, 2),
            out=c(8, 5, 1),
        ),
        {"a": 8},
    ),
    "transformed along channels": Case(
        net(lambda s, x: s.out(torch.fft.fft(s.a(x)).real), a=lin(12, 8), out=lin(8, 5)),
        {},
        {"a": "transformed along channels"},
        shapes=(TOKENS,),
    ),
    "memory filled later": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * torch.empty_like(y).fill_(0.5)),
            a=c(3, 8),
            out=c(8, 5, 1),
        ),
        {"a": 8},
    ),
    "einsum with a parameter": Case(
        net(
            lambda s, x: s.out(torch.einsum("bchw,oc->bohw", s.a(x), s.w)),
            a=c(3, 8),
            w=rand(6, 8),
            out=c(6, 5, 1),
        ),
        {"a": 8, "w": 6},
    ),
    "matmul with a transposed parameter": Case(
        net(lambda s, x: s.out(s.a(x) @ s.w.t()), a=lin(12, 8), w=rand(6, 8), out=lin(6, 5)),
        {"a": 8, "w": 6},
        shapes=(TOKENS,),
    ),
    "bias written in part": Case(
        net(partly_zero, a=lin(12, 16), w=rand(12, 16), b=rand(12), out=lin(12, 5)),
        {"a": 16, "w": 8, "w.2": 4},
        shapes=(TOKENS,),
    ),
    "parameter times tokens": Case(
        net(lambda s, x: s.out(s.w @ s.a(x)), a=lin(12, 8), w=rand(7, 6), out=lin(8, 5)),
        {"a": 8},
        {"w": "output"},
        shapes=(TOKENS,),
    ),
    "embedding tied to the head": Case(Tokens, {"e": 12}, shapes=((2, 6),)),
    "half filled": Case(net(half_filled, a=c(3, 8), out=c(8, 5, 1)), {"a": 4, "a.2": 4}),
    "half replaced": Case(
        net(half_replaced, a=c(3, 8), b=c(3, 4), out=c(8, 5, 1)), {"a": 4, "a.2": 4}
    ),
    # Windows
    "interpolate": Case(
        through(lambda: nn.Upsample(scale_factor=2), lambda: nn.Upsample((7, 7), mode="bilinear")),
        {"a": 8},
    ),
    "pooling with indices": Case(
        net(
            lambda s, x: s.out(
                F.max_unpool2d(*F.max_pool2d(s.a(x), 2, return_indices=True), (2, 2))
            ),
            a=c(3, 8),
            out=c(8, 5, 1),
        ),
        {"a": 8},
    ),
    "pooling to one, reflected": Case(
        through(
            lambda: nn.AdaptiveAvgPool2d(4), lambda: nn.ReflectionPad2d(1), lambda: nn.AvgPool2d(2)
        ),
        {"a": 8},
    ),
    # Recurrence and attention
    "bidirectional lstm": Case(
        net(
            lstm,
            a=c(3, 8),
            m=lambda: nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True),
            out=lin(8, 5),
        ),
        {"a": 8, "m": 16},
    ),
    "nn.MultiheadAttention": Case(multihead, {"a": 12, "m": 24}, shapes=(TOKENS,)),
    "fused qkv": Case(net(fused, **FUSED), {"a": 12, "qkv": 24}, shapes=(TOKENS,), noted=1),
    "fused qkv by einsum": Case(
        net(lambda s, x: fused(s, x, einsum=True), **FUSED),
        {"a": 12, "qkv": 24},
        shapes=(TOKENS,),
        noted=1,
    ),
    "cosine attention": Case(
        net(cosine, qkv=lin(12, 36), scale=rand(3, 1, 1), out=lin(12, 5)),
        {"qkv": 16},
        shapes=(TOKENS,),
        noted=2,
    ),
    "heads that hold q, k and v": Case(
        net(chunked_heads, qkv=lin(12, 36), bias=rand(3, 6, 6), out=lin(12, 5)),
        {"qkv": 12, "qkv.2": 12},
        shapes=(TOKENS,),
    ),
    "relative position bias": Case(
        net(
            relative,
            table=rand(11, 3),
            index=lambda: nn.Buffer(torch.arange(36).view(6, 6) % 11),
            **QKV,
        ),
        {"q": 12, "v": 12},
        shapes=(TOKENS,),
    ),
    **{
        f"kernels for each row, {kind.__name__}": Case(
            net(
                lambda s, x, kind=kind: kernel_for_each_row(s, x, kind is F.conv_transpose2d),
                a=c(3, 8),
                b=c(8, 6),
                route=lin(6, 4),
                experts=rand(4, 36),
                out=c(6, 5, 1),
            ),
            {"a": 8, "route": 4},
            {"b": "`groups` depends on the batch size"},
            noted=1,
        )
        for kind in (F.conv2d, F.conv_transpose2d)
    },
    **{
        f"grouped queries by {how}": Case(
            net(
                lambda s, x, how=how: grouped_queries(s, x, how),
                **{**QKV, "q": lin(12, 24), "k": lin(12, 8), "v": lin(12, 8), "out": lin(24, 5)},
            ),
            {"q": 8, "v": 8},
            shapes=(TOKENS,),
        )
        for how in ("repeat", "expand", "sdpa")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_operator_layer(name: str, prove: Callable[..., Any]) -> None:
    check_case(CASES[name], prove)
