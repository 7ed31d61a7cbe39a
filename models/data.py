"""Data sets by name: `load_data("cifar10:DIR?limit=5000&normalise=imagenet", input_shape=(1, 3, 32,
32))`.

- `digits`: scikit-learn's 1,797 scanned digits of 8x8, no file needed; a fifth is the test set
- `cifar10:DIR`, `cifar100:DIR`: the python batches as published (`cifar-10-batches-py`)
- `cifar10:DIR`: lossless WebP sheets of 1,000 images: `train_00.webp`.. and `train_labels.npy`, the
  same for `test`
- `folder:DIR`: `train/CLASS/*.jpg` and `val/CLASS/*.jpg` (or `test`); or `CLASS/*.jpg` (a fifth is
  the test set)
- `npz:FILE`: arrays `x, y` (a fifth is the test set) or `x_train, y_train, x_test, y_test`

Options, after `?`, joined by `&`, with their defaults:

- `limit=N`: at most N training and N test samples, classes evenly (all)
- `normalise=`: `imagenet`, `cifar`, `half` (to -1..1), `none` (0..1; float arrays as they are) (the
  data set's own)
- `augment=`: `none`, `shift`, `shift-flip`, `crop-flip`: done to training images (the data set's
  own)
- `subval=N`, `calibration=N`: sizes of the two parts cut from the training set (see `workload.cut`)
- `classes=N`: for `npz`, how many classes there are (largest label + 1)
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from pruneopt.errors import UserError
from pruneopt.models.images import AUGMENTATIONS, NORMALISATIONS, ImageFileSplit, Preprocess
from pruneopt.models.spec import did_you_mean, split_options
from pruneopt.models.workload import Indices, Split, TensorSplit, Workload, balanced_order, cut

__all__ = ["load_data"]

# The test set is the same whatever the seed of a run.
TEST_SEED = 0
TEST_SHARE = 5
CLASSES = 2**20
"""Labels beyond are mistakes: a network has as many outputs as there are classes."""
UNPACKED, RATIO = 2**30, 200
"""Bytes of arrays, and how often as large as packed, from which an archive is not unpacked."""


@dataclass(frozen=True)
class _Samples:
    """One part of a data set: uint8 `[n, C, H, W]` or float `[n, ...]`, or image files; and int64
    labels `[n]`."""

    inputs: Tensor | list[Path]
    labels: Indices


@dataclass(frozen=True)
class _Source:
    """A whole data set before it is cut; `test` None means that a fifth of `train` becomes the test
    set."""

    num_classes: int
    train: _Samples
    test: _Samples | None
    normalise: str
    augment: str


@dataclass(frozen=True)
class _Options:
    limit: int | None
    normalise: str | None
    augment: str | None
    subval: int | None
    calibration: int | None
    classes: int | None


def load_data(
    spec: str, *, input_shape: tuple[int, ...], seed: int = 0, relative_to: Path | None = None
) -> Workload:
    """Return the data set `spec` names, cut into splits and made to fit a network.

    Args:
        spec: see the module's text.
        input_shape: the network's input with its batch axis, `(1, C, H, W)`; images are resized to
            it, one channel is repeated for a network that takes three, three become grey for one
            that takes one.
        seed: decides which training samples are held out; the test set does not depend on it.
        relative_to: where relative paths start; the working directory if None.

    Raises:
        UserError: an unknown name or option, files that are missing or unreadable, a shape that
            cannot be made to fit.
    """
    head, texts = split_options(spec)
    options = _options(spec, texts)
    name, _, place = head.partition(":")
    if name not in _READERS:
        raise UserError(
            f"there is no data set '{name}' (in '{spec}'): {did_you_mean(name, _READERS)}"
        )
    if bool(place) != (name != "digits"):
        wanted = "digits takes no path" if name == "digits" else f"say where it is: {name}:PATH"
        raise UserError(f"the data spec '{spec}' is not complete or too long: {wanted}")
    path = (relative_to or Path()) / Path(place).expanduser()
    if place and not path.exists():
        raise UserError(f"{path} does not exist: give the place of the data in '{spec}'")
    return _workload(name, _READERS[name](path), input_shape, seed, options)


def _options(spec: str, texts: dict[str, str]) -> _Options:
    known = _Options.__dataclass_fields__
    for key in texts:
        if key not in known:
            raise UserError(
                f"data sets have no option '{key}' (in '{spec}'): {did_you_mean(key, known)}"
            )
    for key, choices in (("normalise", NORMALISATIONS), ("augment", AUGMENTATIONS)):
        if key in texts and texts[key] not in choices:
            raise UserError(
                f"{key}={texts[key]} in '{spec}' is unknown: {did_you_mean(texts[key], choices)}"
            )
    numbers = {
        key: _count(spec, key, texts.get(key))
        for key in ("limit", "subval", "calibration", "classes")
    }
    if texts.get("classes") and not spec.startswith("npz:"):
        raise UserError(f"'{spec}' knows its classes: classes= is for npz files only")
    return _Options(normalise=texts.get("normalise"), augment=texts.get("augment"), **numbers)


def _count(spec: str, key: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{key}={text} in '{spec}' must be a whole number above 0")
    return int(text)


def _workload(
    name: str, source: _Source, input_shape: tuple[int, ...], seed: int, options: _Options
) -> Workload:
    labels = source.train.labels
    order = balanced_order(labels, len(labels), TEST_SEED)
    if source.test is None:
        first = len(order) // TEST_SHARE
        test_samples, test_order, order = source.train, order[:first], order[first:]
    else:
        test_samples = source.test
        test_order = balanced_order(test_samples.labels, len(test_samples.labels), TEST_SEED)
    order, test_order = order[: options.limit], test_order[: options.limit]
    if not len(order) or not len(test_order):
        raise UserError(f"{name} has {len(labels)} samples, too few for a training and a test set")
    parts = cut(
        labels[order], len(order), seed=seed, subval=options.subval, calibration=options.calibration
    )
    prepare = _preparation(name, source, input_shape, options)
    train, calibration, subval = (_split(source.train, order[part], prepare) for part in parts)
    test = _split(test_samples, test_order, prepare)
    if options.classes is not None and options.classes < source.num_classes:
        raise UserError(
            f"{name} has the label {source.num_classes - 1}, which classes={options.classes} "
            "leaves out"
        )
    return Workload(
        name, options.classes or source.num_classes, train, calibration, subval, test, seed=seed
    )


def _preparation(
    name: str, source: _Source, input_shape: tuple[int, ...], options: _Options
) -> Preprocess | None:
    """Return the function that makes inputs of stored samples; None if they are fed as they are."""
    inputs = source.train.inputs
    images = isinstance(inputs, list) or inputs.ndim == 4
    if images and len(input_shape) == 4:
        channels, height, width = input_shape[1:]
        found = 3 if isinstance(inputs, list) else inputs.shape[1]
        if channels != found and (found, channels) not in ((1, 3), (3, 1)):
            raise UserError(
                f"{name} holds images of {found} channels but the network takes {channels}"
            )
        fits = len(NORMALISATIONS[source.normalise][0]) in (1, channels)
        normalise = options.normalise or (source.normalise if fits else "half")
        return Preprocess((channels, height, width), normalise, options.augment or source.augment)
    if (
        isinstance(inputs, list)
        or inputs.shape[1:] != input_shape[1:]
        or not inputs.is_floating_point()
    ):
        shape = None if isinstance(inputs, list) else list(inputs.shape[1:])
        held = "images" if images else f"samples of shape {shape}"
        raise UserError(
            f"{name} holds {held} but the network takes inputs of shape {list(input_shape)}"
        )
    if options.normalise or options.augment:
        raise UserError(
            f"normalise and augment are for images, and {name} holds none: leave them out"
        )
    return None


def _split(samples: _Samples, indices: Indices, prepare: Preprocess | None) -> Split:
    labels, chosen = torch.from_numpy(samples.labels), torch.from_numpy(indices)
    if isinstance(samples.inputs, Tensor):
        return TensorSplit(samples.inputs, labels, chosen, prepare)
    assert prepare is not None
    return ImageFileSplit(samples.inputs, labels, chosen, prepare)


def _digits(_: Path) -> _Source:
    # Imported here: scikit-learn takes a second, and only this data set needs it.
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    samples = _Samples(torch.from_numpy(images), found.target.astype(np.int64))
    return _Source(10, samples, None, "half", "shift")


def _cifar(kind: type[CIFAR10], folder: Path) -> _Source:
    classes = 100 if kind is CIFAR100 else 10
    if kind is CIFAR10 and (folder / "train_00.webp").exists():
        train, test = _sheets(folder, "train"), _sheets(folder, "test")
    else:
        root = folder.parent if folder.name == kind.base_folder else folder
        try:
            # torchvision compares checksums before it unpickles anything.
            train, test = (_batches(kind(str(root), train=part)) for part in (True, False))
        except (RuntimeError, OSError) as error:
            sheets = " or sheets named train_00.webp" if kind is CIFAR10 else ""
            raise UserError(
                f"{folder} holds no complete {kind.base_folder} folder{sheets}: unpack the "
                "published archive there"
            ) from error
    return _Source(classes, train, test, "cifar", "shift-flip")


def _batches(dataset: Any) -> _Samples:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return _Samples(images, np.asarray(dataset.targets, dtype=np.int64))


def _sheets(folder: Path, part: str) -> _Samples:
    """Return sheets of 25 rows of 40 images of 32x32, row by row, and `PART_labels.npy` (uint8)."""
    files = sorted(folder.glob(f"{part}_*.webp"))
    try:
        images = np.concatenate([_sheet(file) for file in files])
        labels = np.load(folder / f"{part}_labels.npy", allow_pickle=False)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(
            f"the {part} sheets in {folder} are incomplete or damaged: {error}"
        ) from error
    if labels.ndim != 1 or labels.dtype != np.uint8 or labels.max(initial=0) > 9:
        raise UserError(f"the {part} labels in {folder} must be bytes from 0 to 9")
    if len(labels) != len(images):
        raise UserError(
            f"{folder} holds {len(images)} {part} images but {len(labels)} labels: copy the folder "
            "again"
        )
    return _Samples(torch.from_numpy(images), labels.astype(np.int64))


def _sheet(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)


def _folder(folder: Path) -> _Source:
    held_out = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir():
        samples, classes = _class_folders(folder)
        return _Source(len(classes), samples, None, "imagenet", "crop-flip")
    if held_out is None:
        raise UserError(
            f"{folder} has train/ but neither val/ nor test/: add one, with the same class folders"
        )
    train, classes = _class_folders(folder / "train")
    test, test_classes = _class_folders(held_out)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))[0]
        raise UserError(
            f"the class folders of {folder / 'train'} and {held_out} differ, first in '{odd}'"
        )
    return _Source(len(classes), train, test, "imagenet", "crop-flip")


def _class_folders(folder: Path) -> tuple[_Samples, list[str]]:
    try:
        found = ImageFolder(str(folder))
    except OSError as error:
        raise UserError(f"{folder} must hold one folder of images per class: {error}") from error
    files = [Path(file) for file, _ in found.samples]
    return _Samples(files, np.asarray(found.targets, dtype=np.int64)), list(found.classes)


def _npz(file: Path) -> _Source:
    try:
        # Through zipfile, because np.load also takes other kinds of file and then returns something
        # else.
        with zipfile.ZipFile(file) as entries, np.load(file, allow_pickle=False) as archive:
            _refuse_bomb(file, entries)
            arrays = {key: archive[key] for key in archive.files}
    except UserError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(f"{file} is not a readable .npz file of plain arrays: {error}") from error
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        train = _arrays(file, arrays["x_train"], arrays["y_train"])
        test: _Samples | None = _arrays(file, arrays["x_test"], arrays["y_test"])
    elif {"x", "y"} <= arrays.keys():
        train, test = _arrays(file, arrays["x"], arrays["y"]), None
    else:
        raise UserError(
            f"{file} holds {sorted(arrays)}: it needs x and y, or x_train, y_train, x_test and "
            "y_test"
        )
    most = max(part.labels.max(initial=0) for part in (train, test) if part is not None)
    if most >= CLASSES:
        raise UserError(f"{file} has the label {most}: labels are whole numbers from 0, in order")
    return _Source(int(most) + 1, train, test, "none", "none")


def _refuse_bomb(file: Path, entries: zipfile.ZipFile) -> None:
    """Raise `UserError` for an archive that would fill the memory, before anything is unpacked."""
    size = sum(entry.file_size for entry in entries.infolist())
    packed = max(1, sum(entry.compress_size for entry in entries.infolist()))
    if size > UNPACKED and size > RATIO * packed:
        raise UserError(
            f"{file} unpacks to {size / 2**30:.0f} GiB, {size // packed} times its size: it was "
            "made to fill the memory"
        )
    for entry in entries.infolist():
        with entries.open(entry) as stream:
            _refuse_absurd(file, entry, stream)


def _refuse_absurd(file: Path, entry: zipfile.ZipInfo, stream: IO[bytes]) -> None:
    """Raise `UserError` where an array says to be of another size than its entry."""
    form = np.lib.format
    version = form.read_magic(stream)
    read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.itemsize * math.prod(shape) > entry.file_size:
        raise UserError(f"{file} is damaged: {entry.filename} is smaller than it says")


def _arrays(file: Path, x: NDArray[Any], y: NDArray[Any]) -> _Samples:
    if (
        y.ndim != 1
        or len(x) != len(y)
        or not np.issubdtype(y.dtype, np.integer)
        or y.min(initial=0) < 0
    ):
        raise UserError(
            f"the labels in {file} must be whole numbers from 0, one for each of the {len(x)} "
            "samples"
        )
    labels = y.astype(np.int64)
    if np.issubdtype(x.dtype, np.floating):
        if not np.isfinite(x).all():
            raise UserError(
                f"the inputs in {file} hold NaN or infinite values: remove those samples"
            )
        return _Samples(torch.from_numpy(x.astype(np.float32)), labels)
    if x.dtype != np.uint8 or x.ndim != 4:
        raise UserError(
            f"the inputs in {file} must be floats, or uint8 images of four axes, not {x.dtype} "
            f"{x.shape}"
        )
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return _Samples(torch.from_numpy(x), labels)


_READERS: dict[str, Callable[[Path], _Source]] = {
    "digits": _digits,
    "cifar10": lambda folder: _cifar(CIFAR10, folder),
    "cifar100": lambda folder: _cifar(CIFAR100, folder),
    "folder": _folder,
    "npz": _npz,
}
