"""docs/add-a-method.md: the package it shows works as written, and its commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pruneopt.extend
from pruneopt.passes.options import registry as parts
from pruneopt.passes.options.registry import PART_GROUPS, part_class
from pruneopt.passes.pipeline import registry as passes
from pruneopt.passes.pipeline.registry import GROUP as PASS_GROUP
from pruneopt.passes.pipeline.registry import pass_class

PAGE = (Path(__file__).parents[1] / "docs" / "add-a-method.md").read_text(encoding="utf-8")


def blocks() -> dict[str, str]:
    """The files of the page: the last name in backquotes before a fence, and what the fence
    holds."""
    found = {}
    for before, body in re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```\n", PAGE, re.DOTALL):
        found[before] = body
    return found


def commands(start: str, stop: str | None = None) -> list[list[str]]:
    """The pruneopt commands of a part of the page, as words."""
    text = PAGE[PAGE.index(start) : None if stop is None else PAGE.index(stop)]
    return [shlex.split(line) for line in re.findall(r"^    (pruneopt .*)$", text, re.MULTILINE)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's package as pip installs it: the module, and the entry points of its
    project file."""
    folder = tmp_path_factory.mktemp("site")
    files = blocks()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n",
        encoding="utf-8",
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_pages_own_tests_pass(installed: Path) -> None:
    pytest_here = ("pytest", "-q", "-p", "no:cacheprovider", "-p", "pruneopt.testing")
    done = run(installed, *pytest_here, "--snapshot-update")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    snapshot = installed / "snapshots" / "half_the_channels.pir"
    text = snapshot.read_text(encoding="utf-8")
    assert "param @0.weight: f32[4, 3, 3, 3]" in text
    assert "param @3.weight: f32[2, 2, 3, 3]" in text, "the groups of a convolution stay two"
    snapshot.write_text(text.replace("f32[4, 3, 3, 3]", "f32[8, 3, 3, 3]"), encoding="utf-8")
    done = run(installed, *pytest_here, "test_keep_share.py")
    assert "half_the_channels.pir differs; --snapshot-update writes it anew" in done.stdout
    assert "-  param @0.weight: f32[8, 3, 3, 3]\n+  param @0.weight: f32[4, 3, 3, 3]" in done.stdout


def test_the_packages_commands_run(installed: Path) -> None:
    listed, compiled = commands("After `pip install .`:")
    done = run(installed, "pruneopt.tools.main", *listed[1:])
    assert done.returncode == 0, done.stderr
    assert "minimum-weight (criterion): the mean square of a filter's weights" in done.stdout
    assert "power (float, 2.0)" in done.stdout
    done = run(installed, "pruneopt.tools.main", *compiled[1:])
    assert done.returncode == 0, done.stderr
    assert "50%FLOPs met" in done.stdout
    assert (installed / "small" / "plan.json").exists()


@pytest.mark.slow
def test_the_commands_of_the_walk_through_run(tmp_path: Path) -> None:
    for words in commands("## 3. The line", "## 4. The test"):
        done = run(tmp_path, "pruneopt.tools.main", *words[1:])
        assert done.returncode == 0, f"{words}: {done.stderr}"


def test_what_the_page_names_exists() -> None:
    for group in (*PART_GROUPS.values(), PASS_GROUP):
        assert f"`{group}`" in PAGE
    rows = re.findall(r"^\| .* \| (\w+) \| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert {row[0] for row in rows} == {*PART_GROUPS, "pass"}
    for kind, base, names in rows:
        for name in re.findall(r"`([\w-]+)`", names):
            found = pass_class(name) if kind == "pass" else part_class(kind, name)
            assert issubclass(found, getattr(pruneopt.extend, base))
    for path in re.findall(r"`((?:passes|tests)/[\w/]+\.py)`", PAGE):
        assert (Path(__file__).parents[1] / path).exists()
    tables = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (parts, passes))
    for line in re.findall(r'^    "(?:[\w-]+)": "(.*?)",', PAGE, re.MULTILINE):
        assert line in tables
