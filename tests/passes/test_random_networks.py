"""Networks drawn at random from many operators, pruned at random: never a crash, never a wrong network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pruneopt.ir.capture import capture
from pruneopt.ir.codegen import build_module
from pruneopt.ir.execute import Interpreter
from pruneopt.ir.parser import parse_graph
from pruneopt.ir.printer import print_graph
from pruneopt.passes.analysis.annotate import annotate, write_plan
from pruneopt.passes.analysis.coupling import Coupling, couple
from pruneopt.passes.transform.slice import slice_graph
from pruneopt.passes.transform.verify import verify_pruned

Shape = tuple[int, int, int]
Draw = Callable[[st.SearchStrategy[Any]], Any]
MAX_CHANNELS, MAX_SIZE = 48, 16


class Step(nn.Module):
    """One operator of a drawn network: which earlier tensors it reads, and what it makes of them."""

    def __init__(self, text: str, sources: Sequence[int], run: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.text, self.sources, self.run = text, list(sources), run
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.run(*self.parts, *inputs)
        return result


class Network(nn.Module):
    """Steps over a growing list of feature maps; the last one and a picked one go to a head."""

    def __init__(self, steps: Sequence[Step], last: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.head = nn.Conv2d(last, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = [x]
        for step in self.steps:
            pool.append(step(*(pool[source] for source in step.sources)))
        result: torch.Tensor = self.head(pool[-1])
        return result

    def __repr__(self) -> str:
        return " ; ".join(f"{i + 1}: {s.text} {s.sources}" for i, s in enumerate(self.steps))


def divisors(number: int) -> list[int]:
    return [d for d in range(2, number) if number % d == 0]


# Operators of one feature map: (draw, shape) -> (text, new shape, function, modules), or None where it does not apply

Made = tuple[str, Shape, Callable[..., Any], list[nn.Module]] | None


def conv(draw: Draw, shape: Shape) -> Made:
    c, h, w = shape
    outs, kernel = draw(st.sampled_from([1, 4, 6, 8, 12])), draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([1, 1, *(d for d in (*divisors(c), c) if outs % d == 0)]))
    made = nn.Conv2d(c, outs, kernel, padding=kernel // 2, groups=groups, bias=draw(st.booleans()))
    return f"conv {c}->{outs} k{kernel} g{groups}", (outs, h, w), lambda m, x: m(x), [made]


def depthwise(draw: Draw, shape: Shape) -> Made:
    c, h, w = shape
    outs = c * draw(st.sampled_from([1, 2]))
    return f"depthwise {outs}", (outs, h, w), lambda m, x: m(x), [nn.Conv2d(c, outs, 3, padding=1, groups=c)]


def transposed(draw: Draw, shape: Shape) -> Made:
    c, h, w = shape
    if h * 2 > MAX_SIZE:
        return None
    groups = draw(st.sampled_from([1, *divisors(c), c]))
    outs = groups * draw(st.integers(1, 3))
    return f"transposed {outs} g{groups}", (outs, 2 * h, 2 * w), lambda m, x: m(x), [
        nn.ConvTranspose2d(c, outs, 2, 2, groups=groups)
    ]


def norm(draw: Draw, shape: Shape) -> Made:
    c, h, w = shape
    kind = draw(st.sampled_from(["batch", "group", "instance", "layer", "prelu", "all"]))
    if kind == "layer":
        return "layer norm", shape, lambda m, x: m(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), [nn.LayerNorm(c)]
    made: nn.Module = {
        "batch": lambda: nn.BatchNorm2d(c),
        "group": lambda: nn.GroupNorm(draw(st.sampled_from([1, *divisors(c), c])), c),
        "instance": lambda: nn.InstanceNorm2d(c, affine=True),
        "prelu": lambda: nn.PReLU(c),
        "all": lambda: nn.LayerNorm((c, h, w)),
    }[kind]() if h * w > 1 else nn.BatchNorm2d(c)
    return f"{kind} norm {made}", shape, lambda m, x: m(x), [made]


def pointwise(draw: Draw, shape: Shape) -> Made:
    c = shape[0]
    name = draw(st.sampled_from(["relu", "sigmoid", "gelu", "softmax", "cumsum", "flip", "roll", "scale", "l2",
        "gate"]))
    run: Callable[..., Any] = {
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "gelu": F.gelu,
        "softmax": lambda x: x.softmax(1),
        "cumsum": lambda x: x.cumsum(1) / 4,
        "flip": lambda x: x.flip(1),
        "roll": lambda x: x.roll(1, 2),
        "scale": lambda m, x: x * m.weight[:, 0, :, None],
        "l2": lambda x: F.normalize(x, dim=1),
        "gate": lambda x: x * x.amax(1, keepdim=True).sigmoid().expand(-1, c, -1, -1),
    }[name]
    return name, shape, run, [nn.Conv1d(1, c, 1)] if name == "scale" else []


def spatial(draw: Draw, shape: Shape) -> Made:
    c, h, w = shape
    name = draw(st.sampled_from(["max", "avg", "up", "unpool", "shuffle", "unshuffle", "fold"]))
    if name in ("max", "avg", "unshuffle") and (h % 2 or h < 2):
        return None
    if name in ("unpool", "fold") and (h % 2 or h < 2 or c * 4 > MAX_CHANNELS):
        return None
    if (name in ("up", "shuffle") and h * 2 > MAX_SIZE) or (name == "shuffle" and c % 4):
        return None
    if name == "unshuffle" and c * 4 > MAX_CHANNELS:
        return None
    half, double = (c, h // 2, w // 2), (c, h * 2, w * 2)
    after, run = {
        "max": (half, lambda x: F.max_pool2d(x, 2)),
        "avg": (half, lambda x: F.avg_pool2d(x, 2)),
        "up": (double, lambda x: F.interpolate(x, scale_factor=2)),
        "unpool": (shape, lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
        "shuffle": ((c // 4, h * 2, w * 2), lambda x: F.pixel_shuffle(x, 2)),
        "unshuffle": ((c * 4, h // 2, w // 2), lambda x: F.pixel_unshuffle(x, 2)),
        "fold": (shape, lambda x: F.fold(F.unfold(x, 2, stride=2).sin(), (h, w), 2, stride=2)),
    }[name]
    return name, after, run, []


def blocks(draw: Draw, shape: Shape) -> Made:
    """Channels spread over two axes, (n, c / n) or (c / n, n), something done there, and back."""
    c, h, w = shape
    if not divisors(c):
        return None
    n = draw(st.sampled_from(divisors(c)))
    axis = draw(st.sampled_from([1, 2]))
    name = draw(st.sampled_from(["transpose", "softmax", "mean", "amax", "slice", "stride", "select", "glu",
        "unbind", "flip"]))
    size = (n, c // n)[axis - 1]
    start, step = draw(st.integers(0, size - 1)), draw(st.integers(1, 2))
    stop = draw(st.integers(start + 1, size))
    place = draw(st.integers(0, size - 1))
    if name == "glu" and size % 2:
        return None
    cut = [slice(None), slice(None), slice(None)]
    cut[axis] = slice(start, stop, step if name == "stride" else 1)
    run: Callable[[torch.Tensor], torch.Tensor] = {
        "transpose": lambda y: y.transpose(1, 2),
        "softmax": lambda y: y.softmax(axis),
        "mean": lambda y: y.mean(axis),
        "amax": lambda y: y.amax(axis),
        "slice": lambda y: y[tuple(cut)],
        "stride": lambda y: y[tuple(cut)],
        "select": lambda y: y.select(axis, place),
        "glu": lambda y: F.glu(y, axis),
        "unbind": lambda y: (p := y.unbind(axis))[0] * p[-1],
        "flip": lambda y: y.flip(axis),
    }[name]
    outs = run(torch.zeros(1, n, c // n, 1, 1)).numel()
    text = f"{name} in ({n}, {c // n}) axis {axis} [{start}:{stop}:{step}] {place}"
    return text, (outs, h, w), lambda x: run(x.reshape(-1, n, c // n, h, w)).reshape(-1, outs, h, w), []


def channels(draw: Draw, shape: Shape) -> Made:
    """Cuts, copies and padding along channels."""
    c, h, w = shape
    start = draw(st.integers(0, c - 1))
    stop, step = draw(st.integers(start + 1, c)), draw(st.integers(1, 3))
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    name = draw(st.sampled_from(["slice", "narrow", "chunk", "pad", "interleave", "repeat", "select", "batch"]))
    run: Callable[..., torch.Tensor] = {
        "slice": lambda x: x[:, start:stop:step],
        "narrow": lambda x: x.narrow(1, start, stop - start),
        "chunk": lambda x: x.chunk(3, 1)[-1],
        "pad": lambda x: F.pad(x, (0, 0, 0, 0, before, after)),
        "interleave": lambda x: x.repeat_interleave(2, 1),
        "repeat": lambda x: x.repeat(1, 2, 1, 1),
        "select": lambda x: x - x[:, start : start + 1],
        "batch": lambda x: F.avg_pool2d(x.reshape(-1, 1, h, w), 1).reshape(-1, c, h, w).sin(),
    }[name]
    outs = run(torch.zeros(1, c, h, w)).shape[1]
    return f"{name} {start}:{stop}:{step} {before}+{after}", (outs, h, w), run, []


def attention(draw: Draw, shape: Shape) -> Made:
    c, h, w = shape
    if h * w > 64:
        return None
    heads = draw(st.sampled_from([1, *divisors(c)]))
    kind = draw(st.sampled_from(["fused", "separate", "einsum", "module"]))
    if kind == "module":
        return f"nn attention {heads}", shape, lambda m, x: m(
            y := x.flatten(2).transpose(1, 2), y, y, need_weights=False
        )[0].transpose(1, 2).reshape(-1, c, h, w), [nn.MultiheadAttention(c, heads, batch_first=True)]

    def run(qkv: nn.Module, proj: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = qkv(x.flatten(2).transpose(1, 2))
        if kind == "fused":
            q, k, v = y.reshape(-1, h * w, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in y.chunk(3, -1))
            if kind == "einsum":
                scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
                y = torch.einsum("bhij,bhjd->bhid", scores, v)
            else:
                y = (q @ k.mT / 3).softmax(-1) @ v
        return proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(-1, c, h, w)

    return f"{kind} attention {heads}", shape, run, [nn.Linear(c, 3 * c), nn.Linear(c, c)]


def excite(draw: Draw, shape: Shape) -> Made:
    c = shape[0]
    parts = [nn.Linear(c, 3), nn.Linear(3, c)]
    return "excite", shape, lambda a, b, x: x * b(a(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None], parts


UNARY = [conv, conv, depthwise, transposed, norm, norm, pointwise, spatial, blocks, blocks, channels, channels,
    attention, excite]


def gram(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Attention of the channels of one map to those of another."""
    scores = torch.bmm(x.flatten(2), y.flatten(2).mT) / 8
    return torch.bmm(scores.softmax(-1), y.flatten(2)).reshape(x.shape)


def join(draw: Draw, shapes: list[Shape]) -> tuple[str, list[int], Shape, Callable[..., Any]] | None:
    """An operator of two feature maps of one size."""
    a = draw(st.integers(0, len(shapes) - 1))
    fits = [i for i, shape in enumerate(shapes) if shape[1:] == shapes[a][1:]]
    b = draw(st.sampled_from(fits))
    (ca, h, w), cb = shapes[a], shapes[b][0]
    if draw(st.booleans()) or ca != cb:
        if draw(st.booleans()) and h * w <= 64:
            return "gram", [a, b], shapes[a], gram
        if ca + cb > MAX_CHANNELS:
            return None
        return "cat", [a, b], (ca + cb, h, w), lambda x, y: torch.cat([x, y], 1)
    name = draw(st.sampled_from(["add", "mul", "max", "where", "stack", "swap"]))
    run: Callable[..., Any] = {
        "add": torch.add,
        "mul": torch.mul,
        "max": torch.maximum,
        "where": lambda x, y: torch.where(x > 0, x, y),
        "stack": lambda x, y: torch.stack([x, y], 2).amax(2),
        "swap": lambda x, y: torch.stack([x, y], 2).flatten(1, 2)[:, :ca],
    }[name]
    return name, [a, b], shapes[a], run


@st.composite
def networks(draw: Any, most: int = 8) -> Network:
    """A network of up to ``most`` operators over images of (4, 8, 8)."""
    torch.manual_seed(0)
    shapes: list[Shape] = [(4, 8, 8)]
    steps: list[Step] = []
    for _ in range(draw(st.integers(2, most))):
        if steps and draw(st.integers(0, 5)) == 0:  # a module used again
            index = draw(st.integers(0, len(steps) - 1))
            again, shape = steps[index], shapes[index + 1]
            if len(again.sources) == 1 and shapes[again.sources[0]] == shape:
                steps.append(Step(f"again {again.text}", [index + 1], again.run, *again.parts))
                shapes.append(shape)
                continue
        if len(shapes) > 2 and draw(st.integers(0, 2)) == 0:
            joined = join(draw, shapes)
            if joined is not None:
                text, sources, shape, run = joined
                steps.append(Step(text, sources, run))
                shapes.append(shape)
            continue
        source = draw(st.sampled_from([len(shapes) - 1, len(shapes) - 1, draw(st.integers(0, len(shapes) - 1))]))
        made = draw(st.sampled_from(UNARY))(draw, shapes[source])
        if made is not None and made[1][0] <= MAX_CHANNELS:
            text, shape, run, parts = made
            steps.append(Step(text, [source], run, *parts))
            shapes.append(shape)
    return Network(steps, shapes[-1][0])


# What must hold for every network


def check(model: Network, seed: int, make_plan: Callable[[Coupling, int | None], dict[str, np.ndarray]]) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(0.5 + torch.rand_like(tensor)).add_(0.1 * torch.rand_like(tensor))
    x = torch.randn(2, 4, 8, 8)
    graph = capture(model.eval(), x)
    coupling = couple(graph)
    check_partition(coupling)
    check_text(coupling, make_plan(coupling, seed))
    everything = slice_graph(graph, coupling, coupling.full_plan())
    with torch.no_grad():
        torch.testing.assert_close(Interpreter(everything).run(everything.weights, x), model(x))
    for plan in (make_plan(coupling, None), make_plan(coupling, seed)):
        pruned = slice_graph(graph, coupling, plan)
        verify_pruned(graph, coupling, plan, pruned, [x])
        for batch in (1, 3) if graph.dynamic_batch else (2,):
            Interpreter(pruned).run(pruned.weights, torch.randn(batch, 4, 8, 8))
    again = capture(build_module(pruned, pruned.weights), x)
    second = couple(again)
    plan = make_plan(second, seed)
    verify_pruned(again, second, plan, slice_graph(again, second, plan))


def check_partition(coupling: Coupling) -> None:
    """Every unit is in one group, every rank in one block; and coupling looks at no weight."""
    units = np.concatenate([np.zeros(0, dtype=np.int64), *(group.units for group in coupling.groups)])
    assert sorted(units.tolist()) == list(range(len(coupling.unit_group)))
    for group in coupling.groups:
        assert sorted(np.concatenate(group.blocks).tolist()) == list(range(group.width))
        assert len({len(block) for block in group.blocks}) == 1
    bare = coupling.graph.copy()
    bare.weights = {}
    other = couple(bare)
    assert [(g.name, g.width, g.frozen) for g in other.groups] == [(g.name, g.width, g.frozen) for g in coupling.groups]
    assert all((a.units == b.units).all() for a, b in zip(coupling.slots, other.slots, strict=True))


def check_text(coupling: Coupling, plan: dict[str, np.ndarray]) -> None:
    """The annotated text reads back as it was written, before and after a plan is decided."""
    graph = annotate(coupling)
    for _ in range(2):
        text = print_graph(graph)
        assert print_graph(parse_graph(text)) == text
        write_plan(graph, plan)


QUICK = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


Plans = Callable[[Coupling, int | None], dict[str, np.ndarray]]


@QUICK
@given(networks(), st.integers(0, 99))
def test_random_networks(make_plan: Plans, model: Network, seed: int) -> None:
    check(model, seed, make_plan)


@pytest.mark.slow
@settings(QUICK, max_examples=600, derandomize=False, print_blob=True)
@given(networks(12), st.integers(0, 99))
def test_many_random_networks(make_plan: Plans, model: Network, seed: int) -> None:
    check(model, seed, make_plan)
