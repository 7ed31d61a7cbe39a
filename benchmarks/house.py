"""Measure the tree: sizes of files and functions, comments, docstrings, circles of imports.

    python benchmarks/house.py                    # a table of this checkout
    python benchmarks/house.py --beside OLD       # with another checkout in a column before it
    python benchmarks/house.py --check            # fail on docstrings that beat about the bush

The folders of `SOURCE` are measured, without empty files. Links are not followed, so `src/` is the
front of the package only. Circles are counted where grimp is installed: files that import each
other at run time and, in brackets, those that do so for annotations too.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import subprocess
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from markdown_table import markdown_table

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ("ir", "kernels", "models", "passes", "tools", "src")
ROUNDABOUT = ("What", "Whether", "Where", "Those")
MOST_ROUNDABOUT = 2.0  # per cent
LONG_FUNCTION = 40  # lines
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)

# Runs in a process of its own, so that the package it finds is the one of the measured checkout.
CIRCLES = """
import grimp, networkx
def circles(**options):
    graph = grimp.build_graph("pruneopt", cache_dir=None, **options)
    arrows = [(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)]
    return sum(len(c) > 1 for c in networkx.strongly_connected_components(networkx.DiGraph(arrows)))
print(circles(exclude_type_checking_imports=True), f"({circles()})")
"""


@dataclass(frozen=True)
class Docstring:
    place: str
    first: str
    lines: int

    @property
    def roundabout(self) -> bool:
        return self.first.startswith(tuple(f"{word} " for word in ROUNDABOUT))


@dataclass
class Sizes:
    """Sizes of every file, function and line of some Python files, in lines and characters."""

    files: list[int] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    docstrings: list[Docstring] = field(default_factory=list)
    comments: int = 0

    @property
    def lines(self) -> int:
        return sum(self.files)

    @property
    def roundabout(self) -> float:
        """Per cent of the docstrings that open with a word of `ROUNDABOUT`."""
        return 100 * sum(d.roundabout for d in self.docstrings) / max(len(self.docstrings), 1)

    def add(self, path: Path, name: str) -> None:
        """Count a file, unless it is empty; `name` is how places within it are shown."""
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            return
        lines = text.splitlines()
        nodes = list(ast.walk(ast.parse(text)))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.files.append(len(lines))
        self.widths += [len(line) for line in lines if line.strip()]
        self.functions += [length(node) for node in nodes if isinstance(node, FUNCTIONS)]
        self.docstrings += [found for node in nodes if (found := docstring(node, name))]
        self.comments += sum(token.type == tokenize.COMMENT for token in tokens)


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring(node: ast.AST, name: str) -> Docstring | None:
    if not isinstance(node, DOCUMENTED) or not (text := ast.get_docstring(node)):
        return None
    statement = node.body[0]
    return Docstring(f"{name}:{statement.lineno}", text.splitlines()[0], length(statement))


def measure(root: Path, folders: tuple[str, ...]) -> Sizes:
    sizes = Sizes()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        sizes.add(path, str(path.relative_to(root)))
    return sizes


def circles(root: Path) -> str:
    """Count the circles of imports of a checkout, "-" without grimp or without a package."""
    if not (root / "src" / "pruneopt").exists():
        return "-"  # else the installed one would be counted
    run = subprocess.run(
        [sys.executable, "-c", CIRCLES],
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
    )
    return run.stdout.strip() or "-"


def rows(root: Path) -> dict[str, str]:
    """Measure a checkout: the rows of the table by name."""
    source, tests = measure(root, SOURCE), measure(root, ("tests",))
    hundred = source.lines / 100
    long = sum(lines > LONG_FUNCTION for lines in source.functions)
    return {
        "files / lines": f"{len(source.files)} / {source.lines}",
        "file median / p90 / max": spread(source.files) + f" / {max(source.files)}",
        "function median / p90": spread(source.functions),
        f"functions over {LONG_FUNCTION} lines": f"{100 * long / len(source.functions):.1f} %",
        "comments per 100 lines": f"{source.comments / hundred:.1f}",
        "docstring lines per 100": f"{sum(d.lines for d in source.docstrings) / hundred:.1f}",
        "line length p90": str(p90(source.widths)),
        "test / source lines": f"{tests.lines / source.lines:.2f}",
        f"docstrings that open with {' / '.join(ROUNDABOUT)}": f"{source.roundabout:.1f} %",
        "circles of imports (annotations too)": circles(root),
    }


def spread(values: list[int]) -> str:
    return f"{median(values):.0f} / {p90(values)}"


def p90(values: list[int]) -> int:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def print_table(columns: dict[str, dict[str, str]]) -> None:
    names = next(iter(columns.values()))
    lines = [[name, *(column[name] for column in columns.values())] for name in names]
    print(markdown_table(["", *columns], lines, left=range(len(columns) + 1)))


def check() -> int:
    """Print the docstrings to change where they are too many, and return the exit code."""
    sizes = measure(ROOT, SOURCE)
    if sizes.roundabout < MOST_ROUNDABOUT:
        return 0
    for found in sizes.docstrings:
        if found.roundabout:
            print(f"{found.place}: {found.first}")
    print(
        f"{sizes.roundabout:.1f} % of the docstrings open with {', '.join(ROUNDABOUT)}; under"
        f" {MOST_ROUNDABOUT:.0f} % may. Say what is done: Return ..., Compute ..., Raise ..."
    )
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--beside", type=Path, help="a checkout to compare with")
    parser.add_argument("--check", action="store_true", help="check docstrings, print no table")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    columns = {"before": rows(arguments.beside)} if arguments.beside else {}
    print_table({**columns, "now": rows(ROOT)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
