"""Files that would run code, or fill the memory, are refused; such a file tries each guard."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pruneopt.errors import UserError
from pruneopt.models import data
from pruneopt.models.data import load_data
from pruneopt.models.source import load_model
from pruneopt.models.weights import read_weights


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    return tmp_path / "trap"


def test_pickle_springs_the_trap(trap: Path) -> None:
    pickle.loads(pickle.dumps(Runs(trap)))
    assert trap.is_dir()


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_run_nothing(trap: Path, tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pt"
    state = {"w": torch.ones(2), "x": Runs(trap)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds Python objects"):
        read_weights(path)
    assert not trap.exists()


def test_npz_runs_nothing(trap: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([Runs(trap)] * 20, dtype=object), y=np.zeros(20, np.int64))
    with pytest.raises(UserError, match="not a readable"):
        load_data(f"npz:{path}", input_shape=(1, 4))
    assert not trap.exists()


def test_labels_of_sheets_run_nothing(trap: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        Image.new("RGB", (1280, 800)).save(tmp_path / f"{part}_00.webp", lossless=True)
        np.save(tmp_path / f"{part}_labels.npy", np.array([Runs(trap)] * 1000, dtype=object))
    with pytest.raises(UserError, match=r"sheets in .* are incomplete or damaged"):
        load_data(f"cifar10:{tmp_path}", input_shape=(1, 3, 32, 32))
    assert not trap.exists()


def test_labels_of_sheets_are_of_the_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        Image.new("RGB", (1280, 800)).save(tmp_path / f"{part}_00.webp", lossless=True)
        np.save(tmp_path / f"{part}_labels.npy", np.full(1000, 10, np.uint8))
    with pytest.raises(UserError, match="must be bytes from 0 to 9"):
        load_data(f"cifar10:{tmp_path}", input_shape=(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.full(400, 2**40), "", "has the label 1099511627776"),
        (np.arange(400) % 40, "?classes=10", "has the label 39, which classes=10 leaves out"),
        (np.arange(400) % 40 - 1, "", "whole numbers from 0"),
    ],
)
def test_labels_outside_of_the_classes(
    tmp_path: Path, labels: Any, options: str, message: str
) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((400, 4), np.float32), y=labels)
    with pytest.raises(UserError, match=message):
        load_data(f"npz:{path}{options}", input_shape=(1, 4))


def test_archive_that_would_fill_the_memory_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "UNPACKED", 2**20)
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros((4_000, 1000), np.float32), y=np.zeros(4_000, np.int64))
    with pytest.raises(UserError, match="it was made to fill the memory"):
        load_data(f"npz:{path}", input_shape=(1, 1000))


def test_archive_whose_arrays_claim_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 4)}
        )
    with pytest.raises(UserError, match="is smaller than it says"):
        load_data(f"npz:{path}", input_shape=(1, 4))


def test_image_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(8):
            Image.new("RGB", (20, 20)).save(tmp_path / kind / f"{number}.png")
    with pytest.raises(UserError, match="cannot be read as an image"):
        next(load_data(f"folder:{tmp_path}", input_shape=(1, 3, 8, 8)).test.batches(2))


@pytest.mark.parametrize("raised", ["SystemExit(3)", "GeneratorExit()", "Own()"])
def test_model_file_may_raise_anything(tmp_path: Path, raised: str) -> None:
    path = tmp_path / "m.py"
    path.write_text(f"class Own(BaseException):\n    pass\nraise {raised}\n")
    with pytest.raises(UserError, match=r"m\.py line 3"):
        load_model(str(path))


def test_example_of_an_absurd_size() -> None:
    with pytest.raises(UserError, match=r"more than 2\^32 numbers"):
        load_model("zoo:resnet20", input_shape=(1, 3, 10**9, 10**9))
