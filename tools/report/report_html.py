"""``report.html``: the report for reading, in one file without anything external."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pruneopt.tools.commands.latency_budget import latency_lines, latency_rows
from pruneopt.tools.report.repairs import repair_rows
from pruneopt.tools.report.report import LABELS, STAGES, achieved, verdict
from pruneopt.tools.report.sparsity import sparsity_lines, sparsity_rows
from pruneopt.tools.report.text import FLOP_NOTE, amount, percent, seconds

__all__ = ["html_report"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; min-width: 60%; } th { text-align: left; border-bottom: 2px solid #999; }
td, th { padding: .25rem .6rem .25rem 0; vertical-align: top; } tr + tr td { border-top: 1px solid #e4e4e4; }
.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.name { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.verdict { padding: .7rem 1rem; border-left: 4px solid #2a7d46; background: #eff7f1; }
.verdict.stopped { border-color: #b3731b; background: #fbf4e8; }
.quiet { color: #666; } svg { display: block; }
@media (prefers-color-scheme: dark) {
  body { background: #181a1c; color: #ddd; } tr + tr td { border-color: #333; }
  .verdict { background: #1d2b22; } .verdict.stopped { background: #30281a; } .quiet { color: #999; }
}
"""
BAR = 240


def html_report(report: Mapping[str, Any]) -> str:
    """The whole page."""
    title = escape(f"{report['model']} pruned by {report['pass']}")
    sections = (
        *(_budgets, _costs, _latency, _sparsity, _scores, _repairs, _search, _groups, _frozen),
        *(_verification, _seconds, _artefacts),
    )
    body = [
        f"<h1>{title}</h1>",
        f'<p class="verdict{" stopped" if report["interrupted"] else ""}">{escape(verdict(report))}</p>',
        *(f"<p>{escape(note)}</p>" for note in report["notes"]),
        *(line for section in sections for line in section(report)),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n'
        + ("\n".join(body) + "\n</body></html>\n")
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> Iterator[str]:
    """A table whose first ``text`` columns are names; cells are HTML already."""
    marks = ["name" if column < text else "number" for column in range(len(head))]
    yield (
        "<table><tr>"
        + "".join(
            f'<th class="{mark}">{escape(word)}</th>'
            for mark, word in zip(marks, head, strict=True)
        )
        + "</tr>"
    )
    for row in rows:
        cells = "".join(
            f'<td class="{mark}">{cell}</td>' for mark, cell in zip(marks, row, strict=True)
        )
        yield f"<tr>{cells}</tr>"
    yield "</table>"


def _budgets(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["budgets"]:
        return
    yield "<h2>Budgets</h2>"
    rows = [
        (
            escape(item["text"]),
            escape(amount(item["limit"], item["unit"])),
            escape(achieved(item, report)),
            "met" if item["met"] else "not met",
        )
        for item in report["budgets"]
    ]
    yield from _table(("budget", "limit", "achieved", ""), rows)


def _costs(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Before and after</h2>"
    before, after = report["original"], report["pruned"]
    rows = [
        (
            escape(LABELS[unit]),
            escape(amount(before[unit], unit)),
            escape(amount(after[unit], unit)),
            percent(after[unit] / before[unit]) if before[unit] else "",
            _bar(after[unit], before[unit]),
        )
        for unit in LABELS
        if unit in before
    ]
    yield from _table(("", "before", "after", "left", ""), rows)
    counted = (
        FLOP_NOTE
        if report["flops_convention"] == "macs"
        else f"FLOPs: {report['flops_convention']}."
    )
    yield f'<p class="quiet">{escape(counted)} Peak memory is that of activations.</p>'


def _latency(report: Mapping[str, Any]) -> Iterator[str]:
    if not report.get("latency"):
        return
    yield "<h2>Time on targets</h2>"
    yield from _table(
        ("", "before", "after", "left"), [tuple(map(escape, row)) for row in latency_rows(report)]
    )
    yield from (f'<p class="quiet">{escape(line)}</p>' for line in latency_lines(report))
    rounds = report["latency"]["rounds"]
    rows = [
        (
            escape(item["target"]),
            str(number),
            "" if item["limit"] is None else amount(1e9 * item["limit"], "latency"),
            amount(1e9 * item["predicted"], "latency"),
            amount(1e9 * item["measured"], "latency"),
        )
        for number, items in enumerate(rounds, 1)
        for item in items
    ]
    if len(rounds) > 1:
        yield from _table(("target", "round", "limit", "predicted", "measured"), rows)


def _scores(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["scores"]:
        return
    name = report["metric"]
    yield f"<h2>{escape(name.capitalize())}</h2>"
    rows = [
        (
            escape(STAGES.get(item["after"], item["after"])),
            percent(item["score"], 2) if name == "accuracy" else f"{item['score']:.4g}",
        )
        for item in report["scores"]
    ]
    yield from _table(("network", name), rows)


def _repairs(report: Mapping[str, Any]) -> Iterator[str]:
    rows = [tuple(map(escape, row)) for row in repair_rows(report["records"])]
    if not rows:
        return
    yield "<h2>Repair</h2>"
    yield (
        "<p class=\"quiet\">Error of a layer's outputs against the original's, relative, on the "
        "calibration images; of "
        "a constant, its size and the tensor it is in.</p>"
    )
    yield from _table(("method", "layer", "before", "after"), rows, text=2)


def _search(report: Mapping[str, Any]) -> Iterator[str]:
    search = report.get("search") or {}
    simple = {
        key: value for key, value in search.items() if isinstance(value, bool | int | float | str)
    }
    if simple:
        yield "<h2>Search</h2>"
        yield from _table(
            ("", ""), [(escape(key.replace("_", " ")), escape(str(simple[key]))) for key in simple]
        )
    training = search.get("regulariser") or {}
    if isinstance(training, Mapping) and training.get("layers"):
        yield "<h2>Growing penalty</h2>"
        rows = [
            (
                escape(item["name"]),
                str(item["groups"]),
                str(item["removed"]),
                f"{item['penalty']:.4g}",
                "" if item["ratio"] is None else f"{item['ratio']:.4g}",
                "" if item["finished"] is None else f"{item['finished']:,}",
            )
            for item in training["layers"]
        ]
        head = (
            "layer",
            "groups",
            "removed",
            "last penalty",
            "kept over removed magnitude",
            "finished at iteration",
        )
        yield from _table(head, rows)


def _groups(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Channel groups</h2>"
    free = [group for group in report["groups"] if group["frozen"] is None]
    rounded = report["records"].get("round-to", {}).get("multiples")
    head = ("group", "width", "kept", *(() if rounded is None else ("multiple of",)), "")
    rows = []
    for group in free:
        multiple = () if rounded is None else (str(rounded.get(group["name"], "")),)
        bar = _bar(group["kept"], group["width"])
        rows.append(
            (escape(group["name"]), str(group["width"]), str(group["kept"]), *multiple, bar)
        )
    yield from _table(head, rows)


def _frozen(report: Mapping[str, Any]) -> Iterator[str]:
    reasons: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for group in report["groups"]:
        if group["frozen"] is not None:
            reasons[group["frozen"]] += group["width"]
            names.setdefault(group["frozen"], []).append(group["name"])
    if not reasons:
        return
    yield "<h2>What stays whole, and why</h2>"
    rows = [
        (escape(reason), escape(", ".join(names[reason])), str(channels))
        for reason, channels in reasons.most_common()
    ]
    yield from _table(("reason", "groups", "channels"), rows, text=2)


def _sparsity(report: Mapping[str, Any]) -> Iterator[str]:
    if not report.get("sparsity"):
        return
    yield "<h2>Sparsity</h2>"
    yield from (f"<p>{escape(line)}</p>" for line in sparsity_lines(report))
    rows = [
        (
            escape(name),
            f"{weights:,}",
            f"{zeros:,}",
            percent(zeros / weights, 2),
            _bar(weights - zeros, weights),
        )
        for name, weights, zeros in sparsity_rows(report)
    ]
    yield from _table(("layer", "weights", "zeros", "sparsity", "left"), rows)


def _verification(report: Mapping[str, Any]) -> Iterator[str]:
    proof = report["verification"]
    yield "<h2>Verification</h2>"
    rows = [
        (
            "original with the removed channels unread, float64, random input",
            "",
            f"{proof['max_abs_error']:.2e}",
        ),
    ]
    if proof["max_abs_error_float32"] is not None:
        rows.append(("the same, float32, real input", "", f"{proof['max_abs_error_float32']:.2e}"))
    for item in proof["artefacts"]:
        batches = ", ".join(map(str, item["batches"]))
        rows.append(
            (f"{escape(item['artefact'])} loaded back", batches, f"{item['max_abs_error']:.2e}")
        )
    yield from _table(
        ("compared with the pruned network", "batch sizes", "largest difference"), rows
    )
    yield from (f"<p>{escape(note)}</p>" for note in proof["notes"])


def _seconds(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Time</h2>"
    yield from _table(
        ("stage", ""),
        [(escape(stage), seconds(value)) for stage, value in report["seconds"].items()],
    )


def _artefacts(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Files</h2>"
    rows = [
        (
            f"{escape(name)}",
            f'<span class="quiet">{item["sha256"][:16]}...</span>',
            amount(item["bytes"], "bytes"),
        )
        for name, item in report["artefacts"].items()
    ]
    yield from _table(("file", "SHA-256", "size"), rows, text=2)


def _bar(value: float, full: float) -> str:
    share = min(max(value / full, 0.0), 1.0) if full else 0.0
    return (
        f'<svg width="{BAR}" height="14" role="img" aria-label="{percent(share)}">'
        f'<rect width="{BAR}" height="14" fill="#8883" /><rect width="{BAR * share:.1f}" '
        'height="14" fill="#3b7dbd" />'
        "</svg>"
    )
