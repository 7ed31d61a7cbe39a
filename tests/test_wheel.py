"""The wheel, used as a stranger would: built from a copy without links, installed elsewhere,
imported from there."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ir", "kernels", "models", "passes", "tools")
LIGHT = (
    "pruneopt",
    "pruneopt.errors",
    "pruneopt.ir.graph",
    "pruneopt.ir.types",
    "pruneopt.ir.text.printer",
)

# Imports the light modules, locates the others, and says where each name was found.
PROBE = """
import importlib, importlib.util, json, sys
light, located, stray = json.loads(sys.argv[1])
origins = {name: importlib.import_module(name).__file__ for name in light}
origins |= {name: importlib.util.find_spec(name).origin for name in located}
print(json.dumps([origins, [name for name in stray if importlib.util.find_spec(name)]]))
"""


def pip(*arguments: str | Path, cwd: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *map(str, arguments),
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def source_files() -> list[str]:
    """Every file below the source folders, by the name it must have inside the wheel."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [
        f"pruneopt/{path.relative_to(ROOT).as_posix()}"
        for path in files
        if "__pycache__" not in path.parts
    ]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy, because a build in the checkout leaves files that the next build would pick up.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "src", source / "src", ignore=lambda _, names: {*FOLDERS, "__pycache__"} & set(names)
    )
    pip(
        "wheel",
        ".",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "dist",
        cwd=source,
    )
    (built,) = (source / "dist").glob("pruneopt-*.whl")
    return built


def test_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert set(source_files()) <= set(names)
    assert "pruneopt/py.typed" in names
    assert {name.split("/")[0].removesuffix(".dist-info").partition("-")[0] for name in names} == {
        "pruneopt"
    }


def test_installed_wheel_imports_from_its_own_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-index", "--no-deps", "--target", site, wheel, cwd=elsewhere)
    modules = [
        name.removesuffix(".py").removesuffix("/__init__")
        for name in source_files()
        if name.endswith(".py")
    ]
    request = json.dumps([LIGHT, [name.replace("/", ".") for name in modules], FOLDERS])
    done = subprocess.run(
        [sys.executable, "-c", PROBE, request],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    origins, stray = json.loads(done.stdout)
    assert [name for name, origin in origins.items() if not Path(origin).is_relative_to(site)] == []
    assert stray == [], "these folders must not become top-level imports"
