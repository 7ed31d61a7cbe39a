"""From stored images to network inputs: channels, size, augmentation, normalisation; and images
kept in files.

Images are stored as uint8 `[n, C, H, W]` in the size of their source and prepared on the device,
batch by batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from pruneopt.errors import UserError
from pruneopt.models.workload import Device, Split, seeded

__all__ = ["AUGMENTATIONS", "NORMALISATIONS", "ImageFileSplit", "Preprocess"]

# Mean and standard deviation per channel, of pixels scaled to 0..1.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}
AUGMENTATIONS = ("none", "shift", "shift-flip", "crop-flip")
CACHE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Stored images to inputs of shape `[n, *shape]`, float32.

    Attributes:
        shape: `(C, H, W)` of the network's input.
        normalise: a key of `NORMALISATIONS`.
        augment: `none`, `shift` (up to an eighth of the size, zero padding, 4 pixels of 32),
            `shift-flip` (and mirror half of the images), `crop-flip` (random resized crop and
            mirror, as for ImageNet).
    """

    shape: tuple[int, int, int]
    normalise: str
    augment: str

    def __post_init__(self) -> None:
        mean, _ = NORMALISATIONS[self.normalise]
        if len(mean) not in (1, self.shape[0]):
            raise UserError(
                f"normalise={self.normalise} is for {len(mean)} channels but the network takes "
                f"{self.shape[0]}: "
                "use normalise=half or normalise=none"
            )

    def __call__(self, stored: Tensor, augment: bool, generator: torch.Generator) -> Tensor:
        """Turn stored images `[n, C0, H0, W0]`, uint8 (or floats already in 0..1), into inputs `[n,
        C, H, W]`."""
        images = _resized(_with_channels(stored, self.shape[0]), self.shape[1:])
        if augment:
            images = self.augmented(images, generator)
        return self.normalised(images)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shift, mirror or crop each image on its own; random numbers come from `generator` (on the
        CPU)."""
        if self.augment == "none":
            return images
        if self.augment == "crop-flip":
            crop = v2.Compose(
                [v2.RandomResizedCrop(self.shape[1:], antialias=True), v2.RandomHorizontalFlip()]
            )
            with seeded(int(torch.randint(2**62, (1,), generator=generator))):
                return torch.stack([crop(image) for image in images])
        images = _shifted(images, generator)
        return _mirrored(images, generator) if self.augment == "shift-flip" else images

    def normalised(self, images: Tensor) -> Tensor:
        """Return `(x - mean) / std` of pixels in 0..1; uint8 pixels are divided by 255 first."""
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None]
            for v in NORMALISATIONS[self.normalise]
        )
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        normalised: Tensor = (pixels - mean) / std
        return normalised


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if images.shape[1] == 3 and channels == 1:
        grey: Tensor = tv.rgb_to_grayscale(images)
        return grey
    raise UserError(
        f"images of {images.shape[1]} channels cannot feed a network that takes {channels}"
    )


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    resized: Tensor = tv.resize(images, list(size), antialias=True)
    return resized


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by an eighth and cut the original size out at a random place, all images in one
    gather."""
    count, channels, height, width = images.shape
    reach = max(1, max(height, width) // 8)
    padded: Tensor = tv.pad(images, [reach])
    offsets = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator).to(images.device)
    rows = (offsets[0] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, None, :]
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[image, channel, rows, columns]


def _mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(chosen[:, None, None, None], tv.horizontal_flip(images), images)


_Form = Callable[[Path], Tensor]


class ImageFileSplit(Split):
    """Images in files, decoded as they are needed; unaugmented ones stay in memory when all of them
    fit.

    Without augmentation an image is resized so that its shorter side is 8/7 of the input's longer
    side (256 for 224) and the centre is cut out. With it, `preprocess.augment` works on the whole
    decoded image.
    """

    def __init__(
        self, files: Sequence[Path], labels: Tensor, indices: Tensor, preprocess: Preprocess
    ) -> None:
        super().__init__(indices)
        self._files = files
        self._labels = labels
        self._preprocess = preprocess
        self._decoded: dict[torch.device, Tensor] = {}
        self._keep = len(indices) * torch.Size(preprocess.shape).numel() <= CACHE_BYTES

    def fetch(
        self, positions: Tensor, *, augment: bool, generator: torch.Generator, device: Device
    ) -> tuple[Tensor, Tensor]:
        rows = self.indices[positions]
        labels = self._labels[rows].to(device)
        if augment and self._preprocess.augment != "none":
            images = self._augmented(rows, generator).to(device)
        elif self._keep:
            images = self._all(torch.device(device))[positions.to(device)]
        else:
            images = torch.stack(self._decode(rows, self._centre)).to(device)
        return self._preprocess.normalised(images), labels

    def select(self, positions: Tensor) -> ImageFileSplit:
        return ImageFileSplit(self._files, self._labels, self.indices[positions], self._preprocess)

    def _all(self, device: torch.device) -> Tensor:
        if device not in self._decoded:
            self._decoded[device] = torch.stack(self._decode(self.indices, self._centre)).to(device)
        return self._decoded[device]

    def _augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Decode in threads, and crop here: the order of random numbers must not depend on the
        threads."""
        if self._preprocess.augment == "crop-flip":
            images = self._decode(rows, self._whole)
            return torch.cat(
                [self._preprocess.augmented(image[None], generator) for image in images]
            )
        return self._preprocess.augmented(torch.stack(self._decode(rows, self._centre)), generator)

    def _decode(self, rows: Tensor, form: _Form) -> list[Tensor]:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return list(pool.map(lambda row: form(self._files[row]), rows.tolist()))

    def _whole(self, file: Path) -> Tensor:
        """Return the image as uint8 `[C, H0, W0]`."""
        try:
            with Image.open(file) as image:
                pixels: Tensor = tv.pil_to_tensor(image.convert("RGB"))
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:  # PIL reports some damaged files as SyntaxError
            raise UserError(
                f"{file} cannot be read as an image: remove or replace it ({error})"
            ) from error
        return _with_channels(pixels[None], self._preprocess.shape[0])[0]

    def _centre(self, file: Path) -> Tensor:
        height, width = self._preprocess.shape[1:]
        form = v2.Compose(
            [v2.Resize(max(height, width) * 8 // 7, antialias=True), v2.CenterCrop((height, width))]
        )
        centre: Tensor = form(self._whole(file))
        return centre
