"""A small convolutional network for 8x8 scanned digits, as a model file for pruneopt.

pruneopt inspect examples/small_cnn.py
pruneopt compile examples/small_cnn.py --pass l1 --budget 50%FLOPs --finetune-epochs 5
pruneopt compile examples/small_cnn.py:wide --weights wide.safetensors --pass abn --budget 30%FLOPs
"""

import torch
import torch.nn.functional as F
from torch import nn


class SmallCNN(nn.Module):
    """Three convolutions, the second with a shortcut, and a linear classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.body_norm = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.head_norm = nn.BatchNorm2d(2 * width)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(
            x + self.body_norm(self.body(x))
        )  # stem and body share their channels: they are cut together
        x = F.relu(self.head_norm(self.head(x)))
        return self.classifier(x.mean((2, 3)))


# What `examples/small_cnn.py` stands for; `examples/small_cnn.py:wide` names the other one.
def make_model() -> nn.Module:
    return SmallCNN(16)


def wide() -> nn.Module:
    return SmallCNN(64)


input_shape = (1, 1, 8, 8)
data = "digits"
