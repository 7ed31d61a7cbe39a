"""A function in a process of its own, with a time-out and a memory limit: whatever happens there
costs one row.

Processes are forked from one that has imported everything, which saves seconds for every network.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["Tell", "run_alone"]

POLL = 0.5
"""Seconds between two looks at a process."""
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 20.0
"""Wall-clock seconds for every processor second that is allowed: for processes that wait for
ever."""

Row = dict[str, Any]
Tell = Callable[[str, Row], None]
"""Hears each stage's name before it begins, and the row so far: what was measured survives a crash
or a time-out."""
Work = Callable[[Tell], Row]


def run_alone(work: Work, *, timeout: float, memory: float) -> Row:
    """Return the row that ``work`` returns, or what it told before it failed, with ``error``,
    ``kind`` and ``stage``.

    Args:
        timeout: processor seconds, so that other work on the machine fails no network.
        memory: resident gigabytes beyond which the process is ended.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    stage, peak, row = "start", 0.0, None
    told: Row = {}
    while row is None:
        peak = max(peak, _resident(process.pid))
        if (
            _processor_seconds(process.pid) > timeout
            or time.monotonic() - start > PATIENCE * timeout
        ):
            row = _failed("time-out", f"not finished in {timeout:.0f} s of processor time")
        elif peak > memory:
            row = _failed("memory", f"more than {memory:g} GB")
        elif ours.poll(POLL):
            try:
                kind, *content = ours.recv()
            except EOFError:
                process.join()
                row = _failed("crash", f"the process ended with exit code {process.exitcode}")
            else:
                if kind == "stage":
                    stage, told = content
                else:
                    row = content[0]
    if process.is_alive():
        process.join(1.0)
        process.kill()
    process.join()
    if "error" in row:
        row = told | row | {"stage": stage}
    return row | {"wall": round(time.monotonic() - start, 1), "peak_gb": round(peak, 2)}


def _child(work: Work, pipe: Connection) -> None:
    # Libraries print and warn at will; what counts goes through the pipe.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        row = work(lambda stage, row: pipe.send(("stage", stage, row)))
    except BaseException as error:
        row = _failed(type(error).__name__, " ".join(str(error).split())[:600])
        row["where"] = _where(error)
    with suppress(BrokenPipeError):
        pipe.send(("row", row))
    pipe.close()
    os._exit(0)


def _failed(kind: str, text: str) -> Row:
    return {"kind": kind, "error": text or kind}


def _where(error: BaseException) -> list[str]:
    """Return the innermost frames of an error and of its cause, as file:line."""
    found: list[str] = []
    link: BaseException | None = error
    while link is not None and len(found) < 9:
        frames = traceback.extract_tb(link.__traceback__)[-3:]
        found += [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        link = link.__cause__ or link.__context__
    return found


def _resident(pid: int | None) -> float:
    """Return resident gigabytes of a process; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e9
    except (OSError, IndexError):
        return 0.0


def _processor_seconds(pid: int | None) -> float:
    """Return what a process used of the processor; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    except (OSError, IndexError):
        return 0.0
