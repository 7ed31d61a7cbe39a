"""Writing files so that a reader sees the old content or the whole new one, never a part."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pruneopt.errors import UserError

__all__ = ["atomic_folder", "atomic_path", "write_json", "write_text"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file near ``path`` that takes its place on success, flushed to the disk.

    The temporary name ends like ``path``. On failure it is removed and ``path`` stays as it was. An
    `OSError` (a full disk, a missing or read-only folder) becomes a `UserError` that names the
    path.
    """
    with atomic_folder(path) as folder:
        yield folder / Path(path).name


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files take their places on success, ``path`` the last.

    The files are written under their final names. Otherwise as `atomic_path`.
    """
    final = Path(path)
    try:
        with tempfile.TemporaryDirectory(
            prefix=".partial-", dir=final.parent, ignore_cleanup_errors=True
        ) as name:
            folder = Path(name)
            yield folder
            files = {*folder.iterdir(), folder / final.name}
            for file in sorted(files, key=lambda file: (file.name == final.name, file.name)):
                _publish(file, final.parent / file.name)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}") from error


def _publish(temporary: Path, final: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    if final.exists():
        temporary.chmod(final.stat().st_mode & 0o777)
    os.replace(temporary, final)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8, line ends as given)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
