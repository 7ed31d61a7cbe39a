"""A front in words and numbers: the table on the terminal, and the page for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from pruneopt.passes.analysis.cost.units import unit_named
from pruneopt.tools.report.tables import Table, page, table_html, table_of, table_text
from pruneopt.tools.report.text import amount, percent, score_text

__all__ = ["front_html", "front_lines", "label"]

Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def label(unit: str) -> str:
    """Return a cost unit in the reports' words; a unit on a target keeps the target's name."""
    return unit_named(unit).label


def table_of_points(front: Mapping[str, Any], metric: str) -> Table:
    """Return the points of a front: what each costs, what is left of the original, its score, and
    where it comes from."""
    costs = [column for unit in front["against"] for column in _cost_columns(front, unit)]
    return table_of(
        front["points"],
        ("point", lambda point: str(point["point"])),
        *costs,
        (metric, lambda point: score_text(point["score"], metric)),
        ("found as", lambda point: str(point["origin"])),
        ("candidate", lambda point: str(point["candidate"])),
        words=(len(costs) + 2,),
    )


def _cost_columns(front: Mapping[str, Any], unit: str) -> list[Column]:
    full = front["original"][unit]
    return [
        (label(unit), lambda point: amount(point["costs"][unit], unit)),
        ("left", lambda point: percent(point["costs"][unit] / full)),
    ]


def summary(front: Mapping[str, Any]) -> str:
    """Return one line: how much was judged, how, and the hypervolume."""
    stopped = "interrupted, the front so far: " if front["interrupted"] else ""
    return (
        f"{stopped}{len(front['points'])} points of {front['judged']} judged structures; "
        f"hypervolume {front['hypervolume']:.4f} (costs as shares of the original's up to 1, score "
        "above 0)"
    )


def front_lines(front: Mapping[str, Any], metric: str) -> Iterator[str]:
    """Yield the front as the terminal shows it."""
    yield table_text(table_of_points(front, metric))
    yield ""
    yield from (f"note: {note}" for note in front["notes"])
    yield f"Scores are those of the search: on held-out training images, by {front['judged_by']}."
    yield summary(front)


def front_html(front: Mapping[str, Any], metric: str, picture: str) -> str:
    """Return the page: the picture, and the table under it."""
    against = " and ".join(map(label, front["against"]))
    found = f"{front['found_by']}; {front['judged_by']}; scores on held-out training images."
    body = [
        picture,
        "<h2>Points</h2>",
        *table_html(table_of_points(front, metric)),
        f'<p class="quiet">{escape(found)}</p>',
    ]
    title = f"{front['network']}: {metric} against {against}"
    return page(title, summary(front), front["notes"], body, stopped=front["interrupted"])
