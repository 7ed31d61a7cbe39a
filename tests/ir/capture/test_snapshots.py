"""Usual building blocks as captured, in text. Run with --snapshot-update, and review
the diff."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.types import Axis, ChannelGroup, Part, TensorType
from pruneopt.ir.verifier import verify_graph
from pruneopt.testing import IrSnapshot


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1)
        self.fc = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        both = torch.cat([self.left(x), self.right(x)], 1)
        return {"both": both, "logits": self.fc(both.flatten(1))}


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        keep, change = torch.split(x, [2, 2], dim=1)
        y = torch.cat([keep, self.conv(change)], 1)
        batch, channels, height, width = y.shape
        return (
            y.view(batch, 2, channels // 2, height, width)
            .transpose(1, 2)
            .reshape(batch, channels, height, width)
        )


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(nn.functional.relu6(self.depthwise(self.expand(x))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) * 0.5).softmax(-1)
        return x + self.out((weights @ qkv[2]).transpose(1, 2).reshape(batch, tokens, width))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.conv(x))
        return x * torch.sigmoid(self.up(torch.relu(self.down(self.pool(x)))))


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("residual", Residual, (2, 4, 8, 8)),
    ("concat", Concat, (2, 4, 4, 4)),
    ("shuffle", Shuffle, (2, 4, 4, 4)),
    ("grouped", Grouped, (2, 4, 8, 8)),
    ("attention", Attention, (2, 5, 8)),
    ("squeeze_excite", SqueezeExcite, (2, 4, 8, 8)),
]


@pytest.mark.parametrize(("name", "build", "shape"), CASES, ids=[case[0] for case in CASES])
def test_captured_block(
    name: str,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    ir_snapshot: IrSnapshot,
) -> None:
    graph = capture(build(), torch.randn(shape))
    verify_graph(graph)
    ir_snapshot(graph, name)


GROUPS = [
    ChannelGroup("inner", 8, None, 2, ((0, 3), (4, 7))),
    ChannelGroup("trunk", 8, "model output"),
]
INNER = [
    "conv1.weight",
    "bn1.weight",
    "bn1.bias",
    "bn1.running_mean",
    "bn1.running_var",
    "conv2d",
    "batch_norm",
    "relu",
]


def test_channel_groups_show_in_types_and_header(ir_snapshot: IrSnapshot) -> None:
    """The residual block with its groups written in by hand: what coupling will find."""
    graph = capture(Residual(), torch.randn(2, 4, 8, 8))
    graph.declare_groups(GROUPS)
    for value in graph.values:
        dims = list(value.type.dims)
        if value.kind != "input" and dims:
            group = "inner" if value.name in INNER else "trunk"
            dims[1 if value.kind == "result" else 0] = Axis((Part(group, 8),))
        if value.name == "conv2.weight":
            dims[1] = Axis((Part("inner", 8),))
        graph.set_type(value, TensorType(value.type.dtype, tuple(dims)))
    text = print_graph(graph, locations=False)
    verify_graph(graph)
    assert print_graph(parse_graph(text)) == text
    ir_snapshot(graph, "groups")
