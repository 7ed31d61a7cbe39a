"""Dotted paths of modules in a network."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["common_module"]


def common_module(modules: Iterable[str]) -> str:
    """Return the innermost module around all of some modules.

    Empty where that is the network itself.
    """
    shared: list[str] = []
    for column in zip(*(module.split(".") for module in modules), strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)
