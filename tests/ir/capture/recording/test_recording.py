"""Capture by recording three runs: the graph that torch.export yields, or a refusal that leaves the
module alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Double
from torch import Tensor, nn
from torch.nn import functional as F

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.capture.check import check_capture
from pruneopt.ir.capture.exporting import exported_graph
from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.recording import interception
from pruneopt.ir.capture.recording.capture import recorded_graph
from pruneopt.ir.capture.recording.module_state import CannotRecordError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.ir.verifier import verify_graph
from pruneopt.models import zoo

X = torch.randn(2, 3, 8, 8)


def recorded(module: nn.Module, *inputs: Tensor) -> Graph:
    name = type(module).__name__
    return recorded_graph(module.eval(), inputs, ModuleTable(module, frozenset()), name, ())


def exported(module: nn.Module, *inputs: Tensor) -> Graph:
    name = type(module).__name__
    table = ModuleTable(module.eval(), frozenset())
    return exported_graph(module, inputs, table, name, (), dynamic_batch=True)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.act = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Hardswish(inplace=True)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.act(self.bn1(self.conv1(x)))
        y = y + self.conv2(y)
        y += 1
        pooled = self.drop(y.mean((2, 3)))
        return {"out": self.head(pooled), "parts": (y, [pooled.relu_()]), "none": None, "number": 3}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.embed, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        y = self.embed(x).reshape(n, 16, -1).transpose(1, 2)
        y = self.norm(torch.cat([self.token.expand(n, -1, -1), y], 1))
        y = y + self.attention(y, y, y, need_weights=False)[0]
        rows = torch.arange(n, device=y.device).view(n, 1)
        with torch.no_grad():
            scale = y.std()
        return y.chunk(2, -1)[0].reshape(-1, 8) / scale + rows.sum()


class Layers(nn.Module):
    """Layers and functions that are written down the short way, and calls of them that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect"),
        )
        self.norm, self.layer = nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.acts = nn.ModuleList(
            [
                nn.ReLU6(True),
                nn.SiLU(),
                nn.Hardsigmoid(),
                nn.GELU(),
                nn.GELU("tanh"),
                nn.Sigmoid(),
                nn.Hardtanh(-2, 2),
            ]
        )
        self.pool, self.free = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((4, 2))
        self.hooked, self.head = nn.ReLU(), nn.Linear(192, 5, bias=False)
        self.hooked.register_forward_hook(lambda module, args, result: result + 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        gate = torch.sigmoid(F.adaptive_avg_pool2d(y, 1))
        y = gate * y + (y * self.pool(y) - y)
        y = self.layer(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous() * 2
        for act in self.acts:
            y = act(self.same(y)) if act is self.acts[0] else act(y)
        y = torch.cat((y, F.relu(y), self.hooked(y)), dim=1) + torch.tanh(input=y).mean()
        return self.free(F.dropout(y.mul(y), 0.1, self.training)).flatten(1) @ self.head.weight.t()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(1, 4, 1), persistent=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embed(words) * self.mask)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (Residual(), X),
    "attention": lambda: (Attention(), X),
    "tied": lambda: (Tied(), torch.randint(0, 20, (2, 4))),
    "sequential": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout()),
        X,
    ),
    "mobilenet_v1": lambda: (zoo.create("mobilenet_v1", width=0.25), torch.randn(2, 3, 224, 224)),
}


def drop_contiguous(graph: Graph) -> None:
    for op in [op for op in graph.ops if op.base == "contiguous"]:
        source = op.value(0)
        assert source is not None
        graph.replace_uses(op.result, source)
        graph.erase(op)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_graph_is_the_exported_one(name: str) -> None:
    module, x = NETWORKS[name]()
    before = (
        dict(module.named_parameters()),
        {key: tensor.clone() for key, tensor in module.state_dict().items()},
    )
    graph = recorded(module, x)
    verify_graph(graph)
    assert all(
        now is then for now, then in zip(module.parameters(), before[0].values(), strict=True)
    )
    assert all(torch.equal(tensor, before[1][key]) for key, tensor in module.state_dict().items())
    other = exported(module, x)
    if torch.__version__.startswith(("2.11.", "2.12.")):  # torch.export drops some of them
        drop_contiguous(graph)
        drop_contiguous(other)
    assert graph == other
    assert graph.notes == other.notes
    assert {key: tensor.data_ptr() for key, tensor in graph.weights.items()} == {
        key: tensor.data_ptr() for key, tensor in other.weights.items()
    }


@pytest.mark.parametrize("name", [*NETWORKS, "layers"])
def test_the_short_way_writes_down_the_same_calls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = NETWORKS[name]() if name in NETWORKS else (Layers(), X)
    graph = recorded(module, x)
    assert check_capture(module, graph, (x,)) is None
    monkeypatch.setattr(interception, "ATEN_CALL_OF", {})
    monkeypatch.setattr(interception, "PASS_THROUGH", frozenset())
    monkeypatch.setattr(interception, "module_call", lambda *args: None)
    assert graph == recorded(module, x)


def masked(module: Any, x: Tensor) -> Tensor:
    """Swin's mask: regions are numbered by writing into slices."""
    mask = x.new_zeros((8, 8))
    for number, rows in enumerate((slice(0, 3), slice(3, -2), slice(-2, None))):
        mask[rows, 1:] = number
    mask[2, -1] = 5
    mask[:, 3] = x.new_ones(8)
    return module.conv((x + mask) * mask.view(2, 4, 8).permute(1, 0, 2).reshape(8, 8))


def viewed(module: Any, x: Tensor) -> Tensor:
    """Views that were made before their tensor is written."""
    y = module.conv(x)
    flat, (left, right), first = y.view(y.shape[0], 4, -1), y.chunk(2, 1), y[:, 0]
    y.mul_(2)
    first += 1
    y[..., 1:, :].relu_()
    return y + flat.sum() + torch.cat([right, left], 1) * first.unsqueeze(1)


def unread(module: Any, x: Tensor) -> Tensor:
    y = module.conv(x)
    y[:, 1:3].sigmoid_()
    z = y[:, :2]
    z -= 3
    return z


def without_gradients(module: Any, x: Tensor) -> Tensor:
    y = module.conv(x)
    with torch.no_grad():
        scale = y.new_ones((1, 4, 1, 1))
        scale[:, 2] = 4
    return y * scale


WRITES = {
    "a mask": masked,
    "views": viewed,
    "a part": unread,
    "without gradients": without_gradients,
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_into_parts_of_tensors_reach_the_whole(name: str) -> None:
    module = Module(WRITES[name])
    graph = recorded(module, X)
    verify_graph(graph)
    assert check_capture(module, graph, (X,)) is None


def test_a_write_through_a_view_that_is_no_slice_is_left_to_export() -> None:
    def through(module: Any, x: Tensor) -> Tensor:
        y = module.conv(x)
        y.transpose(1, 2)[:, 1:] = 0
        return y

    with pytest.raises(CannotRecordError, match="no slice"):
        recorded(Module(through), X)


class Shared(nn.Module):
    """One layer under two names, one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.again = self.first
        self.blocks = nn.ModuleList([nn.Sequential(self.first, self.norm), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.again(self.blocks[0](self.first(x)))) + self.blocks[1](x)


def test_a_module_under_two_names_is_one() -> None:
    module = Shared()
    graph = recorded(module, X)
    assert check_capture(module.eval(), graph, (X,)) is None
    other = exported(module, X)
    assert graph.aliases == other.aliases
    assert [op.target for op in graph.ops] == [op.target for op in other.ops]
    built = build_module(graph, graph.weights)
    assert torch.allclose(built(X), module(X), atol=1e-6)


def test_a_slice_that_takes_all_of_the_batch_is_left_out() -> None:
    class Slices(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:, ::2]

    graph, other = recorded(Slices(), X), exported(Slices(), X)
    whole = [op for op in other.ops if op.result.type == next(iter(op.inputs)).type]
    assert [op.target for op in graph.ops] == [op.target for op in other.ops if op not in whole]
    assert [op.result.type for op in graph.ops] == [
        op.result.type for op in other.ops if op not in whole
    ]


class Module(nn.Module):
    """A network whose forward is a function."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function
        self.cache: dict[str, Tensor] = {}
        self.number, self.plain = 0, torch.ones(1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def count(module: Any, x: Tensor) -> Tensor:
    module.number += 1
    return module.conv(x)


def remember(module: Any, x: Tensor) -> Tensor:
    if "y" not in module.cache:
        module.cache["y"] = module.conv.weight.sum()
    return module.conv(x) * module.cache["y"]


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "branch on a value": (
        lambda module, x: x if x.sum() > 0 else module.conv(x),
        r"item\(\) cannot be called on meta tensors",
    ),
    "branch on a large batch": (
        lambda module, x: module.conv(x) if x.shape[0] < 100 else x,
        "the calls depend on the batch size",
    ),
    "branch on even batches": (
        lambda module, x: module.conv(x) if x.shape[0] % 2 else x,
        "the calls depend on the batch size",
    ),
    "branch on batches of seven": (
        lambda module, x: module.conv(x) if x.shape[0] % 7 else x,
        "the calls depend on the batch size",
    ),
    "arithmetic with the batch": (
        lambda module, x: module.conv(x) / x.shape[0],
        "aten.div.Tensor computes with the batch size",
    ),
    "a size that is no multiple": (
        lambda module, x: module.conv(x)[: x.shape[0] // 2],
        r"a size is \(1, 1, 360360\) at batch sizes",
    ),
    "a constant": (lambda module, x: module.conv(x) * module.plain, "no parameter, buffer or"),
    "numbers": (lambda module, x: module.conv(x) * torch.tensor([2.0]), "no parameter, buffer or"),
    "a function of its own": (
        lambda module, x: Double.apply(module.conv(x)),
        "a torch.autograd.Function is applied",
    ),
    "a counter": (count, "the module changes its own attributes"),
    "a cache": (remember, "no parameter, buffer or input"),
    "writes into its input": (
        lambda module, x: module.conv(x.add_(1)),
        "aten.add_.Tensor writes into an input or a weight",
    ),
    "writes into a weight": (
        lambda module, x: module.conv(x) * module.conv.weight.view(-1)[:1].mul_(2),
        "aten.mul_.Tensor writes into an input or a weight",
    ),
    "autocast": (
        torch.autocast("cpu", torch.bfloat16)(lambda module, x: module.conv(x)),
        "autocast is on",
    ),
    "gradients": (
        lambda module, x: module.conv(x) if x.requires_grad else x,
        "what a tensor without data cannot tell",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recording_cannot_tell_is_left_to_export(name: str) -> None:
    function, why = REFUSED[name]
    module = Module(function)
    weight = module.conv.weight
    values = weight.detach().clone()
    with pytest.raises(CannotRecordError, match=why):
        recorded(module, X)
    assert (module.cache, module.number) == ({}, 0)
    assert module.conv.weight is weight
    assert torch.equal(weight, values)
    assert nn.Module.__call__.__module__ == "torch.nn.modules.module"
    assert Double.apply(torch.ones(1)).item() == 2
    assert module.conv(X).device.type == "cpu"


ASKED_FOR = "a fixed batch size or another forward was asked for"


@pytest.mark.parametrize(
    ("build", "options", "why"),
    [
        (Residual, {}, None),
        (lambda: Module(count), {}, "the module changes its own attributes"),
        (Residual, {"dynamic_batch": False}, ASKED_FOR),
        (Residual, {"forward": lambda module, x: module.conv1(x)}, ASKED_FOR),
        (
            lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1))),
            {},
            "the model is a GraphModule, or grad mode is off",
        ),
    ],
)
def test_a_graph_says_why_it_was_exported(
    build: Callable[[], nn.Module], options: dict[str, Any], why: str | None
) -> None:
    graph = capture(build(), X, **options)
    assert graph.exported_because == why
    assert graph.copy().exported_because == why


def test_weights_without_values_are_enough() -> None:
    with torch.device("meta"):
        module = Residual()
    graph = capture(module, X)
    assert graph == capture(Residual(), X)
    assert all(tensor.is_meta for tensor in graph.weights.values())


def test_a_loop_over_the_first_dimension_ends_at_the_second_run() -> None:
    """The third run has hundreds of thousands of rows."""

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = [row.relu() for row in x]
            return torch.stack(rows)

    for module in (Rows(), nn.GRU(4, 3)):
        with pytest.raises(CannotRecordError, match=r"depend on the batch size|taken step by step"):
            recorded(module, torch.randn(2, 5, 4))
