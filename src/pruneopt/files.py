"""Writing files so that a reader sees the old content or the whole new one, never a part.

Temporary folders say inside who made them: what a killed process left is removed by the next one
that writes there, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pruneopt.errors import UserError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "is_sealed",
    "remove_leftovers",
    "seal",
    "sync_folder",
    "temporary_folder",
    "write_json",
    "write_text",
]

PARTIAL = ".partial-"
"""The beginning of the name of a folder in which a file is being written."""
OWNER = ".pruneopt"
"""The file in a temporary folder that holds the number of its process and the name of its host."""
OLD_SECONDS = 60.0
"""A folder that is empty for so long is not being filled."""
SEAL = b"pruneopt sha256 "
_END_OF_ZIP = b"PK\x05\x06"
_SEAL_BYTES = len(SEAL) + 64


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
        remove_leftovers(final.parent, PARTIAL)
        with temporary_folder(PARTIAL, final.parent) as folder:
            yield folder
            files = {*folder.iterdir(), folder / final.name} - {folder / OWNER}
            for file in sorted(files, key=lambda file: (file.name == final.name, file.name)):
                _publish(file, final.parent / file.name)
            sync_folder(final.parent)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}") from error


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that says whose it is, and is removed at the end."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / OWNER).write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        yield folder


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove the temporary folders of processes of this host that are dead: those that say so
    inside."""
    for folder in parent.glob(f"{prefix}*"):
        if folder.is_dir() and not folder.is_symlink() and _is_dead(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    """Return whether a folder names a process of this host that is no more, or was left empty, by
    one that was killed before it could."""
    try:
        number, host = (folder / OWNER).read_text(encoding="utf-8").split()
        if host != socket.gethostname() or int(number) <= 0:
            return False
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except FileNotFoundError:
        return _is_old(folder) and not any(folder.iterdir())
    except (OSError, ValueError, OverflowError):
        return False
    return False


def _is_old(folder: Path) -> bool:
    return time.time() - folder.stat().st_mtime > OLD_SECONDS


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


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


def seal(path: Path) -> None:
    """Write the SHA-256 of all bytes of a zip file into its comment, where readers of zip files
    look past it.

    Raises:
        OSError: no zip file without a comment, or it cannot be written.
    """
    with path.open("rb+") as file:
        size = file.seek(-22, os.SEEK_END) + 22
        if file.read(4) != _END_OF_ZIP:
            raise OSError(f"{path} is no zip file")
        file.seek(size - 2)
        file.write(struct.pack("<H", _SEAL_BYTES))
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(size)
        file.write(SEAL + found.encode())


def is_sealed(path: Path) -> bool:
    """Return whether a file ends with the hash of what comes before, as `seal` writes it."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        rest = file.seek(0, os.SEEK_END) - _SEAL_BYTES
        file.seek(0)
        while rest > 0 and (block := file.read(min(rest, 1 << 20))):
            found.update(block)
            rest -= len(block)
        return file.read() == SEAL + found.hexdigest().encode()
