"""Writing files so that a reader sees the old content or the whole new one, never a part."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pruneopt.errors import UserError

__all__ = ["atomic_path", "write_json", "write_text"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; on success it is flushed to the disk and takes the place of ``path``.

    The temporary name ends like ``path``. On failure it is removed and ``path`` stays as it was. An `OSError` (a full disk,
    a missing or read-only folder) becomes a `UserError` that names the path.
    """
    final = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=final.suffix, dir=final.parent)
        temporary = Path(name)
        os.close(handle)
        yield temporary
        _publish(temporary, final)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _publish(temporary: Path, final: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    # mkstemp makes files private to the user; give the file the rights any other new file would have.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(final.stat().st_mode & 0o777 if final.exists() else 0o666 & ~mask)
    os.replace(temporary, final)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8, line ends as given)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
