"""The kernels' own tests on this machine (T6), and their compilation ahead of what is timed, side
by side."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_guard import Clock, Row

__all__ = ["Started", "environment_for", "tests_part"]

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = {
    "PASSED": "passed",
    "FAILED": "failed",
    "ERROR": "not run for errors",
    "SKIPPED": "skipped",
}


def environment_for(rehearsal: bool) -> dict[str, str]:
    """Return the environment of processes that import pruneopt, also where it is not installed, and
    start Triton's interpreter or not."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    paths = [str(ROOT / "src"), *filter(None, [kept.get("PYTHONPATH")])]
    kept["PYTHONPATH"] = os.pathsep.join(paths)
    kept.pop("TRITON_INTERPRET", None)
    return kept | ({"TRITON_INTERPRET": "1"} if rehearsal else {})


class Started:
    """A process that writes into a file, so that what it said until a time-out is known."""

    def __init__(self, command: Sequence[str], log: Path, rehearsal: bool) -> None:
        self.log, self._since = log, time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment_for(rehearsal),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def ended(self, seconds: float) -> dict[str, Any]:
        """Return its exit code, or None when it had to be stopped; the seconds it took; the end of
        what it said."""
        try:
            code: int | None = self._process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = None
        took = round(time.monotonic() - self._since, 1)
        return {"code": code, "seconds": took, "said": self.text[-1500:] if code != 0 else ""}

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def tests_part(
    rehearsal: bool, clock: Clock, logs: Path, ahead: dict[str, list[str]], row: Row
) -> None:
    """Run the tests, and beside them the processes that fill Triton's cache.

    Args:
        rehearsal: a few tests, in the interpreter.
        clock: a third of what is left is the most that this takes.
        logs: a folder for what the processes say.
        ahead: their command lines, by what they compile.
        row: is filled.
    """
    limit = clock.left if rehearsal else clock.left / 3
    files = (
        ["tests/kernels/numerics/test_elementwise.py", "-k", "pack"]
        if rehearsal
        else ["tests/kernels"]
    )
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *files]
    if not rehearsal and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(8, (os.cpu_count() or 2) // 2)))]
    tests = Started(command, logs / "tests.log", rehearsal)
    others = {name: Started(line, logs / f"{name}.log", rehearsal) for name, line in ahead.items()}
    budget = Clock(limit)
    row["compiled"] = {name: process.ended(budget.left) for name, process in others.items()}
    row["tests"] = {
        "command": " ".join(command[1:]),
        **tests.ended(budget.left),
        **counted(tests.text),
    }
    if row["tests"]["code"] is None:
        row["tests"]["cut short"] = f"stopped after {limit:.0f} s"
    bad = [name for name, found in row["compiled"].items() if found["code"] != 0]
    if row["tests"]["code"] not in (0, None) or bad:
        told = f"pytest ended with code {row['tests']['code']}" if row["tests"]["code"] else ""
        raise RuntimeError(
            "; ".join(filter(None, [told, f"not compiled: {', '.join(bad)}" if bad else ""]))
        )


def counted(text: str) -> dict[str, Any]:
    """Return outcomes of tests in what pytest says with -v, also up to where it was stopped; which
    failed."""
    found: dict[str, Any] = {}
    lines = [line for line in text.splitlines() if "::" in line and " - " not in line]
    for outcome, key in OUTCOMES.items():
        named = {
            name
            for line in lines
            if re.search(rf"\b{outcome}\b", line)
            for name in re.findall(r"\S+::\S+", line)
        }
        found[key] = len(named)
        if outcome in ("FAILED", "ERROR") and named:
            found[f"which {key}"] = sorted(named)[:40]
    return found
