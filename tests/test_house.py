"""The measured sizes of a tree, on one that can be counted by hand."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILE = '''"""Whether a file
has two lines of docstring."""


def two() -> int:  # behind code
    """Return two."""
    # On its own.
    return 2


class Those:
    """Those who know."""

    async def long(self) -> None:
        # LINES
        pass
'''


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("house")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("ir/text", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ir" / "__init__.py").write_text("\n")
    lines = "\n".join(["        # why"] * 45)
    (tmp_path / "ir" / "text" / "a.py").write_text(FILE.replace("        # LINES", lines))
    (tmp_path / "tests" / "test_a.py").write_text("x = 1\n" * 30)
    return tmp_path


def test_files_functions_comments_and_docstrings_are_counted(house: Any, tree: Path) -> None:
    sizes = house.measure(tree, house.SOURCE)
    assert sizes.files == [60]
    assert sorted(sizes.functions) == [4, 47]
    assert sizes.comments == 47
    assert [d.lines for d in sizes.docstrings] == [2, 1, 1]
    assert max(sizes.widths) == len("    async def long(self) -> None:")


def test_the_table_has_shares(house: Any, tree: Path) -> None:
    rows = house.rows(tree)
    assert rows["files / lines"] == "1 / 60"
    assert rows["functions over 40 lines"] == "50.0 %"
    assert rows["test / source lines"] == "0.50"
    assert rows["docstrings that open with What / Whether / Where / Those"] == "66.7 %"
    assert rows["circles of imports (annotations too)"] == "-"


def test_check_names_the_docstrings(
    house: Any, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(house, "ROOT", tree)
    assert house.check() == 1
    said = capsys.readouterr().out
    assert "ir/text/a.py:1: Whether a file" in said
    assert "Return two" not in said
    file = tree / "ir" / "text" / "a.py"
    file.write_text(file.read_text().replace("Whether a", "A").replace("Those who", "People who"))
    assert house.check() == 0


def test_circles_are_those_of_the_measured_tree(house: Any, tree: Path) -> None:
    pytest.importorskip("grimp")
    package = tree / "src" / "pruneopt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("import pruneopt.b\n")
    (package / "b.py").write_text("from pruneopt import c\n")
    (package / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pruneopt.a\n"
    )
    assert house.circles(tree) == "0 (1)"
    (package / "c.py").write_text("import pruneopt.a\n")
    assert house.circles(tree) == "1 (1)"
