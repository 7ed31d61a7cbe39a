"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861), 224x224, with the uniform width multiplier.

ReLU is called as a function: MetaPruning's FLOPs formula counts ReLU *modules*, and its published
573.83 M for this network contains none. It does count the average pooling, hence a 7x7 one and not
an adaptive one: inputs are 224x224.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from pruneopt.errors import UserError

__all__ = ["BASE_WIDTHS", "MobileNetV1", "mobilenet_v1"]

BASE_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class SeparableConv(nn.Module):
    """Depthwise 3x3 then pointwise 1x1, each with batch norm and ReLU: `[N, inp, H, W] -> [N, out,
    H/stride, ...]`."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False)
        self.bn_dw = nn.BatchNorm2d(inp)
        self.conv_pw = nn.Conv2d(inp, out, 1, bias=False)
        self.bn_pw = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn_dw(self.conv_dw(x)))
        return F.relu(self.bn_pw(self.conv_pw(x)))


class MobileNetV1(nn.Module):
    """A stem and 13 separable blocks; `widths` are the 14 output widths. `[N, 3, H, W] -> [N,
    num_classes]`."""

    def __init__(self, widths: tuple[int, ...] = BASE_WIDTHS, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        self.bn_stem = nn.BatchNorm2d(widths[0])
        # The stride follows the base widths, so that a narrower network keeps the resolutions of
        # the full one.
        strides = (
            2 if base != BASE_WIDTHS[0] and base != after else 1
            for base, after in pairwise(BASE_WIDTHS)
        )
        blocks = (
            SeparableConv(inp, out, stride)
            for (inp, out), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AvgPool2d(7)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.bn_stem(self.conv_stem(x))))
        logits: torch.Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def mobilenet_v1(*, num_classes: int = 1000, width: float = 1.0) -> MobileNetV1:
    """Create MobileNetV1: 568.74 M conv + linear MACs at width 1.0; widths `int(base * width)` as
    in MetaPruning."""
    widths = tuple(int(base * width) for base in BASE_WIDTHS)
    if min(widths) < 1:
        raise UserError(
            f"width={width} leaves mobilenet_v1 without channels: use at least "
            f"{1 / min(BASE_WIDTHS)}"
        )
    return MobileNetV1(widths, num_classes)
