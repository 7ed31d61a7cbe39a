"""What was measured, as a file and as Markdown: counts by family, failures with their reasons, one
line a network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coverage_networks import LISTS, family, named
from markdown_table import markdown_table

from pruneopt.files import write_json

__all__ = ["failures", "remarks", "save", "summary", "table"]

RESULTS = Path(__file__).parent / "results" / "coverage.json"

Rows = Mapping[str, Mapping[str, Any]]


def save(rows: Rows) -> None:
    """Write the rows."""
    data = {
        "budget": "50%FLOPs",
        "ratio": 0.3,
        "networks": dict(rows),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS, data)


def summary(rows: Rows) -> str:
    """Return a table by family and list: networks measured, how many are right up to each check,
    and how far they can be pruned."""
    columns = [
        "family",
        "in the list",
        "measured",
        "captured",
        "cut and proved",
        "module right",
        "ONNX right",
    ]
    columns += ["own module slimmed", "at 50 % of the FLOPs"]
    columns += ["peer right", "peer runs, unchecked", "peer wrong or failed"]
    listed = named([name for name in LISTS if name != "quick"])
    families = dict.fromkeys(sorted(map(family, {*listed, *rows})))
    lines = [
        _counts(name, [spec for spec in listed if family(spec) == name], rows) for name in families
    ]
    lines.append(
        _counts(
            "torchvision, all", [spec for spec in listed if spec.startswith("torchvision:")], rows
        )
    )
    return markdown_table(columns, lines)


def _counts(name: str, listed: list[str], rows: Rows) -> list[str | int]:
    mine = [rows[spec] for spec in listed if spec in rows]
    reached = [row for row in mine if "proof_error" in row and row["target"] <= 0.5]
    captured = [row for row in mine if row.get("stage") not in ("start", "load", "capture")]
    counts: list[int | str] = [
        len(listed),
        len(mine),
        len(captured),
        sum("proof_error" in row for row in mine),
    ]
    counts += [_of(mine, key) for key in ("module_error", "onnx_error", "applied")]
    return [name, *counts, len(reached), *_peer_counts(mine)]


def _of(rows: list[Mapping[str, Any]], key: str) -> str:
    """Return how many have a check of how many that were put to it; a dash for none."""
    stage = {"module_error": "run", "onnx_error": "onnx", "applied": "apply"}[key]
    asked = [row for row in rows if stage in row.get("seconds", {}) or row.get("stage") == stage]
    good = sum(row.get(key, False) is not False for row in asked)  # an error of 0.0 is no failure
    return f"{good}/{len(asked)}" if asked else "-"


def _peer_counts(rows: list[Mapping[str, Any]]) -> list[str | int]:
    peers = [row["peer"] for row in rows if "peer" in row]
    if not peers:
        return ["-"] * 3
    kinds = Counter(_peer_kind(item) for item in peers)
    return [f"{kinds['right']}/{len(peers)}", kinds["unchecked"], kinds["wrong"] + kinds["failed"]]


def _peer_kind(item: Mapping[str, Any]) -> str:
    if "kind" in item:
        return "failed"
    if not item["same_shapes"] or item["right"] is False:
        return "wrong"
    return "right" if item["right"] else "unchecked"


def failures(rows: Rows) -> str:
    """Return a list of the networks that stopped, with the stage and the reason."""
    found = [(spec, row) for spec, row in rows.items() if "error" in row]
    return (
        "\n".join(f"- `{spec}`, at {row['stage']}: {row['error']}" for spec, row in found)
        or "- none"
    )


def remarks(rows: Rows) -> str:
    """List what is no failure but worth knowing, with the networks: refusals, ops without a rule,
    what is frozen."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for spec, row in rows.items():
        kinds = {
            "own module refused": [row["refused"]] if "refused" in row else [],
            "frozen": row.get("frozen", []),
        }
        kinds |= {
            "no rule": row.get("unknown_ops", []),
            "exported": [row["exported"]] if "exported" in row else [],
        }
        kinds["above half of the FLOPs"] = (
            [f"{row['target']:.0%}"] if row.get("target", 0) > 0.5 else []
        )
        for kind, texts in kinds.items():
            for text in texts:
                found.setdefault(kind, {}).setdefault(_general(text), {})[spec] = None
    lines = []
    for kind, texts in found.items():
        lines.append(f"{kind}:")
        for text, specs in sorted(texts.items(), key=lambda item: -len(item[1])):
            lines.append(
                f"- {len(specs)} "
                f"({', '.join(list(specs)[:6])}{', ...' if len(specs) > 6 else ''}): {text}"
            )
    return "\n".join(lines)


def _general(text: str) -> str:
    """Return a message without names and numbers, so that the same cause in many networks is one
    cause."""
    return re.sub(r"%\w+|\d+|[\w/]+\.py", "*", text)[:200]


def table(rows: Rows) -> str:
    """Return a table with a line for each network."""
    columns = [
        "network",
        "groups",
        "FLOPs left at least",
        "FLOPs",
        "parameters",
        "proof error",
        "ONNX error",
    ]
    columns += ["seconds", "parameters at 30 %", "peer's", "peer"]
    lines: list[list[Any]] = []
    for spec, row in rows.items():
        if "proof_error" not in row:
            lines.append([spec, f"failed at {row.get('stage', row['until'])}"])
            continue
        cells = [
            spec,
            row["groups"],
            f"{row['smallest_flops']:.1%}",
            f"{row['achieved_flops']:.2%}",
        ]
        cells += [
            f"{row['achieved_params']:.1%}",
            f"{row['proof_error']:.1e}",
            _error(row.get("onnx_error")),
        ]
        cells += [
            f"{sum(row['seconds'].values()):.1f}",
            f"{row['at_ratio_params']:.1%}",
            *_peer_cells(row.get("peer")),
        ]
        lines.append(cells)
    return markdown_table(columns, lines, left=(0, len(columns) - 1))


def _peer_cells(item: Mapping[str, Any] | None) -> list[str]:
    if item is None:
        return ["", ""]
    kind = _peer_kind(item)
    if kind == "failed":
        return ["", f"{item['kind']} at {item['stage']}"]
    return [f"{item['params']:.1%}", f"{kind}, {item['seconds']:.1f} s"]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
