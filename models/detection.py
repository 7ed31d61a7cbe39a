"""The part of torchvision's detectors that a graph can hold: everything up to the raw outputs of
the heads.

What follows them (anchors, non-maximum suppression, cutting out proposals) has sizes that depend on
the image, and no channels. `raw_outputs` gives a detector a ``forward`` that stops there. Whatever
the left-out code reads is an output of it, and whatever it hands back is an input; pruning keeps
both as they are, so that the detector goes on working.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.calling import replace_forward

__all__ = ["RAW", "raw_outputs"]

RAW = "captured up to the raw outputs of its heads"
MIN_SIZE = 320
"""Height and width of the example image where a detector takes any size."""
MASK_SIZE, BOX_SIZE = 14, 7


def raw_outputs(module: nn.Module) -> tuple[Tensor, ...] | None:
    """Make a detector return its raw outputs, in place; return example inputs, or None for another
    network.

    RetinaNet, FCOS and SSD take images [N, 3, H, W] and return what their head returns. The R-CNNs
    take the cut-out features of the proposals too, [N, C, 7, 7] for boxes and [N, C, 14, 14] for
    masks and keypoints, and return a dictionary: the features, the outputs of the proposal head,
    and those of the other heads.
    """
    from torchvision.models import detection

    dense = (detection.RetinaNet, detection.FCOS, detection.ssd.SSD)
    size = _image_size(module)
    if isinstance(module, dense):
        replace_forward(module, _dense)
        return (torch.randn(1, 3, *size),)
    if isinstance(module, detection.generalized_rcnn.GeneralizedRCNN):
        replace_forward(module, _rcnn)
        channels = module.backbone.out_channels
        return torch.randn(1, 3, *size), *(
            torch.randn(1, channels, s, s) for s in _pooled_sizes(module)
        )
    return None


def _image_size(module: nn.Module) -> tuple[int, int]:
    """Return the size that the detector scales images to, (height, width); `MIN_SIZE` where it
    takes any."""
    fixed = getattr(getattr(module, "transform", None), "fixed_size", None)
    return (fixed[1], fixed[0]) if fixed else (MIN_SIZE, MIN_SIZE)


def _features(module: Any, images: Tensor) -> dict[str, Tensor]:
    found = module.backbone(images)
    return {"0": found} if isinstance(found, Tensor) else dict(found)


def _dense(module: Any, images: Tensor) -> Any:
    return module.head(list(_features(module, images).values()))


def _second_heads(module: Any) -> list[tuple[str, Any, Any]]:
    """Return name, head and predictor of each part that an R-CNN runs on cut-out features beside
    its boxes."""
    heads = module.roi_heads
    names = ("mask", "keypoint")
    kinds = [
        (name, getattr(heads, f"{name}_head"), getattr(heads, f"{name}_predictor"))
        for name in names
    ]
    return [kind for kind in kinds if kind[1] is not None]


def _pooled_sizes(module: Any) -> list[int]:
    return [BOX_SIZE] + [MASK_SIZE for _ in _second_heads(module)]


def _rcnn(module: Any, images: Tensor, boxes: Tensor, *others: Tensor) -> dict[str, Any]:
    features = _features(module, images)
    objectness, deltas = module.rpn.head(list(features.values()))
    heads = module.roi_heads
    found = {"features": features, "objectness": objectness, "deltas": deltas}
    found["boxes"] = heads.box_predictor(heads.box_head(boxes))
    for (name, head, predictor), pooled in zip(_second_heads(module), others, strict=True):
        found[name] = predictor(head(pooled))
    return found
