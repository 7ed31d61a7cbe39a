"""Which residual branches a graph has, and that dropping them is the original with their outputs
multiplied by zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruneopt.errors import VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.ir.verifier import verify_graph
from pruneopt.models.resnet_cifar import resnet20
from pruneopt.passes.analysis.residual.branches import Branch, find_branches
from pruneopt.passes.depth.drop import drop_branches, prove_dropped

IMAGE = (2, 3, 8, 8)
TOKENS = (2, 5, 12)


class Block(nn.Module):
    """A residual block of two convolutions, with a ReLU after the sum, as in ResNet."""

    def __init__(self, width: int = 6, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width // stride, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.short = (
            nn.Sequential() if stride == 1 else nn.Conv2d(width // stride, width, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        out += self.short(x)
        return torch.relu(out)


class Net(nn.Module):
    """A stem, three blocks of which the second changes the shape, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block(12, 2), Block(12), Block(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A transformer layer in one of several forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.scale1, self.scale2 = (
            nn.Parameter(torch.full((12,), 0.1)),
            nn.Parameter(torch.full((12,), 0.2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "post":
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))
        if self.form == "parallel":
            h = self.norm1(x)
            return x + self.attn(h) + self.norm2(self.mlp(h))
        x = x + self.scale1 * self.attn(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.randn(5, 12))
        self.embed = nn.Linear(12, 12)
        self.layers = nn.ModuleList(Layer(form) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.pos
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Small(nn.Module):
    """One of several ways to add, by number of the form."""

    def __init__(self, add: Callable[[Small, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.add = add

    def forward(self, x: Tensor) -> Any:
        return self.add(self, torch.relu(self.a(x)))


def graph_of(model: nn.Module, shape: Sequence[int] = IMAGE) -> Graph:
    torch.manual_seed(1)
    return capture(model.eval(), (torch.randn(*shape),))


def names(graph: Graph) -> list[str]:
    return [branch.name for branch in find_branches(graph) if branch.kept is None]


def zeroed(model: nn.Module, names: Sequence[str], x: Tensor) -> Tensor:
    """Return the outputs of a module in float64 with those of some submodules multiplied by
    zero."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out: out * 0)
        for name in names
    ]
    try:
        with torch.no_grad():
            return model.double().eval()(x.double())
    finally:
        for handle in handles:
            handle.remove()


def assert_dropped(
    model: nn.Module, graph: Graph, wanted: Sequence[str], modules: Sequence[str], x: Tensor
) -> Graph:
    """Drop branches; the result is proved, valid, and computes what the module does without the
    outputs of modules."""
    chosen = [branch for branch in find_branches(graph) if branch.name in wanted]
    assert len(chosen) == len(wanted)
    dropped = drop_branches(graph, chosen)
    verify_graph(dropped)
    proof = prove_dropped(graph, chosen, dropped)
    assert proof.values >= len(dropped.ops)
    with torch.no_grad():
        mine = build_module(dropped, dropped.weights).double()(x.double())
    torch.testing.assert_close(mine, zeroed(model, modules, x), rtol=1e-12, atol=1e-12)
    return dropped


def test_blocks_of_a_resnet() -> None:
    model = Net()
    graph = graph_of(model)
    assert names(graph) == ["blocks.0", "blocks.2", "blocks.3"]
    dropped = assert_dropped(
        model,
        graph,
        ["blocks.0", "blocks.3"],
        ["blocks.0.bn2", "blocks.3.bn2"],
        torch.randn(*IMAGE),
    )
    gone = {name for name in graph.params if name.startswith(("blocks.0.", "blocks.3."))}
    assert set(dropped.params) == set(graph.params) - gone == set(dropped.weights)
    assert names(dropped) == ["blocks.2"]


@pytest.mark.parametrize("form", ["pre", "parallel"])
def test_branches_of_a_transformer(form: str) -> None:
    model = Encoder(form)
    graph = graph_of(model, TOKENS)
    assert names(graph) == [f"layers.{i}.{part}" for i in (0, 1) for part in ("attn", "mlp")]
    last = "mlp" if form == "pre" else "norm2"
    x = torch.randn(*TOKENS)
    assert_dropped(
        model, graph, ["layers.0.attn", "layers.1.mlp"], ["layers.0.attn", f"layers.1.{last}"], x
    )
    assert_dropped(
        model,
        graph,
        names(graph),
        ["layers.0.attn", f"layers.0.{last}", "layers.1.attn", f"layers.1.{last}"],
        x,
    )


def test_post_norm_is_listed_and_kept() -> None:
    found = find_branches(graph_of(Encoder("post"), TOKENS))
    assert [branch.name for branch in found] == [
        f"layers.{i}.{part}" for i in (0, 1) for part in ("attn", "mlp")
    ]
    assert all("post-norm" in (branch.kept or "") for branch in found)


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        (lambda s, x: x + s.b(x), ["b"]),
        (lambda s, x: s.b(x) + x, ["b"]),
        (
            lambda s, x: torch.add(x, s.b(x), alpha=0.5),
            ["b"],
        ),  # half the branch is dropped as a whole one is
        (lambda s, x: torch.add(s.b(x), x, alpha=0.5), []),  # half the skip is not the skip
        (lambda s, x: x + x * 0.7, []),  # no layer
        (
            lambda s, x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044 * x**3))) + s.b(x),
            [],
        ),  # the decoy of a GELU
        (lambda s, x: s.b(x) + s.c(x), []),  # two projections of one input
        (lambda s, x: s.b(x) + s.c(x[:, :, :1, :1]), []),  # broadcast
        (lambda s, x: (x + (y := s.b(x)), y), []),  # somebody else reads the branch
        (lambda s, x: x + (y := s.b(x)) + y, []),
        (lambda s, x: (y := x + s.b(x)) + s.c(y), ["b", "c"]),
        (
            lambda s, x: (y := x + s.c(s.b(x))) + s.c(s.d(y)),
            ["b", "d"],
        ),  # a layer that two branches share
    ],
    ids=range(12),
)
def test_forms_of_addition(add: Callable[[Small, Tensor], Any], expected: list[str]) -> None:
    graph = graph_of(Small(add))
    found = [branch for branch in find_branches(graph) if branch.kept is None]
    heads = [next(iter(op for op in branch.ops if op.base == "conv2d")).inputs for branch in found]
    first = [
        next(value.name for value in inputs if value.is_weight).partition(".")[0]
        for inputs in heads
    ]
    assert first == expected
    for branch in found:
        prove_dropped(graph, [branch], drop_branches(graph, [branch]))
    if found:
        prove_dropped(graph, found, drop_branches(graph, found))


def test_nested_branches() -> None:
    def unet(s: Small, x: Tensor) -> Tensor:
        deep = F.avg_pool2d(s.b(x), 2)
        deep = deep + s.c(deep)
        return x + F.interpolate(s.d(deep), scale_factor=2.0)

    graph = graph_of(Small(unet))
    inner, outer = find_branches(graph)
    assert inner.inside(outer)
    assert not outer.inside(inner)
    for chosen in ([inner], [outer], [inner, outer]):
        dropped = drop_branches(graph, chosen)
        prove_dropped(graph, chosen, dropped)
        assert ("c.weight" in dropped.params, "d.weight" in dropped.params) == (
            False,
            outer not in chosen,
        )
    assert set(drop_branches(graph, [outer]).params) == {"a.weight", "a.bias"}


def test_real_networks() -> None:
    model = resnet20()
    graph = graph_of(model, (2, 3, 16, 16))
    found = names(graph)
    assert len(found) == 7  # two of nine change the shape
    assert len(set(found)) == 7
    chosen = [branch for branch in find_branches(graph) if branch.name in found[1:3]]
    dropped = drop_branches(graph, chosen)
    prove_dropped(graph, chosen, dropped)


# The proof


def test_a_wrong_graph_is_refused() -> None:
    graph = graph_of(Net())
    first, second, _ = (branch for branch in find_branches(graph) if branch.kept is None)
    with pytest.raises(
        VerificationError, match="the network is not the original with the dropped branches"
    ):
        prove_dropped(graph, [first], drop_branches(graph, [second]))
    with pytest.raises(VerificationError):
        prove_dropped(graph, [first], graph)
    with pytest.raises(VerificationError):
        prove_dropped(graph, [], drop_branches(graph, [first]))
    # The skip goes, the branch stays.
    wrong = Branch(first.name, first.add, 1 - first.place, first.ops)
    with pytest.raises(VerificationError, match="differs by"):
        prove_dropped(graph, [first], drop_branches(graph, [wrong]))


def test_blocks_that_start_as_zero_are_told_apart() -> None:
    model = Net()
    for block in model.blocks:
        nn.init.zeros_(block.get_parameter("bn2.weight"))
    graph = graph_of(model)
    first, second, _ = (branch for branch in find_branches(graph) if branch.kept is None)
    with pytest.raises(VerificationError):
        prove_dropped(graph, [first], drop_branches(graph, [second]))


def test_changed_weights_are_refused() -> None:
    graph = graph_of(Net())
    chosen = [branch for branch in find_branches(graph) if branch.kept is None][:1]
    dropped = drop_branches(graph, chosen)
    weight = dropped.weights["head.weight"].clone()
    weight[0, 0] = math.nextafter(float(weight[0, 0]), 1e9) + 1e-6
    dropped.weights["head.weight"] = weight
    with pytest.raises(VerificationError, match=r"its weight head\.weight is another one"):
        prove_dropped(graph, chosen, dropped)
