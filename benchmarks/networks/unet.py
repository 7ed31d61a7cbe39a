"""A U-Net: long skips by concatenation, transposed convolutions."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class Double(nn.Sequential):
    def __init__(self, width_in: int, width: int) -> None:
        parts = [
            nn.Conv2d(width_in, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        parts += [
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        super().__init__(*parts)


class UNet(nn.Module):
    def __init__(self, classes: int = 2, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.first = Double(3, width)
        self.down = nn.ModuleList(Double(a, b) for a, b in pairwise(widths))
        self.pool = nn.MaxPool2d(2)
        back = list(reversed(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairwise(back))
        self.join = nn.ModuleList(Double(2 * b, b) for b in back[1:])
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.first(x)]
        for block in self.down:
            skips.append(block(self.pool(skips[-1])))
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return self.last(x)


make_model = UNet
input_shape = (1, 3, 96, 96)
