"""What the GPU benchmark found, as text: goals and tables from the JSON file alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_guard import errors_in
from markdown_table import markdown_table

__all__ = ["GOALS", "report", "verdict"]

Row = dict[str, Any]
Found = float | str | None
MAIN = "0.75"


@dataclass(frozen=True)
class Goal:
    """What should be reached, in three steps, and where it stands in the results.

    Attributes:
        value: the figure; a text where the project has nothing to measure; None where it was not
            measured.
    """

    name: str
    gate: float
    target: float
    moonshot: float
    value: Callable[[Row], Found]


def _ways(results: Row, network: str) -> Row:
    found: Row = results["parts"].get(network, {}).get("keep", {}).get(MAIN, {}).get("ways", {})
    return found


def _faster(network: str, ours: str, base: str) -> Callable[[Row], Found]:
    """Return how many times faster one way is than another, of the same interleaved run."""

    def value(results: Row) -> Found:
        ways = _ways(results, network)
        if base == "B5c":
            ways = (
                results["parts"]
                .get("compiled", {})
                .get("networks", {})
                .get(network, {})
                .get("ways", {})
            )
        times = [ways.get(name, {}).get("ms") for name in (base, ours)]
        return times[0] / times[1] if times[0] and times[1] else None

    return value


def _roofline(network: str) -> Callable[[Row], Found]:
    return lambda results: _ways(results, network).get("P1", {}).get("roofline")


def _layers(way: str, base: str) -> Callable[[Row], Found]:
    """Return the middle one of the shapes' ratios."""

    def value(results: Row) -> Found:
        shapes = results["parts"].get("layers", {}).get("shapes", {}).values()
        pairs = [
            [shape.get("ways", {}).get(name, {}).get("ms") for name in (base, way)]
            for shape in shapes
        ]
        ratios = sorted(pair[0] / pair[1] for pair in pairs if all(pair))
        if not ratios and base.startswith("B6"):
            told = [shape.get("ways", {}).get(base, {}) for shape in shapes]
            return next((item.get("skipped") or item.get("error") for item in told if item), None)
        return ratios[len(ratios) // 2] if ratios else None

    return value


def _search(results: Row) -> Found:
    part = results["parts"].get("search", {})
    regret = part.get("ways", {}).get("P5 race", {}).get("regret, points")
    if regret is not None and regret > 0.2:
        return f"regret of {regret} points, and at most 0.2 is allowed"
    found: Found = part.get("P5 times faster than B4")
    return found


def _busy(results: Row) -> Found:
    """Return the share of P1's time in which a kernel runs: the goals are 90, 97 and 99 %."""
    idle = _ways(results, "resnet50").get("P1", {}).get("idle_share")
    return None if idle is None else 1 - idle


def _an_hour(results: Row) -> Found:
    """Return candidates an hour from the times per image of both phases; no race, nothing between
    the phases."""
    table = results["parts"].get("resnet50", {})
    other = results["parts"].get("validation", {}).get("networks", {}).get("resnet50", {})
    first, second = (
        _ways(results, "resnet50").get("P3", {}).get("ms"),
        other.get("ways", {}).get("P3", {}).get("ms"),
    )
    if not first or not second:
        return None
    hour: float = 3.6e6 / (
        2560 * first / (table["batches"] * table["images"]) + 10_000 * second / other["images"]
    )
    return hour


GOALS = (
    Goal("statistics, ResNet-50, P1 by B4", 1.6, 2.0, 2.4, _faster("resnet50", "P1", "B4")),
    Goal("statistics, MobileNetV2, P1 by B4", 2.2, 2.8, 3.2, _faster("mobilenet_v2", "P1", "B4")),
    Goal("statistics, MobileNetV1, P1 by B4", 2.2, 2.8, 3.3, _faster("mobilenet_v1", "P1", "B4")),
    Goal("ResNet-50, P1 by B1", 3.0, 3.8, 4.5, _faster("resnet50", "P1", "B1")),
    Goal("MobileNetV2, P1 by B1", 3.5, 4.8, 6.0, _faster("mobilenet_v2", "P1", "B1")),
    Goal("ResNet-50, P1 by B5c", 1.2, 1.45, 1.7, _faster("resnet50", "P1", "B5c")),
    Goal("MobileNetV2, P1 by B5c", 1.6, 2.0, 2.4, _faster("mobilenet_v2", "P1", "B5c")),
    Goal(
        "fused convolution by B6 (fp16), middle of the shapes",
        0.8,
        1.0,
        1.2,
        _layers("fused", "B6 fp16"),
    ),
    Goal("CIFAR ResNet-56, P2 by B4", 5, 8, 11, _faster("resnet56", "P2", "B4")),
    Goal("CIFAR ResNet-56, P2 by B5", 2, 2.5, 3.3, _faster("resnet56", "P2", "B5")),
    Goal("CIFAR ResNet-56, P3 by B4 (goals of P2)", 5, 8, 11, _faster("resnet56", "P3", "B4")),
    Goal("CIFAR ResNet-56, P3 by B5 (goals of P2)", 2, 2.5, 3.3, _faster("resnet56", "P3", "B5")),
    Goal("share of the fused roofline, ResNet-50", 0.45, 0.6, 0.75, _roofline("resnet50")),
    Goal("share of the fused roofline, MobileNetV2", 0.45, 0.6, 0.75, _roofline("mobilenet_v2")),
    Goal(
        "fused convolution by cuDNN's plain one, middle of the shapes",
        0.6,
        0.85,
        1.0,
        _layers("fused", "cuDNN plain"),
    ),
    Goal("whole search, P5 by B4 (few candidates)", 6, 10, 20, _search),
    Goal("candidates an hour, ResNet-50, P3: 2,560 and 10,000 images", 2e4, 5e4, 1e5, _an_hour),
    Goal("share of time in which a kernel runs, ResNet-50, P1", 0.9, 0.97, 0.99, _busy),
)


def verdict(goal: Goal, value: Found, rehearsal: bool) -> str:
    """Say what a goal's value meets; of a rehearsal nothing."""
    if not isinstance(value, float | int):
        return value or "not measured"
    if rehearsal:
        return "a rehearsal: not judged"
    steps = ((goal.moonshot, "moonshot"), (goal.target, "target"), (goal.gate, "gate"))
    return next((f"{name} met" for step, name in steps if value >= step), "gate missed")


def report(results: Row) -> str:
    """Return all tables, in markdown."""
    parts = results["parts"]
    lines = [
        "# On a GPU" + (" (a rehearsal: no figure means anything)" if results["rehearsal"] else ""),
        "",
    ]
    device = results.get("device", {})
    lines += [
        ", ".join(f"{key} {value}" for key, value in device.items()),
        "",
        *_parts(parts),
        *_goals(results),
    ]
    for name, row in parts.items():
        if "keep" in row and isinstance(row["keep"], dict):
            lines += _network(name, row)
    lines += _compiled(parts.get("compiled", {})) + _validation(parts.get("validation", {}))
    lines += _widths(parts.get("widths", {})) + _shapes(parts.get("layers", {}))
    lines += _tiles(parts.get("tuner", {}))
    for name in ("ceilings", "tests", "repeat", "ranks", "search"):
        lines += _plain(name, parts.get(name, {}))
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"## {title}", "", markdown_table(head, rows), ""] if rows else []


def _number(value: Any, scale: float = 1.0, digits: int = 3) -> str:
    return f"{value * scale:.{digits}g}" if isinstance(value, float | int) else ""


def _parts(parts: Row) -> list[str]:
    told = []
    for name, row in parts.items():
        inside = "; ".join(dict.fromkeys(errors_in(row)))
        told.append(
            [
                name,
                row.get("state", ""),
                _number(row.get("seconds")),
                _why({"error": inside} if inside else row),
            ]
        )
    return _table("Parts", ["part", "state", "s", "why"], told)


def _why(row: Row) -> str:
    told = str(row.get("error") or row.get("skipped") or row.get("told") or "")
    return told.replace("\n", " ").replace("|", "/")[:300]


def _goals(results: Row) -> list[str]:
    rows = []
    for goal in GOALS:
        value = goal.value(results)
        told = verdict(goal, value, results["rehearsal"])
        steps = [f"{step:g}" for step in (goal.gate, goal.target, goal.moonshot)]
        rows.append([goal.name, _number(value), *steps, told.replace("|", "/")])
    return _table(
        f"Goals (keep {MAIN})", ["what", "measured", "gate", "target", "moonshot", "verdict"], rows
    )


COLUMNS = (
    "ms",
    "iqr",
    "wall ms",
    "first ms",
    "prepared ms",
    "peak GB",
    "kernels",
    "idle %",
    "TB/s",
    "TFLOP/s",
    "% of roof",
)


def _way(row: Row, base: Row) -> list[str]:
    """Return the cells of a way: its figures, how it compares, why there are none."""
    cells = [
        _number(row.get(key), digits=4)
        for key in ("ms", "iqr_ms", "wall_ms", "first_ms", "prepared_ms")
    ]
    cells += [
        _number(row.get("peak_bytes"), 1e-9),
        str(row.get("kernels") or ""),
        _number(row.get("idle_share"), 100),
    ]
    cells += [_number(row.get("bytes_per_s"), 1e-12), _number(row.get("operations_per_s"), 1e-12)]
    cells += [_number(row.get("roofline"), 100), _number(row.get("off"))]
    for name in ("B1", "B4"):
        times = base.get(name, {}).get("ms"), row.get("ms")
        cells.append(_number(times[0] / times[1]) if all(times) else "")
    return [*cells, _why(row)]


def _network(name: str, row: Row) -> list[str]:
    rows = []
    for keep, found in sorted(row["keep"].items(), reverse=True):
        ways = found.get("ways", {})
        rows += [[f"{keep} {way}", *_way(ways[way], ways)] for way in sorted(ways)] or [
            [keep, *[""] * 14, _why(found)]
        ]
    title = (
        f"{name}, statistics pass of {row['batches']} batches of {row['images']} in "
        f"{row['dtype']}, per candidate"
    )
    return _table(title, ["keep, way", *COLUMNS, "off", "times B1", "times B4", "why"], rows)


def _compiled(row: Row) -> list[str]:
    rows = []
    for name, found in row.get("networks", {}).items():
        ways = found.get("ways", {})
        rows += [[f"{name} {way}", *_way(item, ways)] for way, item in ways.items()] or [
            [name, *[""] * 14, _why(found)]
        ]
    title = f"torch.compile (B5c; compiling is its first run), keep {row.get('keep', '')}"
    return _table(title, ["network, way", *COLUMNS, "off", "times B1", "times B4", "why"], rows)


def _widths(row: Row) -> list[str]:
    keys = (
        "P1 times faster than B4",
        "quartiles of P1",
        "P2 times faster than B4",
        "quartiles of P2",
        "P3 times faster than P1",
    )
    rows = [
        [
            name,
            str(len(found.get("sets", ()))),
            *(_number(found.get(key)) for key in keys),
            _why(found),
        ]
        for name, found in row.get("networks", {}).items()
    ]
    return _table("Random widths, cuDNN not tuned", ["network", "sets", *keys, "why"], rows)


def _validation(row: Row) -> list[str]:
    rows = []
    for name, found in row.get("networks", {}).items():
        ways = found.get("ways", {})
        for way, item in ways.items():
            figures = [
                _number(item.get(key), digits=4)
                for key in ("ms", "iqr_ms", "wall_ms", "first_ms", "off")
            ]
            times = ways.get("B4", {}).get("ms"), item.get("ms")
            ratio = _number(times[0] / times[1]) if all(times) else ""
            rows.append([f"{name} {way}, {found['images']} images", *figures, ratio, _why(item)])
        rows += [] if ways else [[name, *[""] * 6, _why(found)]]
    title = f"Evaluation mode, batch norms folded, keep {MAIN}, per candidate"
    return _table(
        title, ["network, way", "ms", "iqr", "wall ms", "first ms", "off", "times B4", "why"], rows
    )


def _shapes(row: Row) -> list[str]:
    rows = []
    for name, found in row.get("shapes", {}).items():
        for way, item in found.get("ways", {}).items():
            figures = [_number(item.get("ms"), 1e3), _number(item.get("operations_per_s"), 1e-12)]
            figures += [
                _number(item.get("bytes_per_s"), 1e-12),
                _number(item.get("times cuDNN plain")),
            ]
            rows.append([f"{name}: {way}", *figures, _why(item)])
        if "error" in found:
            rows.append([name, "", "", "", "", _why(found)])
    rows += [[what, "", "", "", "", why] for what, why in row.get("not measured", {}).items()]
    return _table(
        "Single convolutions",
        ["shape, way", "µs", "TFLOP/s", "TB/s", "times cuDNN plain", "why"],
        rows,
    )


def _tiles(row: Row) -> list[str]:
    """Return a table of the tiles that were tried, one line for each class of convolutions."""
    rows = []
    for name, found in row.get("classes", {}).items():
        times = found.get("default_us"), found.get("us")
        ratio = _number(times[0] / times[1]) if all(times) else ""
        rows.append(
            [
                name,
                *(_number(time) for time in times),
                ratio,
                str(found.get("tile", "")),
                _why(found),
            ]
        )
    return _table(
        "Tuned tiles", ["convolutions", "default µs", "fastest µs", "ratio", "tile", "why"], rows
    )


def _plain(name: str, row: Row) -> list[str]:
    """Return the lines of what has no table of its own, a line for each entry."""
    hidden = ("does", "state", "seconds", "at", "values", "eager", "fused", "said")
    lines = [
        f"- {key}: {_inline(value, hidden)}" for key, value in row.items() if key not in hidden
    ]
    return [f"## {name}: {row.get('does', '')}", "", *lines, ""] if lines else []


def _inline(value: Any, hidden: tuple[str, ...]) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {_inline(item, hidden)}" for key, item in value.items() if key not in hidden
        )
    return _number(value, digits=5) if isinstance(value, float) else str(value)
