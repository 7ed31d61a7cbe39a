"""The options of a class: their types, which values fit, and how messages call a type."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

__all__ = [
    "Options",
    "PartOptions",
    "fits",
    "option_fields",
    "part_kind",
    "wanted",
    "without_none",
]

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Options(ABC):
    """A named frozen dataclass whose fields are options.

    Texts are read and written by this class and `PartOptions`: `Configured` and `Part`, which read
    texts themselves, stand above that and derive from them.
    """

    name: ClassVar[str]
    """Kebab-case, as in pipelines."""
    summary: ClassVar[str]
    """One line for `pruneopt passes`."""


@dataclass(frozen=True)
class PartOptions(Options):
    """The options of something that others of the same kind can replace."""

    kind: ClassVar[str]
    """What it can stand for: ``criterion``, ``searcher``, ..., one of `registry.PART_GROUPS`."""


def option_fields(kind: type[Options]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the options of a pass or part class, in order of declaration."""
    return tuple(item for item in dataclasses.fields(kind) if item.init)


def part_kind(hint: Any) -> type[PartOptions] | None:
    """Return the class of parts that a field's type asks for; None for any other type."""
    return hint if isinstance(hint, type) and issubclass(hint, PartOptions) else None


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return ``float | None`` as ``float`` and True; any other type as it is, and False."""
    if get_origin(hint) in (Union, UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        return Union[tuple(rest)], len(rest) < len(get_args(hint))  # noqa: UP007  made from a list
    return hint, False


def wanted(hint: Any) -> str:
    """Return what an option of this type takes."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(
            "none" if part is type(None) else wanted(part) for part in get_args(hint)
        )
    if get_origin(hint) in (tuple, list):
        return f"a list, each {wanted(get_args(hint)[0])}"
    return WORDS.get(hint, str(hint))


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value given in Python fits an option's type.

    Of types that no text can be read for, every value does.

    Whole numbers fit where numbers are asked for, NumPy's too; a truth value is no number, nor is
    what is not finite.
    """
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if get_origin(hint) in (tuple, list):
        inner = get_args(hint)[0]
        return isinstance(value, tuple | list) and all(fits(item, inner) for item in value)
    if hint is type(None) or hint is bool or hint is str:
        return isinstance(value, hint)
    if isinstance(value, bool):
        return hint not in (int, float)
    if hint is int:
        return isinstance(value, Integral)
    if hint is float:
        return isinstance(value, Real) and math.isfinite(value)
    return True
