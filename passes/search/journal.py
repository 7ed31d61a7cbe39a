"""The journal of a search: JSON lines that survive being killed at any point.

The first line says which search it is; every further line is one result, on the disk before the
next begins. A torn last line is dropped. A journal of another search is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruneopt.digest import digest
from pruneopt.errors import UserError
from pruneopt.manifest import claim

__all__ = ["Journal", "is_journal"]

KIND = "pruneopt search"


class Journal:
    """An append-only file of results; without a path nothing is kept.

    Args:
        path: the file; it is made with its folder, or continued.
        parts: what makes this search the one it is, by the words that an error uses ("the weights",
            "the seed").

    Raises:
        UserError: the file belongs to another search, is something else, or cannot be written.
    """

    def __init__(self, path: Path | None, parts: Mapping[str, object]) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        """The results that were there already, in order."""
        if path is None:
            return
        header = {
            "journal": KIND,
            "key": digest(parts),
            **{name: digest(p) for name, p in parts.items()},
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            claim(path)
            data = path.read_bytes() if path.exists() else b""
            line = _line(header)
            if line.startswith(data):
                # Nothing, or a torn first line.
                _replace(path, line)
            else:
                self.entries, valid = _read(path, data, header)
                os.truncate(path, valid)
        except OSError as error:
            raise UserError(
                f"the search journal {path} cannot be used: {error.strerror or error}"
            ) from error

    def append(self, entry: Mapping[str, object]) -> None:
        """Write one result and wait until it is on the disk."""
        if self.path is None:
            return
        try:
            with self.path.open("ab") as file:
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"the search journal {self.path} cannot be written: {error.strerror or error}"
            ) from error


def is_journal(path: Path) -> bool:
    """Return whether a file begins as a journal does, or as one whose first line was cut off."""
    first = json.dumps({"journal": KIND})[:-1].encode()
    with path.open("rb") as file:
        return first.startswith(file.read(len(first)))


def _line(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _replace(path: Path, line: bytes) -> None:
    with path.open("wb") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _read(
    path: Path, data: bytes, header: Mapping[str, object]
) -> tuple[list[dict[str, Any]], int]:
    """Return the whole entries after the first line, and how many bytes are valid."""
    lines = data.splitlines(keepends=True)
    first = _parsed(lines[0])
    if first is None or first.get("journal") != header["journal"]:
        raise UserError(
            f"{path} is not a search journal: move it away, or use another run directory"
        )
    if first.get("key") != header["key"]:
        differing = [
            name
            for name in header
            if name not in ("journal", "key") and first.get(name) != header[name]
        ]
        raise UserError(
            f"{path} belongs to another search ({' and '.join(differing) or 'its version'} "
            "differ): use another run "
            "directory, or delete the journal to start anew"
        )
    entries, valid = [], len(lines[0])
    for number, line in enumerate(lines[1:], 2):
        entry = _parsed(line)
        if entry is None and number < len(lines):
            raise UserError(
                f"line {number} of {path} is damaged: delete the lines from there on to continue "
                "before it"
            )
        if entry is None:
            break
        entries.append(entry)
        valid += len(line)
    return entries, valid


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a complete line as a dictionary, or None."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
