"""Data sets by name: what is read, what is refused, and that a seed decides everything."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import cifar

from pruneopt.errors import UserError
from pruneopt.models import zoo
from pruneopt.models.data import load_data
from pruneopt.models.images import NORMALISATIONS
from pruneopt.models.source import load_model
from pruneopt.models.workload import Workload

CIFAR = (1, 3, 32, 32)


def first(workload: Workload, split: str = "test", **options: object) -> torch.Tensor:
    return next(workload.split(split).batches(8, **options))[0]  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 20 images; a class's images share a hue, the red of an image is its
    number."""
    for label in range(3):
        for number in range(20):
            folder = tmp_path / "photos" / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30 + label, 24), (number * 10, 100 * label, 7)).save(
                folder / f"{number:02}.png"
            )
    return tmp_path / "photos"


def test_digits_are_balanced_disjoint_and_repeatable() -> None:
    one, two, other = (
        load_data("digits", input_shape=(1, 1, 8, 8), seed=seed) for seed in (0, 0, 1)
    )
    assert one.describe() == two.describe()
    assert one.describe()["subval_sha256"] != other.describe()["subval_sha256"]
    assert torch.equal(one.test.indices, other.test.indices)
    assert not set(one.subval.indices.tolist()) & set(one.calibration.indices.tolist())
    held = set(one.train.indices.tolist()) | set(one.subval.indices.tolist())
    assert not held & set(one.test.indices.tolist())
    assert len(held) + len(one.test) == 1797
    labels = torch.cat([y for _, y in one.subval.batches(500)])
    assert labels.bincount().max() - labels.bincount().min() <= 1


def test_digits_fit_other_inputs() -> None:
    images = first(load_data("digits?normalise=none", input_shape=(1, 3, 16, 20)))
    assert images.shape == (8, 3, 16, 20)
    assert torch.equal(images[:, 0], images[:, 2])
    assert 0 <= images.min() < images.max() <= 1


def test_augmentation_is_seeded_and_only_on_request() -> None:
    workload = load_data("digits?augment=shift-flip", input_shape=(1, 1, 8, 8))
    plain = first(workload, "train", seed=3)
    moved, again = (first(workload, "train", seed=3, augment=True) for _ in range(2))
    assert torch.equal(moved, again)
    assert not torch.equal(moved, plain)


def test_a_shift_keeps_each_image() -> None:
    """With four pixels of zeros around a white image, a shift only moves the border."""
    workload = load_data("digits?augment=shift&normalise=none", input_shape=(1, 1, 8, 8))
    plain, moved = (first(workload, "train", seed=1, augment=augment) for augment in (False, True))
    for a, b in zip(plain, moved, strict=True):
        shifts = [
            torch.roll(torch.nn.functional.pad(a, [1] * 4), (y, x), (1, 2))[:, 1:9, 1:9]
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
        ]
        assert any(torch.equal(b, shift) for shift in shifts)


def test_limit_subval_and_calibration_options() -> None:
    workload = load_data("digits?limit=200&subval=30&calibration=40", input_shape=(1, 1, 8, 8))
    sizes = workload.describe()["sizes"]
    assert sizes == {"train": 170, "calibration": 40, "subval": 30, "test": 200}


def test_cifar_sheets_and_real_accuracy(shared: Path) -> None:
    spec = f"cifar10:{shared / 'cifar10'}?normalise=imagenet&limit=2000"
    loaded = load_model(
        "zoo:resnet20", weights=shared / "weights" / "cifar10_resnet20_optA.safetensors"
    )
    assert isinstance(loaded.module, torch.nn.Module)
    assert loaded.workload(spec).score(loaded.module, "test") > 0.88


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "top1"), [("resnet20", 0.9173), ("resnet32", 0.9263), ("resnet56", 0.9339)]
)
def test_published_accuracy(shared: Path, name: str, top1: float) -> None:
    loaded = load_model(
        f"zoo:{name}", weights=shared / "weights" / f"cifar10_{name}_optA.safetensors"
    )
    workload = loaded.workload(f"cifar10:{shared / 'cifar10'}?normalise=imagenet")
    assert len(workload.test) == 10_000
    assert isinstance(loaded.module, torch.nn.Module)
    assert workload.score(loaded.module, "test") == pytest.approx(top1, abs=1.01e-4)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_python_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int
) -> None:
    kind = cifar.CIFAR10 if classes == 10 else cifar.CIFAR100
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    key = "labels" if classes == 10 else "fine_labels"
    for file, _ in kind.train_list + kind.test_list:
        data = generator.integers(0, 256, (400, 3072), dtype=np.uint8)
        (folder / file).write_bytes(
            pickle.dumps({"data": data, key: [i % classes for i in range(400)]})
        )
    names = {kind.meta["key"]: [str(i) for i in range(classes)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(names))
    with pytest.raises(UserError, match="holds no complete cifar-10"):
        # The checksums are not the published ones.
        load_data(f"{name}:{tmp_path}", input_shape=CIFAR)
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    workload = load_data(f"{name}:{folder}", input_shape=CIFAR)
    assert (workload.num_classes, len(workload.test)) == (classes, 400)
    assert first(workload).shape == (8, 3, 32, 32)


def test_folder_of_classes(photos: Path) -> None:
    workload = load_data(f"folder:{photos}?normalise=none", input_shape=(1, 3, 16, 16))
    assert workload.num_classes == 3
    assert workload.describe()["sizes"] == {"train": 39, "calibration": 9, "subval": 9, "test": 12}
    images, labels = next(workload.test.batches(12))
    assert torch.allclose(images[:, 1, 8, 8], labels * 100 / 255)
    assert first(workload, "train", seed=1, augment=True).shape == (8, 3, 16, 16)
    assert torch.equal(*(first(workload, "train", seed=1, augment=True) for _ in range(2)))
    assert torch.equal(first(workload), first(workload))  # decoded once, then kept


def test_folder_with_train_and_val(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    root.mkdir()
    photos.rename(root / "train")
    for label in range(3):
        (root / "val" / f"class{label}").mkdir(parents=True)
        Image.new("L", (40, 40), label).save(root / "val" / f"class{label}" / "a.jpg")
    workload = load_data(f"folder:{root}", input_shape=(1, 1, 16, 16))
    assert len(workload.test) == 3
    assert first(workload).shape == (3, 1, 16, 16)
    (root / "val" / "class1").rename(root / "val" / "other")
    with pytest.raises(UserError, match="differ, first in 'class1'"):
        load_data(f"folder:{root}", input_shape=CIFAR)


def test_damaged_image(photos: Path) -> None:
    for file in photos.rglob("*.png"):
        file.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"\.png cannot be read as an image"):
        first(load_data(f"folder:{photos}", input_shape=CIFAR))


def test_npz_images_and_vectors(tmp_path: Path) -> None:
    y = np.arange(50) % 5
    x = np.random.default_rng(0).integers(0, 256, (50, 8, 9, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=y)
    workload = load_data(f"npz:{tmp_path / 'images.npz'}", input_shape=(1, 3, 8, 9))
    position = int(workload.test.indices[0])
    assert torch.equal(first(workload)[0], torch.from_numpy(x[position]).permute(2, 0, 1) / 255)

    floats = np.random.default_rng(0).normal(size=(50, 6))
    np.savez(tmp_path / "vectors.npz", x_train=floats, y_train=y, x_test=floats[:10], y_test=y[:10])
    workload = load_data(f"npz:{tmp_path / 'vectors.npz'}?classes=7", input_shape=(1, 6))
    assert (workload.num_classes, len(workload.test), first(workload).shape) == (7, 10, (8, 6))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((9, 3))}, r"holds \['x'\]: it needs x and y"),
        ({"x": np.zeros((9, 3)), "y": np.zeros(8, int)}, "one for each of the 9 samples"),
        ({"x": np.zeros((9, 3)), "y": np.zeros(9)}, "must be whole numbers"),
        ({"x": np.full((9, 3), np.nan), "y": np.zeros(9, int)}, "NaN or infinite"),
        ({"x": np.zeros((9, 3), int), "y": np.zeros(9, int)}, "must be floats, or uint8 images"),
        (
            {"x": np.zeros((50, 5)), "y": np.zeros(50, int)},
            r"samples of shape \[5\] but the network takes",
        ),
    ],
)
def test_npz_errors(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        load_data(f"npz:{tmp_path / 'bad.npz'}", input_shape=(1, 3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifr10:x", "did you mean cifar10"),
        ("digits:x", "digits takes no path"),
        ("folder", "say where it is: folder:PATH"),
        ("folder:nowhere", "nowhere does not exist"),
        ("digits?limt=5", "no option 'limt'.*did you mean limit"),
        ("digits?limit=-5", "limit=-5 in .* must be a whole number above 0"),
        ("digits?limit", "'limit' in 'digits.limit' is not an option"),
        ("digits?limit=5&limit=6", "given twice"),
        ("digits?normalise=imgnet", "normalise=imgnet .* did you mean imagenet"),
        ("digits?augment=blur", "augment=blur .* is unknown"),
        ("digits?classes=3", "for npz files only"),
        ("digits?subval=5000", "cannot give 5000 for search scores"),
        ("digits?normalise=imagenet", "for 3 channels but the network takes 1"),
        ("npz:{tmp}/bad.npz", "is not a readable .npz file"),
        ("folder:{tmp}/empty", "one folder of images per class"),
        ("cifar10:{tmp}/empty", "unpack the published archive there"),
    ],
)
def test_spec_errors(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        load_data(spec.replace("{tmp}", str(tmp_path)), input_shape=(1, 1, 8, 8))


@pytest.mark.parametrize("shape", [(1, 64), (1, 4, 8, 8)])
def test_images_do_not_fit_the_network(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="digits holds images"):
        load_data("digits", input_shape=shape)


def test_classes_do_not_fit_the_network() -> None:
    workload = load_data("digits", input_shape=(1, 1, 8, 8))
    with pytest.raises(UserError, match="build it with num_classes=10"):
        workload.score(zoo.create("digits_resnet", num_classes=12))


def test_normalisation_is_the_published_one() -> None:
    pixels = load_data("digits?normalise=none", input_shape=(1, 3, 8, 8))
    normalised = load_data("digits?normalise=cifar", input_shape=(1, 3, 8, 8))
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALISATIONS["cifar"])
    assert torch.allclose(first(normalised), (first(pixels) - mean) / std)
