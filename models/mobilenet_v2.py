"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) at 1.4x, with the exact widths MetaPruning
uses.

The multiplier is not applied to the last 1x1 convolution (1280), and the widths are not rounded to
multiples of 8: 44, 22, 33, 44, 88, 132, 224, 448. ReLU6 is called as a function, and the pooling is
7x7 (see mobilenet_v1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pruneopt.errors import UserError

__all__ = ["MobileNetV2", "mobilenet_v2_1_4"]

STEM = 44
# Of each stage: output width, blocks, stride of the first block.
STAGES = ((22, 1, 1), (33, 2, 2), (44, 3, 2), (88, 4, 2), (132, 3, 1), (224, 3, 2), (448, 1, 1))
LAST = 1280


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 (no activation), shortcut where shape allows."""

    def __init__(self, inp: int, mid: int, out: int, stride: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and inp == out
        self.conv_expand = nn.Conv2d(inp, mid, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(mid)
        self.conv_dw = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.bn_dw = nn.BatchNorm2d(mid)
        self.conv_project = nn.Conv2d(mid, out, 1, bias=False)
        self.bn_project = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = F.relu6(self.bn_expand(self.conv_expand(x)))
        y = F.relu6(self.bn_dw(self.conv_dw(y)))
        y = self.bn_project(self.conv_project(y))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """`[N, 3, H, W] -> [N, num_classes]`; the first bottleneck has expansion 1 yet keeps its 1x1,
    as the published."""

    def __init__(
        self, stem: int, stages: tuple[tuple[int, int, int], ...], num_classes: int
    ) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn_stem = nn.BatchNorm2d(stem)
        blocks: list[nn.Module] = []
        inp = stem
        for out, repeat, first_stride in stages:
            for i in range(repeat):
                expansion = 6 if blocks else 1
                blocks.append(
                    InvertedResidual(inp, inp * expansion, out, first_stride if i == 0 else 1)
                )
                inp = out
        self.blocks = nn.Sequential(*blocks)
        self.conv_last = nn.Conv2d(inp, LAST, 1, bias=False)
        self.bn_last = nn.BatchNorm2d(LAST)
        self.pool = nn.AvgPool2d(7)
        self.classifier = nn.Linear(LAST, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu6(self.bn_stem(self.conv_stem(x))))
        x = F.relu6(self.bn_last(self.conv_last(x)))
        logits: torch.Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def mobilenet_v2_1_4(*, num_classes: int = 1000, width: float = 1.0) -> MobileNetV2:
    """Create MobileNetV2 1.4x: 568.24 M convolution MACs. `width` scales the 1.4x widths further
    (`int(base * width)`)."""
    stem = int(STEM * width)
    stages = tuple((int(out * width), repeat, stride) for out, repeat, stride in STAGES)
    if min(stem, *(out for out, _, _ in stages)) < 1:
        raise UserError(
            f"width={width} leaves mobilenet_v2_1_4 without channels: use at least {1 / 22:.3f}"
        )
    return MobileNetV2(stem, stages, num_classes)
