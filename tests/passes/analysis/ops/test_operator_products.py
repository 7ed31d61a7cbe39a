"""Products of every kind: tensordot, bilinear, einsum, attention between channels, linear
attention, whole groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Net
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS = (2, 6, 12)


def heads(y: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values of three heads, (batch, heads, tokens, channels)."""
    return y.unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4).unbind(0)


def merged(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)


def linear_attention(s: Net, x: Tensor) -> Tensor:
    """With the sum over keys as its normaliser."""
    q, k, v = heads(s.qkv(x))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    scale = 1 / (q @ k.sum(2).unsqueeze(-1) + 1)
    return s.out(merged(q @ (k.mT @ v) * scale))


def einsum_attention(s: Net, x: Tensor) -> Tensor:
    q, k, v = heads(s.qkv(x))
    context = torch.einsum("bhnd,bhne->bhde", k.softmax(2), v)
    return s.out(merged(torch.einsum("bhnd,bhde->bhne", q.softmax(-1), context)))


def factorised(s: Net, x: Tensor) -> Tensor:
    """As CoaT: a convolution of the values, times the queries, beside the product."""
    q, k, v = heads(s.qkv(x))
    image = v.mT.flatten(1, 2)
    place = s.conv(image).unflatten(1, (3, 4)).mT
    return s.out(merged(q @ (k.softmax(2).mT @ v) + q * place))


def qkv() -> dict[str, nn.Module]:
    return {"qkv": nn.Linear(12, 36), "out": nn.Linear(12, 5)}


def ends(middle: int = 6) -> dict[str, nn.Module]:
    return {"a": nn.Linear(12, 8), "b": nn.Linear(12, 8), "out": nn.Linear(middle, 5)}


CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], dict[str, int]]] = {
    "tensordot with a weight": (
        lambda s, x: s.out(torch.tensordot(s.a(x), s.w, ([2], [1]))),
        {**ends(), "w": torch.rand(6, 8)},
        {"a": 8, "w": 6},
    ),
    "tensordot, the weight first": (
        lambda s, x: s.out(torch.tensordot(s.w, s.a(x), ([0], [2])).permute(1, 2, 0)),
        {**ends(), "w": torch.rand(8, 6)},
        {"a": 8, "w": 6},
    ),
    "tensordot over tokens and channels": (
        lambda s, x: s.out(torch.tensordot(s.a(x), s.w, ([1, 2], [0, 1]))),
        {**ends(), "w": torch.rand(6, 8, 6)},
        {"a": 8, "w": 6},
    ),
    "bilinear": (
        lambda s, x: s.out(s.m(s.a(x), s.b(x))),
        {**ends(), "m": nn.Bilinear(8, 8, 6)},
        {"a": 8, "b": 8, "m": 6},
    ),
    "bilinear of one tensor": (
        lambda s, x: s.out(s.m(y := s.a(x), y)),
        {**ends(), "m": nn.Bilinear(8, 8, 6, bias=False)},
        {"a": 8, "m": 6},
    ),
    "einsum with an ellipsis": (
        lambda s, x: s.out(torch.einsum("...i,ij->...j", s.a(x), s.w)),
        {**ends(), "w": torch.rand(8, 6)},
        {"a": 8, "w": 6},
    ),
    "einsum without a result": (
        # letters by the alphabet: (b, j, n)
        lambda s, x: s.out(torch.einsum("bni,ij", s.a(x), s.w).mT),
        {**ends(), "w": torch.rand(8, 6)},
        {"a": 8, "w": 6},
    ),
    "einsum of three": (
        lambda s, x: s.out(torch.einsum("bni,ij,bni->bnj", s.a(x), s.w, s.b(x))),
        {**ends(), "w": torch.rand(8, 6)},
        {"a": 8, "w": 6},
    ),
    "distances of tokens": (
        lambda s, x: s.out(s.c(x) * torch.cdist(s.a(x), s.b(x)).mean(-1, keepdim=True)),
        {**ends(), "c": nn.Linear(12, 6)},
        {"a": 8, "c": 6},
    ),
    "distances from codes": (
        lambda s, x: s.out(torch.cdist(s.a(x), s.w.expand(x.shape[0], -1, -1))),
        {**ends(), "w": torch.rand(6, 8)},
        {"a": 8, "w": 6},
    ),
    "cosine of two tensors": (
        lambda s, x: s.out(s.c(x) * F.cosine_similarity(s.a(x), s.b(x)[:, :1], -1).unsqueeze(-1)),
        {**ends(), "c": nn.Linear(12, 6)},
        {"a": 8, "c": 6},
    ),
    "linear attention": (linear_attention, qkv(), {"qkv": 8}),
    "linear attention by einsum": (einsum_attention, qkv(), {"qkv": 8}),
    "factorised attention": (
        factorised,
        {**qkv(), "conv": nn.Conv1d(12, 12, 3, padding=1, groups=12)},
        {"qkv": 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_products(name: str, prove: Callable[..., Any]) -> None:
    forward, parts, free = CASES[name]
    torch.manual_seed(0)
    coupling = prove(Net(forward, **parts), torch.randn(TOKENS))
    assert {group.name: group.width for group in coupling.free} == free
