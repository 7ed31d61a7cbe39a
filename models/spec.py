"""The text specs users type: `name?key=value&key=value`, and helpful words when a name is
unknown."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from pruneopt.errors import UserError

__all__ = ["checked_shape", "did_you_mean", "option_values", "split_options"]

Scalar = bool | int | float | str


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """Split `"cifar10:dir?limit=5&x=y"` into `("cifar10:dir", {"limit": "5", "x": "y"})`.

    Raises:
        UserError: an option without `=`, without a name, or given twice.
    """
    head, mark, tail = spec.partition("?")
    options: dict[str, str] = {}
    for part in tail.split("&") if mark else ():
        key, equals, value = part.partition("=")
        if not key or not equals or not value:
            raise UserError(
                f"'{part}' in '{spec}' is not an option: write name=value after the '?', joined by "
                "'&'"
            )
        if key in options:
            raise UserError(f"the option '{key}' is given twice in '{spec}': keep one")
        options[key] = value
    return head, options


def option_values(options: dict[str, str]) -> dict[str, Scalar]:
    """Return the option texts as Python values: `true`/`false`, integers, decimals, else the text
    itself."""
    return {key: _value(text) for key, text in options.items()}


def _value(text: str) -> Scalar:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"did you mean a or b?"` from the names closest to `word`, or all names when none is
    close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(names[:12])
    return (
        f"known are {shown}{' and others' if len(names) > 12 else ''}" if names else "none is known"
    )


def checked_shape(what: str, shape: object) -> tuple[int, ...]:
    """Return `shape` as a tuple of sizes above 0; UserError about `what` for anything else."""
    if (
        not isinstance(shape, tuple | list)
        or not shape
        or not all(
            isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape
        )
    ):
        raise UserError(
            f"{what} must be whole numbers above 0, batch first, such as (1, 3, 224, 224), not "
            f"{shape!r}"
        )
    if math.prod(shape) > 2**32:
        raise UserError(f"{what} has more than 2^32 numbers: {shape!r}"[:200])
    return tuple(shape)
