"""A U-Net for volumes: three-dimensional convolutions, instance norm, trilinear upsampling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Double(nn.Sequential):
    def __init__(self, width_in: int, width: int) -> None:
        parts: list[nn.Module] = []
        for a in (width_in, width):
            parts += [
                nn.Conv3d(a, width, 3, padding=1),
                nn.InstanceNorm3d(width, affine=True),
                nn.LeakyReLU(0.01),
            ]
        super().__init__(*parts)


class UNet3d(nn.Module):
    def __init__(self, classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            Double(1, width),
            Double(width, 2 * width),
            Double(2 * width, 4 * width),
        )
        self.back_two, self.back_one = Double(6 * width, 2 * width), Double(3 * width, width)
        self.last = nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool3d(one, 2))
        three = self.three(F.max_pool3d(two, 2))
        up = F.interpolate(three, scale_factor=2, mode="trilinear", align_corners=False)
        two = self.back_two(torch.cat([two, up], 1))
        up = F.interpolate(two, scale_factor=2, mode="trilinear", align_corners=False)
        return self.last(self.back_one(torch.cat([one, up], 1)))


make_model = UNet3d
input_shape = (1, 1, 16, 32, 32)
