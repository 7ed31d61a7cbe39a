"""Run the tests that depend on PyTorch's internals with every supported Python and torch.

    python tests/matrix.py                     # every cell; `make test-matrix` does the same
    python tests/matrix.py 3.12:2.11 3.13:2.15 # these cells only
    python tests/matrix.py --table             # no runs, only the table of what was run

An environment is made for each cell, one at a time, with the torchvision that the installer finds
to fit, and removed after it. Results are kept in `.matrix/`, so that a run that was stopped goes on
where it was; a cell is run again once the commit has changed. The table goes to
`docs/test-matrix.md`. Pythons are looked for on PATH and where pyenv puts them; uv installs where
it is on PATH (or named by UV), else pip.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / ".matrix"
PAGE = ROOT / "docs" / "test-matrix.md"
PYTHONS = ("3.11", "3.12", "3.13")
TORCHES = ("2.11", "2.12", "2.13", "2.14", "2.15")
TESTS = (
    "tests/ir/capture",
    "tests/ir/export",
    "tests/passes/analysis/channels",
    "tests/passes/analysis/ops",
    "tests/passes/apply",
)
# Each torch names its own versions of these (2.11 takes no setuptools from 82 on).
FREE = ("torch==", "torchvision==", "triton==", "cuda-", "setuptools==")
INTRODUCTION = """# Which versions were tested

`make test-matrix` makes an environment for each supported Python and torch, with the torchvision
that fits, and runs the tests of capture, coupling, export and `apply_` in it: what reads PyTorch's
internals. The other tests run with the newest versions (`make test`). A cell says how many tests
passed; what failed stands below the table.
"""


@dataclass(frozen=True)
class Result:
    """Counts of one cell; `error` says why there are none."""

    commit: str
    date: str
    versions: str = ""
    passed: int = 0
    skipped: int = 0
    failures: tuple[str, ...] = ()
    seconds: int = 0
    error: str = ""

    @property
    def words(self) -> str:
        if self.error:
            return "not installed"
        failed = f", **{len(self.failures)} failed**" if self.failures else ""
        return f"{self.passed} passed{failed}"


class InstallError(Exception):
    """An environment that cannot be made; the message is the installer's."""


def find_python(version: str) -> str:
    """Find the interpreter of a version.

    Raises:
        InstallError: there is none on PATH or in pyenv's folder.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
    for path in map(str, filter(None, [shutil.which(f"python{version}"), *installed])):
        # Asked to run: what pyenv puts on PATH may be a script that refuses.
        if not subprocess.run([path, "-c", ""], capture_output=True).returncode:
            return path
    raise InstallError(f"there is no Python {version} on this machine")


def make_environment(folder: Path, python: str, torch: str) -> None:
    """Install pruneopt and what its tests need beside `torch` into a new environment.

    Raises:
        InstallError: with the installer's last words.
    """
    interpreter, own = find_python(python), str(folder / "bin" / "python")
    constraints = Path(f"{folder}.txt")
    constraints.write_text("\n".join([*pins(), f"torch=={torch}.*"]) + "\n", encoding="utf-8")
    if uv := os.environ.get("UV") or shutil.which("uv"):
        make = [uv, "venv", "-q", "--python", interpreter]
        install = [uv, "pip", "install", "-q", "--python", own]
    else:
        make = [interpreter, "-m", "venv"]
        install = [own, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    shutil.rmtree(folder, ignore_errors=True)
    run([*make, str(folder)])
    run([*install, "-c", str(constraints), "-e", f"{ROOT}[dev]"])


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "==" in line and not line.startswith(FREE)]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
        raise InstallError(" ".join(line.strip() for line in said[-6:]))


def run_tests(folder: Path) -> tuple[int, int, tuple[str, ...]]:
    """Run the tests in an environment: the number passed, the number skipped, what failed."""
    report = Path(f"{folder}.xml")
    report.unlink(missing_ok=True)
    options = ["-q", "--timeout", "300", "-p", "no:cacheprovider", f"--junitxml={report}"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with Path(f"{folder}.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pytest", *options, *TESTS],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if not report.exists():
        return 0, 0, (f"pytest stopped early: see {log.name}",)
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures = tuple(name(case) for case in cases if is_failure(case))
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - len(failures) - skipped, skipped, failures


def is_failure(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def versions(folder: Path) -> str:
    code = "import torch, torchvision as v; print(torch.__version__, v.__version__)"
    command = [str(folder / "bin" / "python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    return " with torchvision ".join(done.stdout.split())


def run_cell(cell: str, commit: str, keep: bool) -> Result:
    python, torch = cell.split(":")
    folder = STORE / f"python{python}-torch{torch}"
    date = datetime.date.today().isoformat()
    start = time.monotonic()
    try:
        make_environment(folder, python, torch)
        passed, skipped, failures = run_tests(folder)
        seconds = round(time.monotonic() - start)
        return Result(commit, date, versions(folder), passed, skipped, failures, seconds)
    except InstallError as error:
        return Result(commit, date, error=str(error))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def page(results: dict[str, Result]) -> str:
    """Write the table and, below it, versions, failures and reasons."""
    lines = [INTRODUCTION, f"| torch | {' | '.join(f'Python {p}' for p in PYTHONS)} |"]
    lines.append("| --- " * (len(PYTHONS) + 1) + "|")
    for torch in TORCHES:
        cells = [results.get(f"{python}:{torch}") for python in PYTHONS]
        words = [cell.words if cell else "not run" for cell in cells]
        lines.append(f"| {torch} | {' | '.join(words)} |")
    lines.append("")
    for cell, result in sorted(results.items()):
        python, torch = cell.split(":")
        detail = result.error or f"torch {result.versions}, {result.skipped} skipped, {result.date}"
        lines.append(f"- Python {python}, torch {torch}: {detail}")
        lines += [f"  - failed: `{failure}`" for failure in result.failures]
    return "\n".join(lines) + "\n"


def load() -> dict[str, Result]:
    path = STORE / "results.json"
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {
        cell: Result(**fields | {"failures": tuple(fields["failures"])})
        for cell, fields in stored.items()
    }


def save(results: dict[str, Result]) -> None:
    text = json.dumps({cell: asdict(result) for cell, result in results.items()}, indent=1)
    (STORE / "results.json").write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


def main() -> int:
    every = [f"{python}:{torch}" for torch in TORCHES for python in PYTHONS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="PYTHON:TORCH", help="default: all")
    parser.add_argument("--keep", action="store_true", help="leave the environments in .matrix/")
    parser.add_argument("--table", action="store_true", help="write the table without any run")
    arguments = parser.parse_args()
    if unknown := [cell for cell in arguments.cells if cell not in every]:
        parser.error(f"{', '.join(unknown)}: not among {' '.join(every)}")
    STORE.mkdir(exist_ok=True)
    results = load()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    for cell in [] if arguments.table else arguments.cells or every:
        if cell not in results or results[cell].commit != commit:
            results[cell] = run_cell(cell, commit, arguments.keep)
            save(results)
        result = results[cell]
        print(f"{cell}: {result.words}", *result.failures, result.error, sep="\n  ", flush=True)
    save(results)
    return int(any(results[cell].failures for cell in arguments.cells or results))


if __name__ == "__main__":
    sys.exit(main())
