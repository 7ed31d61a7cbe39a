"""The place in somebody's code from which a call was made."""

from __future__ import annotations

import re
from pathlib import Path

import torch

__all__ = ["TORCH_HOME", "short_path", "user_frame"]

TORCH_HOME = Path(torch.__file__).parent
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def user_frame(trace: str) -> tuple[str, int]:
    """Return the innermost frame outside PyTorch, its file shortened as `short_path` does."""
    frames = [(file, int(line)) for file, line in _FRAME.findall(trace)]
    outside = [frame for frame in frames if not Path(frame[0]).is_relative_to(TORCH_HOME)]
    if not outside:
        return "", 0
    file, line = outside[-1]
    return short_path(Path(file)), line


def short_path(path: Path) -> str:
    """Shorten a path to be the same on every machine.

    An installed file is named by its path in the package, a user's file from the working directory.
    """
    if "site-packages" in path.parts:
        return path.as_posix().rpartition("site-packages/")[2]
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return "/".join(path.parts[-2:])
