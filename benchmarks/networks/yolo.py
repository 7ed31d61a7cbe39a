"""A detector in the manner of YOLOv8: C2f (chunk, reuse, concat), SPPF, a path-aggregation neck and
a decoupled head.

The head returns raw box distributions and class scores at three scales, and the decoded boxes.
"""

import torch
from torch import Tensor, nn

BINS = 16
STRIDES = (8, 16, 32)


class Conv(nn.Sequential):
    def __init__(self, width_in: int, width: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), nn.SiLU())


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """One half goes on through every bottleneck; all intermediate results are concatenated."""

    def __init__(self, width_in: int, width: int, blocks: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1 = Conv(width_in, width)
        self.cv2 = Conv((2 + blocks) * width // 2, width)
        self.m = nn.ModuleList(Bottleneck(width // 2, shortcut) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.m)
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        parts.extend(self.pool(parts[-1]) for _ in range(3))
        return self.cv2(torch.cat(parts, 1))


class Detect(nn.Module):
    """Boxes as distributions over distances, decoded by a fixed convolution over the bins."""

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = classes
        box, score = max(16, widths[0] // 4, 4 * BINS), max(widths[0], min(classes, 100))
        self.boxes = nn.ModuleList(
            nn.Sequential(Conv(w, box, 3), Conv(box, box, 3), nn.Conv2d(box, 4 * BINS, 1))
            for w in widths
        )
        self.scores = nn.ModuleList(
            nn.Sequential(Conv(w, score, 3), Conv(score, score, 3), nn.Conv2d(score, classes, 1))
            for w in widths
        )
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        pairs = zip(features, self.boxes, self.scores, strict=True)
        raw = [torch.cat([box(x), score(x)], 1) for x, box, score in pairs]
        flat = torch.cat([x.flatten(2) for x in raw], 2)
        box, score = flat.split((4 * BINS, self.classes), 1)
        distances = box.view(box.shape[0], 4, BINS, box.shape[-1]).transpose(1, 2).softmax(1)
        decoded = (distances * self.bins).sum(1)
        return torch.cat([decoded, score.sigmoid()], 1), raw


class Yolo(nn.Module):
    def __init__(self, classes: int = 80, width: int = 16) -> None:
        super().__init__()
        a, b, c, d, e = (width * 2**i for i in range(5))
        self.stem = nn.Sequential(Conv(3, a, 3, 2), Conv(a, b, 3, 2), C2f(b, b, 1))
        self.p3 = nn.Sequential(Conv(b, c, 3, 2), C2f(c, c, 2))
        self.p4 = nn.Sequential(Conv(c, d, 3, 2), C2f(d, d, 2))
        self.p5 = nn.Sequential(Conv(d, e, 3, 2), C2f(e, e, 1), SPPF(e))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up4, self.up3 = C2f(e + d, d, 1, False), C2f(d + c, c, 1, False)
        self.down3, self.down4 = Conv(c, c, 3, 2), Conv(d, d, 3, 2)
        self.out4, self.out5 = C2f(c + d, d, 1, False), C2f(d + e, e, 1, False)
        self.detect = Detect(classes, (c, d, e))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.up4(torch.cat([self.up(p5), p4], 1))
        n3 = self.up3(torch.cat([self.up(n4), p3], 1))
        m4 = self.out4(torch.cat([self.down3(n3), n4], 1))
        m5 = self.out5(torch.cat([self.down4(m4), p5], 1))
        return self.detect([n3, m4, m5])


make_model = Yolo
input_shape = (1, 3, 160, 160)
