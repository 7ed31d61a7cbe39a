"""The types that options have: whether a value fits one, and how a type is called in messages."""

from __future__ import annotations

import math
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["fits", "wanted"]

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def wanted(hint: Any) -> str:
    """``a whole number``, ``one of or, and``: what an option of this type takes."""
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
    """Whether a value given in Python fits an option's type; of types that no text can be read for,
    every value does.

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
