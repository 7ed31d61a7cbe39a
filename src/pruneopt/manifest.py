"""The list of what is ours in a directory that we write to: names and hashes, in the directory.

What the list does not name, or names with other bytes, belongs to somebody else: it is never
deleted, moved or overwritten. The list is also the journal of a swap, in which a finished result
takes the place of an earlier one, file by file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pruneopt.digest import file_digest
from pruneopt.errors import UserError
from pruneopt.files import write_json

__all__ = ["MANIFEST", "Entry", "Manifest", "Swap", "check_listed", "claim"]

MANIFEST = "pruneopt.json"
FORMAT, VERSION = "pruneopt-files", 1
LARGEST = 16_000_000
"""Bytes of a list that is read; ours are a few thousand."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The hash and the size of a file."""

    sha256: str
    bytes: int

    @staticmethod
    def of(path: Path) -> Entry:
        """Return the entry of a file as it is now."""
        return Entry(file_digest(path), path.stat().st_size)

    def fits(self, path: Path) -> bool:
        """Return whether a file, no link, has these bytes."""
        if path.is_symlink() or not path.is_file() or path.stat().st_size != self.bytes:
            return False
        return file_digest(path) == self.sha256


@dataclass(frozen=True, slots=True)
class Swap:
    """A replacement that was begun: what is to lie in the directory, and what was there before."""

    new: dict[str, Entry]
    old: dict[str, Entry]


@dataclass
class Manifest:
    """What is ours in a folder.

    Attributes:
        run: what decides the result of the run that wrote here, in words for `--resume`.
        files: what was finished.
        state: names of what an unfinished run may have left, whose bytes change while it runs.
        swap: the replacement that was begun and not finished.
        finished: whether the last run came to its end.
    """

    folder: Path
    run: dict[str, str] = field(default_factory=dict)
    files: dict[str, Entry] = field(default_factory=dict)
    state: set[str] = field(default_factory=set)
    swap: Swap | None = None
    finished: bool = False

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the list in a folder, None where there is none.

        Raises:
            UserError: it cannot be read, or is not one of ours.
        """
        path = folder / MANIFEST
        if not path.exists():
            return None
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError("it is too large")
            data = json.loads(path.read_text(encoding="utf-8"))
            return _manifest(folder, data)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is not the list of files that pruneopt writes ({error}): move it away"
            ) from error

    def write(self) -> None:
        """Write the list, whole or not at all."""
        swap = self.swap and {"new": _plain(self.swap.new), "old": _plain(self.swap.old)}
        data = {
            "format": FORMAT,
            "version": VERSION,
            "finished": self.finished,
            "run": self.run,
            "files": _plain(self.files),
            "state": sorted(self.state),
            "swap": swap,
        }
        write_json(self.folder / MANIFEST, data)

    def check(self, names: Iterable[str]) -> None:
        """Raise `UserError` for the first of the names that is listed and has other bytes, or for a
        swap that was not finished."""
        if self.swap is not None:
            raise UserError(
                f"{self.folder} is half replaced, as its run was killed: repeat the command that "
                "wrote it, with --resume"
            )
        for name in names:
            entry = self.files.get(name)
            if entry is not None and not entry.fits(self.folder / name):
                state = "was changed since" if (self.folder / name).exists() else "is missing:"
                raise UserError(
                    f"{self.folder / name} {state} pruneopt wrote it (its hash in {MANIFEST} "
                    "differs): write it anew"
                )


def claim(path: Path) -> None:
    """Enter a file that is about to be made in the list of its folder, or of the folder above that;
    where there is no list nothing happens.

    Raises:
        UserError: there is such a file, and it is not ours.
    """
    for folder in (path.parent, path.parent.parent):
        manifest = Manifest.read(folder)
        if manifest is None:
            continue
        name = path.relative_to(folder).as_posix()
        if name in manifest.state:
            return
        if path.exists() and not (name in manifest.files and manifest.files[name].fits(path)):
            raise UserError(f"{path} was not written by pruneopt: move it away, or rename it")
        manifest.files.pop(name, None)
        manifest.state.add(name)
        manifest.write()
        return


def check_listed(path: Path) -> None:
    """Raise `UserError` where a list beside a file names it with another hash."""
    manifest = Manifest.read(path.parent)
    if manifest is not None:
        manifest.check([path.name])


def _plain(entries: dict[str, Entry]) -> dict[str, Any]:
    return {
        name: {"sha256": entry.sha256, "bytes": entry.bytes}
        for name, entry in sorted(entries.items())
    }


def _manifest(folder: Path, data: object) -> Manifest:
    """Return the list that JSON data hold; `ValueError` that says what is wrong with them."""
    found = _record(data, "it")
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(f"it is not of the format {FORMAT} {VERSION}")
    state, finished, swap = found.get("state"), found.get("finished"), found.get("swap")
    if not isinstance(state, list) or not isinstance(finished, bool):
        raise ValueError("its state is no list, or finished is neither true nor false")
    run = _record(found.get("run"), "its run")
    if not all(isinstance(value, str) for value in run.values()):
        raise ValueError("its run holds something else than texts")
    return Manifest(
        folder,
        run,
        _entries(found.get("files")),
        {_name(item) for item in state},
        None if swap is None else _swap(_record(swap, "its swap")),
        finished,
    )


def _swap(value: dict[str, Any]) -> Swap:
    return Swap(_entries(value.get("new")), _entries(value.get("old")))


def _record(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no record")
    return value


def _entries(value: object) -> dict[str, Entry]:
    return {
        _name(name): _entry(_record(item, name)) for name, item in _record(value, "files").items()
    }


def _entry(value: dict[str, Any]) -> Entry:
    sha256, size = value.get("sha256"), value.get("bytes")
    if not isinstance(sha256, str) or re.fullmatch("[0-9a-f]{64}", sha256) is None:
        raise ValueError("a sha256 is no SHA-256")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError("a number of bytes is none")
    return Entry(sha256, size)


def _name(value: object) -> str:
    """Return a name inside the folder, at most one folder deep: nothing else is ever touched."""
    if not isinstance(value, str) or "\\" in value or "\0" in value or len(value) > 255:
        raise ValueError("a name of a file is none")
    parts = PurePosixPath(value).parts
    if not 1 <= len(parts) <= 2 or {"..", ".", "/"} & set(parts) or MANIFEST in parts:
        raise ValueError(f"it names {value!r}, which is not inside its folder")
    return value
