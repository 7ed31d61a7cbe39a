"""Reading files that others may have written: of a bounded size, in the types that they must have.

Whatever is wrong with a file is a `UserError` of one sentence.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pruneopt.errors import UserError

__all__ = ["as_record", "read_bytes", "read_record", "read_text"]

LIMIT = 256 * 2**20
"""Bytes of a record or a text: far more than any network of ours makes, and no trouble to hold."""

T = TypeVar("T")


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """Return the content of a file, which is to be a ``what`` ("plan", "front", ...).

    Raises:
        UserError: no such file, one that cannot be read, or one that is too large.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:  # a name may hold what no file system takes
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the {what} {_shown(path)}: {reason}") from error
    if len(content) > LIMIT:
        raise UserError(f"{path} is no {what}: it is larger than {LIMIT >> 20} MiB")
    return content


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Return the text of a file in UTF-8; otherwise as `read_bytes`."""
    try:
        return read_bytes(path, what).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no {what}: it is not UTF-8 text ({error.reason})") from error


def read_record(path: str | os.PathLike[str], what: str, kind: type[T]) -> T:
    """Return the record in a JSON file, as a value of the type that it must have.

    Raises:
        UserError: as `read_bytes`; no JSON, or JSON of another form: the message says where.
    """
    content = read_bytes(path, what)
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is no {what}: {_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else _reason(error)
        raise UserError(f"{path} is no {what}: it is not JSON ({reason})") from error


def as_record(data: Any, where: str, kind: type[T]) -> T:
    """Return plain data as a value of a type; `UserError` that begins with ``where`` if it is
    something else."""
    try:
        return msgspec.convert(data, kind)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:1].lower() + text[1:]


def _shown(path: str | os.PathLike[str]) -> str:
    """Return a path in characters that can be printed, and not too many."""
    text = os.fspath(path).encode(errors="backslashreplace").decode()
    return text if len(text) <= 200 else f"{text[:200]}..."
