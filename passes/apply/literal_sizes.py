"""Sizes that a module's own code spells out: how a tensor is split, what shape it takes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from pruneopt.passes.apply.scope import Scope, Sizes

__all__ = ["literal_lists", "literal_sizes"]

SHAPES = ("split_size", "split_sizes", "size", "shape")
"""Attributes of ops that split and of those that give a shape."""


def literal_lists(scope: Scope) -> Mapping[tuple[int, ...], set[tuple[int, ...]]]:
    """Return every sequence of whole numbers in the module's ops -> those after the cut.

    Of all kinds, strides and paddings too: a sequence that means several things has several values.
    """
    found: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for old, new in scope.own:
        for name, before in old.attrs.items():
            after = new.attrs.get(name)
            if _whole(before) and _whole(after):
                found.setdefault(tuple(before), set()).add(tuple(after))
    return found


def literal_sizes(scope: Scope) -> Sizes:
    """Return every single size of a split or a shape in the module's ops -> those after the cut."""
    found: dict[int, set[int]] = {}
    for old, new in scope.own:
        for name in SHAPES:
            before, after = ([item.attrs.get(name)] for item in (old, new))
            if (
                isinstance(before[0], tuple)
                and isinstance(after[0], tuple)
                and len(before[0]) == len(after[0])
            ):
                before, after = list(before[0]), list(after[0])
            for one, other in zip(before, after, strict=True):
                if _is_size(one) and _is_size(other):
                    found.setdefault(one, set()).add(other)
    return found


def _whole(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, Sequence) and len(value) > 1 and all(map(_is_size, value))


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
