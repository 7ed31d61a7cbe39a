"""The classes that passes and parts derive from: options that check and read what they are given.

An option may be a *part*: again a frozen dataclass of options, of a kind (criterion, searcher, ...)
that other parts can replace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, get_origin, get_type_hints

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.options.option_types import (
    Options,
    PartOptions,
    fits,
    option_fields,
    part_kind,
    wanted,
    without_none,
)
from pruneopt.passes.options.spec import parse_part

__all__ = ["Configured", "Part", "option"]

T = TypeVar("T")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def option(default: T, help: str) -> T:
    """Return a field of a pass: an option with a default and a line of help."""
    value: Any = field(default=default, metadata={"help": help})
    return value  # type: ignore[no-any-return]  # like dataclasses.field, typed as the value it stands for


@dataclass(frozen=True)
class Configured(Options):
    """Options (`option`) that are checked when they are given: of a pass, or of a part of one.

    A field typed with a class of parts may be given as text,
    ``searcher="evolution{population=20}"``; a subclass with a ``__post_init__`` of its own calls
    this one first.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if name is not None and not NAME.fullmatch(name):
            raise InternalError(
                f"{cls.__qualname__} is named {name!r}; names of passes and parts are kebab-case"
            )

    def __post_init__(self) -> None:
        for key, (kind, optional) in _part_fields(type(self)).items():
            value = getattr(self, key)
            if isinstance(value, str):
                object.__setattr__(self, key, parse_part(kind, value))
            elif not (isinstance(value, kind) or (optional and value is None)):
                raise UserError(
                    f"{key.replace('_', '-')} must be a part of the kind {kind.kind}, not {value!r}"
                )
        for key, hint in _plain_fields(type(self)).items():
            value = getattr(self, key)
            if get_origin(hint) is tuple and isinstance(
                value, str
            ):  # it would be read letter by letter
                raise UserError(
                    f"{key.replace('_', '-')} must be a list, such as [{value!r}], not the text "
                    f"{value!r}"
                )
            if not fits(value, hint):
                raise UserError(f"{key.replace('_', '-')} must be {wanted(hint)}, not {value!r}")


@dataclass(frozen=True)
class Part(Configured, PartOptions):
    """A replaceable part of a pass.

    Each kind is an abstract class that sets ``kind``; its parts set ``name``.
    """


@cache
def _part_fields(kind: type[Configured]) -> dict[str, tuple[type[PartOptions], bool]]:
    """Return the options of a class that are parts, and whether they may be None."""
    hints = get_type_hints(kind)
    found = {item.name: without_none(hints[item.name]) for item in option_fields(kind)}
    return {
        name: (part, optional)
        for name, (hint, optional) in found.items()
        if (part := part_kind(hint))
    }


@cache
def _plain_fields(kind: type[Configured]) -> dict[str, Any]:
    """Return the types of the options of a class that are no parts."""
    hints = get_type_hints(kind)
    return {
        item.name: hints[item.name]
        for item in option_fields(kind)
        if item.name not in _part_fields(kind)
    }
