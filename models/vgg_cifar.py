"""VGG-19 for 32x32 images with batch norm: 16 convolutions and one linear layer.

The form used by Network Slimming (Liu et al. 2017) and GReg: convolutions without bias, four
max-poolings, average pooling of the last 2x2 map. 398.18 M MACs with 100 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pruneopt.errors import UserError

__all__ = ["VGGCifar", "vgg19_cifar"]

STAGES = (
    (64, 2),
    (128, 2),
    (256, 4),
    (512, 4),
    (512, 4),
)  # width, convolutions; a max-pooling between stages


class VGGCifar(nn.Module):
    """`[N, 3, 32, 32] -> [N, num_classes]`; layers are numbered in one `features` sequence, as in
    the original."""

    def __init__(self, stages: tuple[tuple[int, int], ...] = STAGES, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inp = 3
        for index, (out, repeat) in enumerate(stages):
            if index:
                layers.append(nn.MaxPool2d(2))
            for _ in range(repeat):
                layers += [
                    nn.Conv2d(inp, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(inplace=True),
                ]
                inp = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inp, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(
            F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        )
        return logits


def vgg19_cifar(*, num_classes: int = 10, width: float = 1.0) -> VGGCifar:
    """Create VGG-19 with batch norm for CIFAR: 20.04 M parameters with 10 classes."""
    stages = tuple((int(out * width), repeat) for out, repeat in STAGES)
    if stages[0][0] < 1:
        raise UserError(f"width={width} leaves vgg19_cifar without channels: use at least {1 / 64}")
    return VGGCifar(stages, num_classes)
