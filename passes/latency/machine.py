"""On what a measurement was taken: a time is worth nothing on another device or under another
version."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import msgspec

from pruneopt.errors import UserError
from pruneopt.passes.targets.target import Target

__all__ = ["FORMAT", "describe", "machine_of"]

FORMAT = 1
"""Of the database and of what regions are; a file of another is refused."""


class _Machine(msgspec.Struct):
    processor: str
    runtime: str
    format: int


def machine_of(target: Target) -> str:
    """Return processor, runtime with its version and device, and our own format, as JSON with
    sorted keys."""
    found = {"processor": processor(), "runtime": target.runtime(), "format": FORMAT}
    return json.dumps(found, sort_keys=True)


def describe(machine: str) -> str:
    """Return what `machine_of` gave, in words."""
    try:
        found = msgspec.json.decode(machine, type=_Machine)
    except (ValueError, RecursionError) as error:
        raise UserError(f"a record of times names no machine: {error}") from error
    return f"{found.runtime} on {found.processor} (format {found.format})"


def processor() -> str:
    """Return the processor's model."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
