"""The matrix of versions: what a cell says, and where its table goes."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
REPORT = """<testsuites><testsuite>
<testcase classname="tests.ir.test_a" name="test_right"/>
<testcase classname="tests.ir.test_a" name="test_left"><skipped/></testcase>
<testcase classname="tests.ir.test_a" name="test_wrong"><failure/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(TESTS))
    matrix: Any = import_module("matrix")
    monkeypatch.setattr(matrix, "STORE", tmp_path)
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "test-matrix.md")
    return matrix


def fake_environment(folder: Path, script: str) -> None:
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def test_a_report_is_counted(matrix: Any, tmp_path: Path) -> None:
    folder = tmp_path / "python3.12-torch2.11"
    fake_environment(folder, f"printf '%s' '{REPORT}' > {folder}.xml")
    assert matrix.run_tests(folder) == (1, 1, ("tests/ir/test_a.py::test_wrong",))


def test_pytest_that_does_not_start_is_a_failure(matrix: Any, tmp_path: Path) -> None:
    folder = tmp_path / "python3.12-torch2.11"
    fake_environment(folder, "exit 3")
    passed, _, failures = matrix.run_tests(folder)
    assert passed == 0
    assert "stopped early" in failures[0]


def test_a_python_that_is_missing_is_said(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PYENV_ROOT", "nowhere")
    result = matrix.run_cell("3.12:2.11", "abc", False)
    assert result.words == "not installed"
    assert result.error == "there is no Python 3.12 on this machine"


def test_cells_of_this_commit_are_not_run_again(
    matrix: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def run_cell(cell: str, commit: str, keep: bool) -> Any:
        ran.append(cell)
        return matrix.Result(commit, "2026-01-31", passed=7, failures=("a.py::test",))

    monkeypatch.setattr(matrix, "run_cell", run_cell)
    monkeypatch.setattr(matrix.sys, "argv", ["matrix.py", "3.12:2.11"])
    assert matrix.main() == matrix.main() == 1
    stored = json.loads((tmp_path / "results.json").read_text())
    stored["3.12:2.11"]["commit"] = "another"
    (tmp_path / "results.json").write_text(json.dumps(stored))
    matrix.main()
    assert ran == ["3.12:2.11", "3.12:2.11"]
    page = (tmp_path / "test-matrix.md").read_text()
    assert "| 2.11 | not run | 7 passed, **1 failed** | not run |" in page
    assert "  - failed: `a.py::test`" in page
