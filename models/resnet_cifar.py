"""The CIFAR ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2) with option-A shortcuts.

State-dict keys are those of akamaster/pytorch_resnet_cifar10, whose published weights load as they
are: `conv1, bn1, layerL.B.{conv1,bn1,conv2,bn2}, linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pruneopt.errors import UserError

__all__ = ["BasicBlock", "ResNetCifar", "resnet20", "resnet32", "resnet56"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: `[N, inp, H, W] -> [N, out, H/stride,
    W/stride]`."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride = stride
        self.extra = out - inp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        """Return shortcut A: every second pixel, and zero channels on both sides."""
        if self.stride == 1 and self.extra == 0:
            return x
        before = self.extra // 2
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before)
        )


class ResNetCifar(nn.Module):
    """Depth 6n + 2: three stages of n blocks, strides 1, 2, 2. `[N, 3, 32, 32] -> [N,
    num_classes]`."""

    def __init__(
        self, blocks: int, widths: tuple[int, int, int] = (16, 32, 64), num_classes: int = 10
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1 = nn.Conv2d(3, a, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.layer1 = _stage(blocks, a, a, stride=1)
        self.layer2 = _stage(blocks, a, b, stride=2)
        self.layer3 = _stage(blocks, b, c, stride=2)
        self.linear = nn.Linear(c, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(blocks: int, inp: int, out: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(inp, out, stride)
    return nn.Sequential(first, *(BasicBlock(out, out, 1) for _ in range(blocks - 1)))


def _resnet(depth: int, num_classes: int, width: float) -> ResNetCifar:
    widths = (int(16 * width), int(32 * width), int(64 * width))
    if widths[0] < 1:
        raise UserError(
            f"width={width} leaves resnet{depth} without channels: use at least {1 / 16}"
        )
    return ResNetCifar((depth - 2) // 6, widths, num_classes)


def resnet20(*, num_classes: int = 10, width: float = 1.0) -> ResNetCifar:
    """Create CIFAR ResNet-20: 269,722 parameters."""
    return _resnet(20, num_classes, width)


def resnet32(*, num_classes: int = 10, width: float = 1.0) -> ResNetCifar:
    """Create CIFAR ResNet-32: 464,154 parameters."""
    return _resnet(32, num_classes, width)


def resnet56(*, num_classes: int = 10, width: float = 1.0) -> ResNetCifar:
    """Create CIFAR ResNet-56: 853,018 parameters, 125.49 M MACs."""
    return _resnet(56, num_classes, width)
