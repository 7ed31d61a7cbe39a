"""Multiply-accumulates of an op, as products of axis lengths: nothing here knows how long the axes
are after pruning."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.ir.graph import Value

__all__ = ["AxisOf", "Count", "elements"]

AxisOf = tuple[Value, int]


@dataclass(frozen=True, slots=True)
class Count:
    """``factor`` times the product of the lengths of ``axes`` (at batch 1)."""

    axes: tuple[AxisOf, ...]
    factor: int = 1


def elements(value: Value, start: int = 0) -> tuple[AxisOf, ...]:
    """Return the axes of a value from ``start`` on: their product is its number of elements."""
    return tuple((value, axis) for axis in range(start, value.type.rank))
