"""RepVGG-A0 (Ding et al. 2021, arXiv 2101.03697) in its training-time form, 224x224.

Every block adds a 3x3, a 1x1 and, where the shape allows, an identity branch, each with its own
batch norm. Keys follow DingXiaoH/RepVGG: `stage1.0.rbr_dense.conv.weight`, `rbr_1x1`,
`rbr_identity`, `linear`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from pruneopt.errors import UserError

__all__ = ["RepVGG", "RepVGGBlock", "repvgg_a0"]

BLOCKS = (2, 4, 14, 1)
WIDTHS = (48, 48, 96, 192, 1280)  # stage0 to stage4: 64, 64, 128, 256 x 0.75 and 512 x 2.5


def _conv_bn(inp: int, out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out)))


class RepVGGBlock(nn.Module):
    """`relu(bn(conv3x3(x)) + bn(conv1x1(x)) [+ bn(x)])`: `[N, inp, H, W] -> [N, out, H/stride,
    W/stride]`."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.rbr_dense = _conv_bn(inp, out, 3, stride)
        self.rbr_1x1 = _conv_bn(inp, out, 1, stride)
        self.rbr_identity = nn.BatchNorm2d(inp) if inp == out and stride == 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            y = y + self.rbr_identity(x)
        return F.relu(y)


class RepVGG(nn.Module):
    """`[N, 3, H, W] -> [N, num_classes]`, five stages of stride 2."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, num_classes: int = 1000) -> None:
        super().__init__()
        self.stage0 = RepVGGBlock(3, widths[0], 2)
        stages = [_stage(*args) for args in zip(widths, widths[1:], BLOCKS, strict=False)]
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage2(self.stage1(self.stage0(x)))
        x = self.stage4(self.stage3(x))
        logits: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(inp: int, out: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        RepVGGBlock(inp, out, 2), *(RepVGGBlock(out, out, 1) for _ in range(blocks - 1))
    )


def repvgg_a0(*, num_classes: int = 1000, width: float = 1.0) -> RepVGG:
    """Create RepVGG-A0, training form: 9.11 M parameters with 1000 classes."""
    widths = tuple(int(base * width) for base in WIDTHS)
    if min(widths) < 1:
        raise UserError(
            f"width={width} leaves repvgg_a0 without channels: use at least {1 / min(WIDTHS):.3f}"
        )
    return RepVGG(widths, num_classes)
