"""Parts of a benchmark that fail, hang or kill their process, and leave the results of the others
in the file.

A process performs parts one after the other and writes the file after each. A process over it,
which holds nothing that can break, starts another one for the rest where that process ended before
its time.
"""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pruneopt.files import write_json

__all__ = [
    "BROKEN",
    "Clock",
    "Part",
    "Results",
    "Skipped",
    "errors_in",
    "guarded",
    "perform",
    "supervise",
]

BROKEN = 3
"""The exit code of a process that can do no more, such as one whose GPU has faulted."""
GRACE = 20.0
"""Seconds that a part may take beyond the end before its process is stopped."""

Row = dict[str, Any]


class Skipped(Exception):
    """What a part raises that has nothing to do here; the message says why."""


class Clock:
    """Time that is left, in seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Part:
    """A part of a benchmark.

    Attributes:
        name: on the command line.
        does: in a few words.
        seconds: what it takes; with less it is not begun.
        run: fills the row it is given, so that what it found before it failed is kept.
    """

    name: str
    does: str
    seconds: float
    run: Callable[[Row], None]


class Results:
    """What is known so far, in a JSON file.

    ``state`` of a part: running, done, partly (something in it failed), failed or not begun.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: Row = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
        )

    @property
    def parts(self) -> dict[str, Row]:
        found: dict[str, Row] = self.all["parts"]
        return found

    def write(self) -> None:
        write_json(self.path, self.all)


def guarded(row: Row, run: Callable[[], object]) -> bool:
    """Run something; where it fails, its error's text goes into the row. Whether it came to its
    end."""
    try:
        run()
    except Skipped as reason:
        row["skipped"] = str(reason)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
        row["at"] = [
            f"{Path(item.filename).name}:{item.lineno}"
            for item in traceback.extract_tb(error.__traceback__)
        ]
        return False
    return True


def perform(
    parts: Sequence[Part], results: Results, clock: Clock, healthy: Callable[[], bool]
) -> int:
    """Run parts, each under a guard, and write the file before and after each; the exit code.

    Args:
        parts: in this order.
        results: where rows go.
        clock: how long all may take.
        healthy: whether more can be done; a part may have caught what broke the device.
    """
    for part in parts:
        row: Row = {"does": part.does, "state": "running"}
        results.parts[part.name] = row
        left = clock.left
        if left < part.seconds:
            row |= {
                "state": "not begun",
                "skipped": f"{max(left, 0):.0f} s were left, and it takes {part.seconds:.0f}",
            }
            results.write()
            continue
        results.write()
        started = time.monotonic()
        whole = guarded(row, partial(part.run, row))
        row["state"] = "failed" if not whole else "partly" if any(errors_in(row)) else "done"
        row["seconds"] = round(time.monotonic() - started, 2)
        results.write()
        print(
            f"{part.name}: {row['state']} after {row['seconds']} s {row.get('error', '')}",
            flush=True,
        )
        if not healthy():
            return BROKEN
    return 0


def errors_in(value: Any) -> Iterator[str]:
    """Yield the texts of errors in a row and all that it holds."""
    if isinstance(value, dict):
        if "error" in value:
            yield str(value["error"])
        for item in value.values():
            yield from errors_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from errors_in(item)


def supervise(
    names: Sequence[str],
    results: Results,
    clock: Clock,
    command: Callable[[Sequence[str]], list[str]],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Let another process perform parts, and a new one what a process that ended left
    undone.

    Args:
        names: of the parts.
        results: the file that the processes write; read again when one has ended.
        clock: how long all may take.
        command: starts a process for the parts it is given.
        environment: of the processes; None is this one's.
    """
    rest = list(names)
    while rest:
        if clock.left <= 0:
            results.parts.update(
                {name: {"state": "not begun", "skipped": "no time was left"} for name in rest}
            )
            break
        end = _ended(command(rest), clock.left + GRACE, environment)
        head = {key: value for key, value in results.all.items() if key != "parts"}
        results.all = head | json.loads(results.path.read_text(encoding="utf-8"))
        finished = [
            name
            for name in rest
            if results.parts.get(name, {}).get("state", "running") != "running"
        ]
        if len(finished) < len(rest) and end != f"ended with code {BROKEN}":
            cut = next(name for name in rest if name not in finished)
            row = results.parts.setdefault(cut, {})
            row |= {"state": "failed", "error": f"its process {end}"}
            finished.append(cut)
        rest = [name for name in rest if name not in finished]
        results.write()
    results.write()


def _ended(command: list[str], seconds: float, environment: Mapping[str, str] | None) -> str:
    """Run a process; how it ended."""
    try:
        done = subprocess.run(command, env=environment, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"was stopped after {seconds:.0f} s"
    return f"ended with code {done.returncode}"
