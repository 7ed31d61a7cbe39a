"""Tables and sections that name no medium, and how they look on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import TypeVar

from pruneopt.tools.report.text import percent, table

__all__ = [
    "Bar",
    "Cell",
    "Section",
    "Table",
    "page",
    "section_html",
    "table_html",
    "table_of",
    "table_text",
]

T = TypeVar("T")
WIDTH = 240
"""Pixels of a whole bar."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; min-width: 60%; }
th { text-align: left; border-bottom: 2px solid #999; }
td, th { padding: .25rem .6rem .25rem 0; vertical-align: top; }
tr + tr td { border-top: 1px solid #e4e4e4; }
.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.name { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.verdict { padding: .7rem 1rem; border-left: 4px solid #2a7d46; background: #eff7f1; }
.verdict.stopped { border-color: #b3731b; background: #fbf4e8; }
.quiet { color: #666; } svg { display: block; }
@media (prefers-color-scheme: dark) {
  body { background: #181a1c; color: #ddd; } tr + tr td { border-color: #333; }
  .verdict { background: #1d2b22; } .verdict.stopped { background: #30281a; }
  .quiet { color: #999; }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A share as a picture; a terminal leaves its column out."""

    value: float
    full: float


Cell = str | Bar


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head; the columns ``words`` hold words, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: Collection[int] = (0,)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    Attributes:
        lines: sentences that the terminal shows as well.
        remarks: sentences for the page alone.
    """

    title: str
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def table_of(
    items: Iterable[T],
    *columns: tuple[str, Callable[[T], Cell]],
    words: Collection[int] = (0,),
) -> Table:
    """Make a table with a row for each item.

    Args:
        columns: the head of each column, and what gives its cell of an item.
        words: the numbers of the columns that hold words.
    """
    rows = tuple(tuple(cell(item) for _, cell in columns) for item in items)
    return Table(tuple(head for head, _ in columns), rows, words)


def table_text(shown: Table) -> str:
    """Return a table as aligned columns of text, without its bars."""
    rows = [shown.head, *shown.rows]
    columns = [
        number
        for number in range(len(shown.head))
        if not any(isinstance(row[number], Bar) for row in rows)
    ]
    return table(
        [[str(row[number]) for number in columns] for row in rows],
        text_columns=[place for place, number in enumerate(columns) if number in shown.words],
    )


def section_html(section: Section) -> Iterator[str]:
    """Yield a section as HTML: its title, sentences, and tables."""
    yield f"<h2>{escape(section.title)}</h2>"
    yield from (f'<p class="quiet">{escape(line)}</p>' for line in section.lines)
    yield from (f'<p class="quiet">{escape(line)}</p>' for line in section.remarks)
    for shown in section.tables:
        yield from table_html(shown)


def table_html(shown: Table) -> Iterator[str]:
    """Yield a table as HTML."""
    marks = ["name" if column in shown.words else "number" for column in range(len(shown.head))]
    yield "<table>"
    for tag, row in (("th", shown.head), *(("td", row) for row in shown.rows)):
        cells = (
            f'<{tag} class="{mark}">{_bar(cell) if isinstance(cell, Bar) else escape(cell)}</{tag}>'
            for mark, cell in zip(marks, row, strict=True)
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table>"


def page(
    title: str, verdict: str, notes: Iterable[str], body: Iterable[str], *, stopped: bool
) -> str:
    """Return a whole page, in one file without anything external.

    Args:
        verdict: the sentence that stands out; ``stopped`` gives it the colour of a warning.
        notes: sentences below it.
        body: HTML.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    lines = [
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>',
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict{" stopped" if stopped else ""}">{escape(verdict)}</p>',
        *(f"<p>{escape(note)}</p>" for note in notes),
        *body,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def _bar(bar: Bar) -> str:
    share = min(max(bar.value / bar.full, 0.0), 1.0) if bar.full else 0.0
    return (
        f'<svg width="{WIDTH}" height="14" role="img" aria-label="{percent(share)}">'
        f'<rect width="{WIDTH}" height="14" fill="#8883" />'
        f'<rect width="{WIDTH * share:.1f}" height="14" fill="#3b7dbd" /></svg>'
    )
