"""A detector with a pyramid and two heads: pruned up to its raw outputs, whatever chooses among
them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, nms

import pruneopt
from pruneopt.errors import UserError

IMAGE = (1, 3, 16, 16)
CLASSES, BEST = 3, 5


def conv(ins: int, outs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()
    )


def head(outs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, outs, 3, padding=1),
    )


class Detector(nn.Module):
    """Two levels of a pyramid; both heads serve both levels (RetinaNet, FCOS)."""

    def __init__(self, choose: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.c1, self.c2 = conv(3, 8, 2), conv(8, 12, 2), conv(12, 16, 2)
        self.l1, self.l2 = nn.Conv2d(12, 8, 1), nn.Conv2d(16, 8, 1)
        self.smooth = nn.Conv2d(8, 8, 3, padding=1)
        self.boxes, self.scores = head(4), head(CLASSES)
        self.choose = choose

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (batch, anchors, 4) and scores (batch, anchors, classes) of all places."""
        low = self.c1(self.stem(x))
        high = self.c2(low)
        top = self.l2(high)
        levels = [self.smooth(self.l1(low) + F.interpolate(top, scale_factor=2.0)), top]
        corners = torch.cat([self.boxes(level).flatten(2) for level in levels], 2).mT
        boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:].exp()], -1)
        return boxes, torch.cat([self.scores(level).flatten(2) for level in levels], 2).mT.sigmoid()

    def forward(self, x: Tensor) -> Any:
        return self.choose(*self.raw(x))


def suppressed(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """One image, one class."""
    keep = nms(boxes[0], scores[0, :, 0], 0.5)
    return boxes[0, keep], scores[0, keep, 0]


def suppressed_by_class(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best, kinds = scores[0].max(-1)
    keep = batched_nms(boxes[0], best, kinds, 0.5)[:BEST]
    return boxes[0, keep], best[keep], kinds[keep]


def best_anchors(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The choice of detectors without suppression (DETR, YOLOv10): a fixed number of rows."""
    best, kinds = scores.max(-1)
    values, places = best.topk(BEST, 1)
    return boxes.gather(1, places.unsqueeze(-1).expand(-1, -1, 4)), values, kinds.gather(1, places)


def raw(model: Detector, x: Tensor) -> tuple[Tensor, Tensor]:
    return model.raw(x)


def made(choose: Callable[[Tensor, Tensor], Any]) -> Detector:
    torch.manual_seed(0)
    return Detector(choose).eval()


FREE = {"stem.0", "c1.0", "c2.0", "boxes.0", "scores.0"}


def test_raw_outputs(prove: Callable[..., Any]) -> None:
    """Lateral layers and the smoothed sum go together, and each head loses channels of its own."""
    coupling = prove(made(lambda boxes, scores: (boxes, scores)), torch.randn(IMAGE))
    free = {group.name: group.width for group in coupling.free}
    assert len(free) == len(FREE) + 1
    assert (
        free.items() >= {"stem.0": 8, "c1.0": 12, "c2.0": 16, "boxes.0": 8, "scores.0": 8}.items()
    )
    assert {group.name for group in coupling.groups if group.frozen} == {"boxes.3", "scores.3"}


def test_rows_chosen_by_number(prove: Callable[..., Any]) -> None:
    """Rows of boxes are picked by number, which touches no channel of the network before."""
    coupling = prove(made(best_anchors), torch.randn(IMAGE))
    assert {group.name for group in coupling.free} >= FREE
    assert not coupling.unknown


def test_suppression_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        UserError,
        match=r"Detector cannot be captured: .* non-maximum suppression; capture the part",
    ):
        pruneopt.capture(made(suppressed), torch.randn(IMAGE))


@pytest.mark.parametrize("choose", [suppressed, suppressed_by_class])
def test_suppression_stays_in_the_slimmed_module(choose: Callable[[Tensor, Tensor], Any]) -> None:
    """The part before is pruned and proved; then the whole module, suppression included, runs at
    the new widths."""
    model, x = made(choose), torch.randn(IMAGE)
    graph = pruneopt.capture(model, x, forward=raw)
    result = pruneopt.PassManager.parse("couple,cost,l1{budget=50%FLOPs},slice,verify").run(graph)
    assert result.verification is not None
    assert result.verification.equivalent
    result.apply_(model, forward=raw)
    assert model.c2[0].out_channels < 16
    with torch.no_grad():
        expected = choose(*result.module(x))
        for mine, theirs in zip(model(x), expected, strict=True):
            torch.testing.assert_close(mine, theirs)
