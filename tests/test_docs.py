"""Everything that the documents point at is there: links, and the files that they name."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", ".github/**/*.md", "src/*.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = ("benchmarks", "docs", "examples", "ir", "kernels", "models", "passes", "src", "tests")
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")
# `units.py`, `analysis/ops/rules.py:rule`, and paths from the top of the repository.
PYTHON_FILE = re.compile(r"`([\w./-]+\.py)(?::\w+)?`")
FROM_TOP = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)}|tools)/[\w./-]*\w)")
# Files of users, and what a benchmark writes on a machine that this one is not.
ELSEWHERE = {
    *("model.py", "MODEL.py", "file.py", "keep_share.py", "test_keep_share.py"),
    *("pruneopt_minimum_weight.py", "test_minimum_weight.py"),
    *("benchmarks/results/gpu.json", "benchmarks/results/gpu_tiles.json"),
}


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def files() -> set[str]:
    """Every file and folder of the repository, and every tail of their paths."""
    folders = (*FOLDERS, "tools", ".github")
    paths = [*ROOT.glob("*"), *(path for name in folders for path in (ROOT / name).rglob("*"))]
    parts = [path.relative_to(ROOT).parts for path in paths if "__pycache__" not in path.parts]
    return {"/".join(one[start:]) for one in parts for start in range(len(one))}


def named(page: Path) -> Iterator[str]:
    for pattern in (PYTHON_FILE, FROM_TOP):
        yield from (match[1].rstrip("/") for match in pattern.finditer(text(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(text(page)) if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path, files: set[str]) -> None:
    missing = {name for name in named(page) if name not in files | ELSEWHERE}
    assert not missing, "renamed, or never there"
