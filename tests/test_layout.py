"""The folders, the links and the package map in pyproject.toml say the same thing."""

import ast
import os
import tomllib
from pathlib import Path

import grimp
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


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_room_says_what_lives_there(folder: str) -> None:
    for path in (ROOT / folder).rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        (only,) = body or (None,)
        assert isinstance(only, ast.Expr), f"{path}: a docstring, and no code"
        assert isinstance(only.value, ast.Constant), f"{path}: a docstring, and no code"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_room_holds_more_than_one_file(folder: str) -> None:
    for init in (ROOT / folder).rglob("__init__.py"):
        rooms = [path for path in init.parent.iterdir() if (path / "__init__.py").exists()]
        assert len([*init.parent.glob("*.py"), *rooms]) > 2, init.parent


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


# Layers (import-linter checks the imports)


def documented_layers() -> dict[str, list[list[str]]]:
    """Return the layers that docs/architecture.md lists: package -> its lines, each the names of a
    layer."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.split("## Folder rules")[1].split("```")[1]
    found: dict[str, list[list[str]]] = {}
    for line in filter(None, block.splitlines()):
        package, layer = line[:20].strip(), line[20:]
        if line.startswith("pruneopt"):
            package, _, layer = line.partition(" ")
            found[package] = []
        if layer.strip():
            found[list(found)[-1]].append(names(layer))
    return found


def names(layer: str) -> list[str]:
    return sorted(name.strip() for name in layer.split("|"))


def test_the_page_lists_the_layers_that_are_checked() -> None:
    checked = {
        contract["containers"][0]: [names(layer) for layer in contract["layers"]]
        for contract in CONFIG["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    }
    assert documented_layers() == checked


def test_no_circle_between_folders() -> None:
    """A folder's own files count as one: those that its subfolders use lie in none above them."""
    graph = grimp.build_graph("pruneopt", cache_dir=None)
    folders = {module for module in graph.modules if graph.find_children(module)}
    uses: dict[str, set[str]] = {folder: set() for folder in folders}
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            uses[folder_of(module, folders)].add(folder_of(other, folders))
    # The front names everything, and holds the errors that everything raises. In ir/ the graph lies
    # beside the verifier, which prints types as ir/text/ does.
    del uses["pruneopt"], uses["pruneopt.ir"]
    while leaves := [f for f, used in uses.items() if not (used - {f}) & uses.keys()]:
        for leaf in leaves:
            del uses[leaf]
    assert not uses, "these folders use each other in a circle, or what is in one"


def folder_of(module: str, folders: set[str]) -> str:
    return module if module in folders else module.rpartition(".")[0]
