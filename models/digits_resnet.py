"""A small residual network for scanned digits, the network of the demo.

It has what makes pruning interesting (a residual stream shared by blocks, projection shortcuts, a
classifier) and trains from scratch on scikit-learn's digits in well under a minute on two cores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pruneopt.errors import UserError

__all__ = ["DigitsResNet", "digits_resnet"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (a 1x1 projection where the shape changes)."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.project: nn.Sequential | None = None
        if stride != 1 or inp != out:
            self.project = nn.Sequential(
                nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.project is None else self.project(x)))


class DigitsResNet(nn.Module):
    """`[N, 1, H, W] -> [N, num_classes]` for H, W of 8 or 16 (any size from 4 up works)."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), num_classes: int = 10) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1 = nn.Conv2d(1, a, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.layer1 = nn.Sequential(ResidualBlock(a, a, 1), ResidualBlock(a, a, 1))
        self.layer2 = nn.Sequential(ResidualBlock(a, b, 2), ResidualBlock(b, b, 1))
        self.layer3 = nn.Sequential(ResidualBlock(b, c, 2), ResidualBlock(c, c, 1))
        self.classifier = nn.Linear(c, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def digits_resnet(*, num_classes: int = 10, width: float = 1.0) -> DigitsResNet:
    """Create the demo's network: about 175,000 parameters at width 1.0."""
    widths = (int(16 * width), int(32 * width), int(64 * width))
    if widths[0] < 1:
        raise UserError(
            f"width={width} leaves digits_resnet without channels: use at least {1 / 16}"
        )
    return DigitsResNet(widths, num_classes)
