"""A front in words and numbers: the table on the terminal, and the page for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pruneopt.tools.report.report import LABELS
from pruneopt.tools.report.report_html import STYLE
from pruneopt.tools.report.text import amount, percent, table

__all__ = ["cost_text", "front_html", "front_lines", "label", "score_text"]


def label(unit: str) -> str:
    """A cost unit in the reports' words; the latency on a target keeps the target's name."""
    return LABELS.get(unit, unit)


def cost_text(value: float, unit: str) -> str:
    """``150.2 MFLOPs``; latencies are in milliseconds, whatever target they are of."""
    return amount(value, "latency" if unit.startswith("latency") else unit)


def score_text(value: float, metric: str) -> str:
    """``91.2 %`` for an accuracy, else the number."""
    return percent(value) if metric == "accuracy" else f"{value:.4g}"


def rows_of(front: Mapping[str, Any], metric: str) -> list[tuple[str, ...]]:
    """The table of a front, its head first."""
    units: Sequence[str] = front["against"]
    head = [
        "point",
        *(word for unit in units for word in (label(unit), "left")),
        metric,
        "found as",
        "candidate",
    ]
    rows = [tuple(head)]
    for item in front["points"]:
        costs: list[str] = []
        for unit in units:
            value, full = item["costs"][unit], front["original"][unit]
            costs += [cost_text(value, unit), percent(value / full)]
        mine = (
            str(item["point"]),
            *costs,
            score_text(item["score"], metric),
            item["origin"],
            str(item["candidate"]),
        )
        rows.append(mine)
    return rows


def summary(front: Mapping[str, Any]) -> str:
    """One line: how much was judged, how, and the hypervolume."""
    stopped = "interrupted, the front so far: " if front["interrupted"] else ""
    return (
        f"{stopped}{len(front['points'])} points of {front['judged']} judged structures; "
        "hypervolume "
        f"{front['hypervolume']:.4f} (costs as shares of the original's up to 1, score above 0)"
    )


def front_lines(front: Mapping[str, Any], metric: str) -> Iterator[str]:
    """The front on the terminal."""
    rows = rows_of(front, metric)
    yield table(rows, text_columns=(len(rows[0]) - 2,))
    yield ""
    yield from (f"note: {note}" for note in front["notes"])
    yield f"Scores are those of the search: on held-out training images, by {front['judged_by']}."
    yield summary(front)


def front_html(front: Mapping[str, Any], metric: str, picture: str) -> str:
    """The page: the picture, and the table under it."""
    title = escape(
        f"{front['network']}: {metric} against {' and '.join(map(label, front['against']))}"
    )
    head, *rows = rows_of(front, metric)
    cells = ["".join(f'<td class="number">{escape(cell)}</td>' for cell in row) for row in rows]
    body = [
        f"<h1>{title}</h1>",
        f'<p class="verdict{" stopped" if front["interrupted"] else ""}">{escape(summary(front))}</p>',
        *(f"<p>{escape(note)}</p>" for note in front["notes"]),
        picture,
        "<h2>Points</h2>",
        "<table><tr>"
        + "".join(f'<th class="number">{escape(word)}</th>' for word in head)
        + "</tr>",
        *(f"<tr>{row}</tr>" for row in cells),
        "</table>",
        f'<p class="quiet">{escape(front["found_by"])}; {escape(front["judged_by"])}; scores on '
        "held-out training "
        "images.</p>",
    ]
    meta = (
        '<meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title>'
    )
    page = f'<!doctype html>\n<html lang="en"><head>{meta}<style>{STYLE}</style></head>\n<body>\n'
    return page + "\n".join(body) + "\n</body></html>\n"
