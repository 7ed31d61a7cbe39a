"""The errors pruneopt raises: what the user did, and what we broke.

A `UserError` carries one clear sentence: what is wrong, where in the user's file, what to do. The
command line prints it without a traceback and exits with `exit_code`. An `InternalError` is ours: a
broken invariant, please report it.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "InternalError",
    "PruneoptError",
    "UserError",
    "VerificationError",
    "error_in_text",
]


class PruneoptError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(PruneoptError):
    """Bad input: the message is one sentence that says what, where and what to do."""

    exit_code = 2


class BudgetError(UserError):
    """A budget below what the constraints allow; the message names the smallest reachable value."""

    exit_code = 3


class VerificationError(PruneoptError):
    """A transformed network is not the original with channels removed; nothing is delivered."""


class InternalError(PruneoptError):
    """A broken invariant of pruneopt itself."""


def error_in_text(
    text: str, name: str, start: int, end: int, message: str, note: str = ""
) -> UserError:
    """Return the error about the characters from ``start`` to ``end`` of a text.

    Its lines are ``name:line:column: error: message``, the line of text, carets below the
    characters (at least one, none behind the line's end), and the note if there is one.
    """
    first = text.rfind("\n", 0, start) + 1
    shown = text[first:].split("\n", 1)[0]
    # A tab keeps its width when the line above has it too.
    indent = "".join("\t" if char == "\t" else " " for char in shown[: start - first])
    carets = "^" * max(1, min(end, first + len(shown)) - start)
    place = f"{name}:{text.count(chr(10), 0, start) + 1}:{start - first + 1}"
    lines = [f"{place}: error: {message}", f"  {shown}", f"  {indent}{carets}"]
    return UserError("\n".join([*lines, f"  note: {note}"] if note else lines))
