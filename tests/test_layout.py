"""The folders, the links and the package map in pyproject.toml say the same thing."""

import os
import tomllib
from pathlib import Path

import pytest

import pruneopt

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ir", "kernels", "models", "passes", "tools")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_subpackage_is_built() -> None:
    found = {"pruneopt"} | {
        ".".join(("pruneopt", *init.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_source_folder_is_a_package(folder: str) -> None:
    bare = {
        path.parent
        for path in (ROOT / folder).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert not bare, "a folder without __init__.py would be missing from the wheel"


def test_the_map_names_each_folder() -> None:
    expected = {"pruneopt": "src/pruneopt"} | {f"pruneopt.{folder}": folder for folder in FOLDERS}
    assert CONFIG["tool"]["setuptools"]["package-dir"] == expected


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="the source archive is built without the links"
)
@pytest.mark.parametrize("folder", FOLDERS)
def test_link_points_at_its_folder(folder: str) -> None:
    assert os.readlink(ROOT / "src" / "pruneopt" / folder) == f"../../{folder}"


def test_the_version_is_written_once() -> None:
    assert CONFIG["project"]["version"] == pruneopt.__version__
