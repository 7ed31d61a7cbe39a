"""Versions, hardware and the commit that stand beside every measured figure."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "triton",
    "torch-pruning",
    "pruneopt",
)


def environment() -> dict[str, Any]:
    """Return Python, package versions, processor model, number of cores and commit (no names of
    machines)."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **versions,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "commit": commit(),
    }


def stamped(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that was measured just now, with what it was measured by.

    Every row has its own: a file gathers rows of several days, machines and programs.
    """
    return {**row, "environment": environment()}


@cache
def commit(root: Path = ROOT) -> str | None:
    """Return the commit of the program, with `+changes` where tracked files differ from it; None
    outside of a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", "src", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
