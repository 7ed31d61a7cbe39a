"""Documentation, examples and benchmarks import from the fronts, as users do."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from pruneopt.public_api import STABLE, places

ROOT = Path(__file__).resolve().parents[1]
FRONTS = tuple(STABLE)

# A benchmark that times the inside of a room reaches into it: benchmarks, rooms, and why.
INSIDE: list[tuple[str, tuple[str, ...], str]] = [
    ("*", ("files",), "results are written as the tool writes its own files"),
    (
        "gpu_*",
        (
            "kernels",
            "passes.lowering",
            "passes.evaluation",
            "passes.graph_rewrites.folding",
            "passes.analysis.ops",
            "passes.selection.select",
            "models.workload",
        ),
        "every kernel, and every step of an evaluation on it, is timed by itself",
    ),
    (
        "latency*",
        (
            "passes.latency",
            "passes.timing",
            "passes.search",
            "passes.transform.recalibrate",
            "passes.analysis.cost",
            "passes.targets.ort_targets",
            "ir.schema",
        ),
        "the predictors of latency are compared with each other and with the clock",
    ),
    (
        "coverage_measure",
        ("ir.compare", "passes.analysis.channels.annotate"),
        "every stage between a network and its files runs, and fails, by itself",
    ),
    (
        "evaluate*",
        (
            "passes.evaluation",
            "passes.search",
            "passes.analysis.ops",
            "models.images",
            "models.weights",
            "models.workload",
        ),
        "the ways of evaluating a structure are compared with each other",
    ),
    (
        "front",
        ("passes.front", "passes.search.searchers"),
        "explorers are compared on spaces and functions of its own",
    ),
    ("*correlation", ("passes.search",), "the paper's comparison of two ways to score"),
    (
        "repair",
        ("passes.repair", "passes.transform.recalibrate"),
        "repairs are compared layer by layer",
    ),
]


def imports(code: str) -> Iterator[tuple[str, str]]:
    """The modules of pruneopt that code imports, and the names from each; no name for a module."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def code_of(page: str) -> str:
    """The Python of a page: fenced blocks, and indented lines that import."""
    fenced = re.findall(r"^ *```python\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    ((?:from|import) pruneopt\b.*)$", page, re.MULTILINE)
    return "\n".join([*map(textwrap.dedent, fenced), *indented])


def deep(code: str) -> set[str]:
    """Return imports of pruneopt that are not from a front, as ``module:name``."""
    return {
        f"{module}:{name}"
        for module, name in imports(code)
        if re.match(r"pruneopt\b", module) and not is_public(module, name)
    }


def is_public(module: str, name: str) -> bool:
    own = places(module) if module in FRONTS else {}
    return module in FRONTS and (not name or name in {**places("pruneopt"), **own})


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_code_of_the_pages_is_found() -> None:
    found = {path.name for path in pages() if list(imports(code_of(path.read_text("utf-8"))))}
    assert found >= {"README.md", "add-a-method.md", "abn.md", "custom-ops.md", "greg.md"}


def test_pages_import_from_the_fronts() -> None:
    found = {path.name: deep(code_of(path.read_text("utf-8"))) for path in pages()}
    assert {name: names for name, names in found.items() if names} == {}


def test_examples_import_from_the_fronts() -> None:
    found = {path.name: deep(path.read_text("utf-8")) for path in (ROOT / "examples").rglob("*.py")}
    assert found
    assert {name: names for name, names in found.items() if names} == {}


def test_benchmarks_import_from_the_fronts_but_for_what_they_time() -> None:
    used: set[tuple[str, str]] = set()
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        for place in deep(path.read_text("utf-8")):
            reasons = {
                (pattern, room)
                for pattern, rooms, _ in INSIDE
                for room in rooms
                if fnmatch(path.stem, pattern) and re.match(rf"pruneopt\.{room}[.:]", place)
            }
            assert reasons, f"{path.name} imports {place}: take it from pruneopt.extend"
            used |= reasons
    assert used == {(pattern, room) for pattern, rooms, _ in INSIDE for room in rooms}, (
        "an exception that nothing needs"
    )


def test_public_names_are_not_taken_from_where_they_live() -> None:
    homes = {place for front in FRONTS for place in places(front).values()}
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        assert not deep(path.read_text("utf-8")) & homes, path.name
