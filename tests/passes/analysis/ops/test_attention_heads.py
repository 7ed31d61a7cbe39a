"""Attention in both ways of shrinking: channels within every head (the default), or whole heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.transform.stages import Couple

TOKENS = (2, 6, 12)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, as LLaMA writes it."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    """Attention with queries, keys and values of their own widths, and what variants add to it."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, heads: int = 3, groups: int = 3, size: int = 4, value_size: int = 4, **options: Any
    ) -> None:
        super().__init__()
        self.heads, self.groups, self.options = heads, groups, options
        self.q, self.k = (
            nn.Linear(12, heads * size, bias=False),
            nn.Linear(12, groups * size, bias=False),
        )
        self.v, self.proj = nn.Linear(12, groups * value_size), nn.Linear(heads * value_size, 12)
        if "norm" in options:
            self.q_norm, self.k_norm = nn.LayerNorm(size), nn.RMSNorm(size)
        angles = torch.outer(torch.arange(6.0), 0.5 ** torch.arange(size // 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.table = nn.Parameter(torch.rand(11, heads))
        self.register_buffer("index", torch.arange(6)[:, None] - torch.arange(6) + 5)
        self.register_buffer("slopes", 0.5 ** torch.arange(1.0, heads + 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        k = self.k(x).view(b, n, self.groups, -1).transpose(1, 2)
        v = self.v(x).view(b, n, self.groups, -1).transpose(1, 2)
        if "norm" in self.options:
            q, k = self.q_norm(q), self.k_norm(k)
        # None of the tokens before the first is rotated: timm's way without a class token.
        if "prefix" in self.options:
            q = torch.cat([q[:, :, :0], 2 * q[:, :, 0:]], 2)
        if "rotary" in self.options:
            q, k = rotated(q, self.cos, self.sin), rotated(k, self.cos, self.sin)
        if self.groups < self.heads:
            k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        y = self.attended(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.proj(y)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias: Tensor | None = None
        if "table" in self.options:
            bias = self.table[self.index.view(-1)].view(6, 6, -1).permute(2, 0, 1).unsqueeze(0)
        if "slopes" in self.options:
            bias = (self.slopes[:, None, None] * -self.index.abs())[None]
        if "fused" in self.options:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        scores = q @ k.transpose(-2, -1) / 2
        scores = (scores if bias is None else scores + bias).softmax(-1)
        if "mixed" in self.options:
            scores = scores * scores.mean(1, keepdim=True)
        return scores @ v


class Net(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.a, self.m, self.out = nn.Linear(12, 12), Attention(**options), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(x + self.m(x))


class Averaged(nn.Module):
    """Attention by PyTorch's own module, whose maps are returned as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(12, 12), nn.Linear(12, 5)
        self.m = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        y, maps = self.m(x, x, x)
        return self.out(x + y), maps


class Windows(nn.Module):
    """Shifted windows with a mask, as Swin has them; queries, keys and values from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.proj = nn.Conv2d(3, 12, 1), nn.Linear(12, 36), nn.Linear(12, 12)
        self.out = nn.Linear(12, 5)
        self.table = nn.Parameter(torch.rand(9, 3))
        self.register_buffer("index", torch.arange(16).view(4, 4) % 9)
        self.register_buffer(
            "mask", torch.where(torch.arange(64).view(4, 4, 4) % 5 == 4, -100.0, 0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.a(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        b = x.shape[0]
        w = x.view(b, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 12)
        q, k, v = self.qkv(w).reshape(-1, 4, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * 0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(4, 4, -1).permute(
            2, 0, 1
        ).contiguous().unsqueeze(0)
        scores = (
            (scores.view(b, 4, 3, 4, 4) + self.mask[None, :, None]).view(-1, 3, 4, 4).softmax(-1)
        )
        w = self.proj((scores @ v).transpose(1, 2).reshape(-1, 4, 12))
        y = w.view(b, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(b, 4, 4, 12)
        return self.out(torch.roll(y, (1, 1), (1, 2)))


class Transposed(nn.Module):
    """Attention between channels within heads, as XCiT and Restormer have it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)
        self.temperature = nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 4, 1).unbind(0)
        maps = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        maps = maps.softmax(-1)
        return self.out((maps @ v).permute(0, 3, 1, 2).reshape(b, n, 12))


class Linear(nn.Module):
    """Linear attention, as EfficientViT has it: a row of ones beside the values sums up the
    weights."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = q.relu() @ (k.relu().transpose(-2, -1) @ F.pad(v, (0, 1), value=1.0))
        return self.out((y[..., :-1] / (y[..., -1:] + 1.0)).transpose(1, 2).reshape(b, n, 12))


def attention(*flags: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Net(**dict.fromkeys(flags, True), **options)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int], list[int]]] = {
    # the widths of the free groups: where heads lose channels, and where heads go
    "values of another width": (attention(value_size=6), TOKENS, [12, 12, 18], [3, 12]),
    "grouped queries": (attention(heads=6, groups=2), TOKENS, [8, 8, 12], [2, 12]),
    "one key for all queries": (attention(groups=1), TOKENS, [4, 4, 12], [4, 4, 12]),
    "no tokens before": (attention("prefix"), TOKENS, [12, 12, 12], [3, 12]),
    "rotary": (attention("rotary"), TOKENS, [2, 12, 12], [3, 12]),
    "rotary, normalised, grouped": (
        attention("rotary", "norm", heads=6, groups=2),
        TOKENS,
        [2, 8, 12],
        [2, 12],
    ),
    "position bias, fused": (attention("table", "fused"), TOKENS, [12, 12, 12], [3, 12]),
    "slopes": (attention("slopes"), TOKENS, [12, 12, 12], [3, 12]),
    "slopes, fused": (attention("slopes", "fused"), TOKENS, [12, 12, 12], [3, 12]),
    "maps mixed over heads": (attention("mixed"), TOKENS, [12, 12, 12], [3, 12]),
    "maps returned": (Averaged, TOKENS, [12, 24], [3, 12]),
    "shifted windows": (Windows, (2, 3, 4, 4), [12, 12, 24], [3, 12, 12]),
    "between channels": (Transposed, TOKENS, [8], [3]),
    "linear": (Linear, TOKENS, [16], [3]),
}


@pytest.mark.parametrize("name", NETS)
def test_attention_shrinks_by_width_or_by_heads(name: str, prove: Callable[..., Any]) -> None:
    make, shape, *free = NETS[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(shape)
    for heads, widths in zip(("width", "count"), free, strict=True):
        coupling = prove(net, x, seeds=(None, 0), heads=heads)
        assert sorted(group.width for group in coupling.free) == widths, heads


def test_a_head_is_all_of_its_channels() -> None:
    """Rows of queries, keys and values, columns of the projection, and its bias at every
    distance."""
    graph = capture(Net(table=True).eval(), (torch.randn(TOKENS),))
    coupling = couple(graph, heads="count")
    (name,) = (group.name for group in coupling.free if group.width == 3)
    plan = {name: np.array([0, 2])}
    pruned = slice_graph(graph, coupling, plan)
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    for weight in ("m.q.weight", "m.k.weight", "m.v.bias"):
        torch.testing.assert_close(
            pruned.weights[weight], graph.weights[weight][rows], rtol=0, atol=0
        )
    for weight, kept in (("m.proj.weight", rows), ("m.table", [0, 2])):
        torch.testing.assert_close(
            pruned.weights[weight], graph.weights[weight][:, kept], rtol=0, atol=0
        )
    verify_pruned(graph, coupling, plan, pruned)


def test_another_way_is_refused() -> None:
    graph = capture(Net().eval(), (torch.randn(TOKENS),))
    with pytest.raises(UserError, match="heads must be one of width, count"):
        couple(graph, heads="depth")


def test_the_pass_passes_it_on() -> None:
    graph = capture(Net().eval(), (torch.randn(TOKENS),))
    for heads, width in (("width", 12), ("count", 3)):
        state = State(graph, graph)
        Couple(heads=heads).run(state)
        assert min(group.width for group in state.need_coupling().free) == width
    with pytest.raises(UserError, match="heads must be one of"):
        Couple(heads="depth")
