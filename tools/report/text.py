"""Numbers with units, and plain tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

from pruneopt.passes.analysis.cost.units import unit_named

__all__ = ["FLOP_NOTE", "amount", "change", "percent", "score_text", "seconds", "table", "times"]

FLOP_NOTE = "A FLOP is one multiply-accumulate, batch 1."


def _digits(value: float) -> str:
    """Write about four digits, whole numbers without a point."""
    if value == int(value) and abs(value) < 1e4:
        return str(int(value))
    return f"{value:.{1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"


def amount(value: float, unit: str) -> str:
    """Write an amount as ``150.2 MFLOPs``; ``unit`` is the name of a cost unit, such as flops or
    latency."""
    factor, word = _scale(value, unit)
    return f"{_digits(value / factor)} {word}"


def change(value: float, full: float, unit: str) -> str:
    """Write a change as ``150.2 MFLOPs (50.0 % of 300.4)``; the prefix of the larger number serves
    both."""
    factor, word = _scale(full, unit)
    share = percent(value / full if full else 1.0)
    return f"{_digits(value / factor)} {word} ({share} of {_digits(full / factor)})"


def _scale(largest: float, name: str) -> tuple[int, str]:
    """Return what to divide amounts by, and the unit's symbol behind its prefix."""
    unit = unit_named(name)
    prefix = unit.prefix_for(largest)
    return unit.prefixes[prefix], prefix + unit.symbol


def percent(share: float, digits: int = 1) -> str:
    """Write a share as ``50.0 %``."""
    return f"{100 * share:.{digits}f} %"


def score_text(value: float, metric: str | None, digits: int = 1) -> str:
    """Write a score as ``91.2 %`` for an accuracy, else as the number."""
    return percent(value, digits) if metric == "accuracy" else f"{value:.4g}"


def times(number: int) -> str:
    """Write ``once`` or ``3 times``."""
    return "once" if number == 1 else f"{number} times"


def seconds(value: float) -> str:
    """Write ``0.42 s``, ``12.3 s`` or ``3 min 5 s``."""
    if value >= 60:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def table(rows: Sequence[Sequence[str]], *, text_columns: Collection[int] = (0,)) -> str:
    """Align rows as columns under a head, the first row; all but the text columns are aligned to
    the right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(cell + space if index in text_columns else space + cell)
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def _width(text: str) -> int:
    """Count the columns on a terminal: a module's name may hold wide characters."""
    return sum(2 if unicodedata.east_asian_width(mark) in "WF" else 1 for mark in text)
