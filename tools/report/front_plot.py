"""A front as a picture: SVG without anything external, a panel for every cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from pruneopt.passes.search.searchers.pareto import non_dominated
from pruneopt.tools.report.front_text import label
from pruneopt.tools.report.text import amount, score_text

__all__ = ["front_svg", "ticks"]

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 44, 58
BLUE, ORANGE, GREEN = "#1f6fb2", "#c4651a", "#2c7a3f"
NUMBERED = 40
"""Fronts with more points than this are drawn without their numbers."""
Entry = Mapping[str, Any]


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers that divide a range: at most ``most`` of 1, 2 or 5 times a power of ten
    apart."""
    if not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= rough * (1 - 1e-9)
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * place, 12) for place in range(first, last + 1)]


@dataclass(frozen=True)
class _Axis:
    """From values to places along a line of pixels."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float) -> _Axis:
        low, high = min(values), max(values)
        room = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
        return cls(low - room, high + room, start, stop)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def front_svg(front: Mapping[str, Any], measured: Sequence[Entry], metric: str) -> str:
    """Draw a front.

    Args:
        front: what `front_data` gives.
        measured: every judged structure, with ``score`` and ``costs``.
        metric: what the score is called; an ``accuracy`` is shown in percent.
    """
    units = front["against"]
    size = (
        f'width="{WIDTH}" height="{HEIGHT * len(units)}" viewBox="0 0 {WIDTH} '
        f'{HEIGHT * len(units)}"'
    )
    title = f"{metric} against {' and '.join(map(label, units))} of {front['network']}"
    about = f"{len(front['points'])} points on the front of {len(measured)} judged structures"
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title about">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="about">{escape(about)}: {escape(_spoken(front, metric))}</desc>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        "<style>text { font: 12px system-ui, sans-serif; fill: #333 }",
        ".head { font-size: 14px; font-weight: 600 }</style>",
    ]
    for number, unit in enumerate(units):
        body.append(f'<g transform="translate(0 {HEIGHT * number})">')
        body.extend(_panel(front, measured, unit, metric))
        body.append("</g>")
    return "\n".join([*body, "</svg>"]) + "\n"


def _spoken(front: Mapping[str, Any], metric: str) -> str:
    """Describe the front in words, for readers who cannot see it."""
    unit = front["against"][0]
    points = front["points"]
    shown = points if len(points) <= NUMBERED else [points[0], points[len(points) // 2], points[-1]]
    return "; ".join(
        f"{amount(item['costs'][unit], unit)} {score_text(item['score'], metric)}" for item in shown
    )


def _panel(
    front: Mapping[str, Any], measured: Sequence[Entry], unit: str, metric: str
) -> Iterator[str]:
    original = front["original"][unit]
    costs = [item["costs"][unit] for item in measured]
    scores = [item["score"] for item in measured if math.isfinite(item["score"])]
    x = _Axis.over([*costs, original], LEFT, WIDTH - RIGHT)
    y = _Axis.over(scores or [0.0], HEIGHT - BOTTOM, TOP)
    yield from _axes(x, y, unit, metric)
    baselines = {
        name: [item for item in front["baselines"] if item["origin"] == name]
        for name in ("original", "uniform", "l1")
    }

    def place(item: Entry) -> tuple[float, float]:
        return x(item["costs"][unit]), y(item["score"])

    for item in measured:
        if math.isfinite(item["score"]):
            yield _mark("judged", *place(item))
    yield from _line([place(item) for item in baselines["uniform"]], ORANGE)
    for name in ("uniform", "l1"):
        yield from (_mark(name, *place(item)) for item in baselines[name])
    yield from _stairs(front["points"], unit, place)
    for item in front["points"]:
        across, up = place(item)
        yield _mark("front", across, up)
        if len(front["points"]) <= NUMBERED:
            yield (
                f'<text x="{across:.1f}" y="{up - 8:.1f}" '
                f'text-anchor="middle">{item["point"]}</text>'
            )
    yield from (_mark("original", *place(item)) for item in baselines["original"])
    yield from _legend([name for name, found in baselines.items() if found])


def _axes(x: _Axis, y: _Axis, unit: str, metric: str) -> Iterator[str]:
    base, edge = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in ticks(y.low, y.high):
        up = y(value)
        yield f'<line x1="{LEFT}" x2="{edge}" y1="{up:.1f}" y2="{up:.1f}" stroke="#e3e3e3"/>'
        yield (
            f'<text x="{LEFT - 8}" y="{up + 4:.1f}" '
            f'text-anchor="end">{escape(score_text(value, metric))}</text>'
        )
    for value in ticks(max(x.low, 0.0), x.high, 6):
        across = x(value)
        yield (
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{base}" y2="{base + 5}" stroke="#555"/>'
        )
        yield (
            f'<text x="{across:.1f}" y="{base + 20}" '
            f'text-anchor="middle">{escape(amount(value, unit))}</text>'
        )
    yield f'<path d="M{LEFT} {TOP} V{base} H{edge}" fill="none" stroke="#555"/>'
    middle = (LEFT + edge) / 2
    yield (
        f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle" '
        f'class="head">{escape(label(unit))}</text>'
    )
    yield (
        f'<text x="{LEFT}" y="{TOP - 22}" class="head">{escape(metric)} on the images of the '
        "search</text>"
    )


def _stairs(
    points: Sequence[Entry], unit: str, place: Callable[[Entry], tuple[float, float]]
) -> Iterator[str]:
    """Draw the best score for at most a cost: a step at every point that no other beats in this
    cost."""
    if not points:
        return
    table = np.array([[item["costs"][unit], -item["score"]] for item in points], dtype=np.float64)
    best = [item for item, stays in zip(points, non_dominated(table), strict=True) if stays]
    places = [
        place(item) for item in sorted(best, key=lambda item: (item["costs"][unit], item["score"]))
    ]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(
        f" H{a:.1f} V{b:.1f}" for a, b in places[1:]
    )
    yield f'<path d="{path}" fill="none" stroke="{BLUE}" stroke-width="2"/>'


def _line(places: Sequence[tuple[float, float]], colour: str) -> Iterator[str]:
    if len(places) > 1:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in sorted(places))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-dasharray="5 4"/>'


def _dot(across: float, up: float, radius: float, colour: str) -> str:
    return f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius}" fill="{colour}"/>'


def _square(across: float, up: float, colour: str) -> str:
    return f'<rect x="{across - 4:.1f}" y="{up - 4:.1f}" width="8" height="8" fill="{colour}"/>'


def _diamond(across: float, up: float, colour: str) -> str:
    path = f"M{across:.1f} {up - 5:.1f} l5 5 l-5 5 l-5 -5 z"
    return f'<path d="{path}" fill="{colour}"/>'


def _ring(across: float, up: float) -> str:
    return (
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="7" fill="none" stroke="#111" '
        'stroke-width="2"/>'
    )


def _legend(baselines: Sequence[str]) -> Iterator[str]:
    """Draw what the marks stand for, in the lower right corner, where a front leaves room."""
    words = {
        "original": "the original",
        "uniform": "one ratio for all (uniform)",
        "l1": "ranked by score (prune)",
    }
    rows = ["front, by number", "judged", *(words[name] for name in baselines)]
    across, up = WIDTH - RIGHT - 190.0, HEIGHT - BOTTOM - 18.0 * len(rows)
    height = 18 * len(rows) + 6
    yield (
        f'<rect x="{across - 16}" y="{up - 14}" width="200" height="{height}" fill="#fff" '
        'fill-opacity=".85"/>'
    )
    for number, text in enumerate(rows):
        yield _mark(("front", "judged", *baselines)[number], across, up + 18 * number)
        yield f'<text x="{across + 14}" y="{up + 18 * number + 4}">{escape(text)}</text>'


def _mark(name: str, across: float, up: float) -> str:
    """Draw the mark of a kind of structure."""
    if name == "original":
        return _ring(across, up)
    if name == "uniform":
        return _square(across, up, ORANGE)
    if name == "l1":
        return _diamond(across, up, GREEN)
    return _dot(across, up, 4, BLUE) if name == "front" else _dot(across, up, 2.2, "#9a9a9a")
