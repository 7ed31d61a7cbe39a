"""What a compile did, as data (``report.json``) and as the lines that the terminal shows."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.cost.budget import BudgetUse
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.graph_rewrites.verify import Verification
from pruneopt.tools.bundle.checks import Check
from pruneopt.tools.commands.latency_budget import latency_lines, latency_rows
from pruneopt.tools.report.sparsity import sparsity_lines
from pruneopt.tools.report.text import FLOP_NOTE, amount, change, percent, table

__all__ = [
    "LABELS",
    "STAGES",
    "achieved",
    "budgets_data",
    "costs",
    "groups_data",
    "original_costs",
    "plain",
    "report_lines",
    "verdict",
    "verification_data",
    "versions",
]

LABELS = {
    "flops": "FLOPs",
    "params": "parameters",
    "bytes": "weights",
    "memory": "peak memory",
    "latency": "latency by table",
}
"""Cost units as the reports call them; a report holds the latency only where there was a table."""
STAGES = {
    "slice": "pruned",
    "repair-bias": "repaired by bias",
    "repair-lstsq": "repaired by least squares",
    "repair-bn": "repaired by batch norm",
    "recalibrate": "recalibrated",
    "finetune": "fine-tuned",
    "scratch": "from scratch",
}
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "safetensors",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
)


def costs(cost: CostModel, plan: Plan) -> dict[str, int]:
    """What a plan costs, in every unit."""
    widths = cost.widths(plan)
    return {unit: int(cost.measure(unit, widths)) for unit in cost.units}


def original_costs(cost: CostModel) -> dict[str, int]:
    """What the original costs, in every unit, with the blocks that were dropped."""
    return {unit: int(cost.original(unit)) for unit in cost.units}


def budgets_data(uses: Sequence[BudgetUse]) -> list[dict[str, Any]]:
    """Budgets with their limits and what was achieved."""
    return [
        {
            "text": use.text,
            "unit": use.unit,
            "limit": use.limit,
            "achieved": use.value,
            "original": use.full,
            "met": use.value <= use.limit * (1 + 1e-12),  # half of an odd number is no whole one
        }
        for use in uses
    ]


def groups_data(coupling: Coupling, plan: Plan) -> list[dict[str, Any]]:
    """Every group with its width and how much of it is kept."""
    return [
        {
            "name": group.name,
            "width": group.width,
            "kept": len(plan[group.name]) if group.name in plan else group.width,
            "frozen": group.frozen,
        }
        for group in coupling.groups
    ]


def verification_data(verification: Verification, checks: Sequence[Check]) -> dict[str, Any]:
    """The proof, and what loading the artefacts back gave."""
    return {
        **plain(verification),
        "artefacts": [plain(check) for check in checks],
    }


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("pruneopt", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """A record of a pass as data that JSON can hold; what has no such form becomes its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Before and after as a table, the budgets, the proof, and the verdict in the last line."""
    before, after = report["original"], report["pruned"]
    rows = [("", "before", "after", "left")]
    for unit in (unit for unit in LABELS if unit in before):
        left = percent(after[unit] / before[unit]) if before[unit] else ""
        rows.append((LABELS[unit], amount(before[unit], unit), amount(after[unit], unit), left))
    rows.extend(latency_rows(report))
    rows.extend(_score_rows(report))
    yield table(rows)
    yield ""
    for note in report["notes"]:
        yield f"note: {note}"
    if report.get("reached") == "one channel step":
        yield (
            "note: the budget is not used to 99 %, but one more channel of any group would "
            "exceed it"
        )
    yield (
        FLOP_NOTE
        if report["flops_convention"] == "macs"
        else f"FLOPs as counted by {report['flops_convention']}."
    )
    yield from latency_lines(report)
    yield from sparsity_lines(report)
    yield _proof(report["verification"])
    changed = len(report["verification"]["notes"])
    if changed:
        places = "one place" if changed == 1 else f"{changed} places"
        yield (
            f"Not equivalent by construction in {places}, where statistics run over channels; "
            "the reports name them."
        )
    yield verdict(report)


def _score_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    stages = report["scores"]
    if not stages:
        return
    name = report["metric"]
    first = _score(stages[0]["score"], name)
    for stage in stages[1:]:
        yield (
            f"{name} {STAGES.get(stage['after'], 'after ' + stage['after'])}",
            first,
            _score(stage["score"], name),
            "",
        )


def _score(value: float, name: str) -> str:
    return percent(value) if name == "accuracy" else f"{value:.4g}"


def _proof(verification: Mapping[str, Any]) -> str:
    single = verification["max_abs_error_float32"]
    real = "" if single is None else f", and off by at most {single:.1e} on real input in float32"
    return (
        "Proved in float64: the original with channels removed, off by at most "
        f"{verification['max_abs_error']:.1e}"
        f" (outputs up to {verification['scale']:.3g}){real}."
    )


def achieved(item: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What a budget came to; parameters that masks hold at zero do not count."""
    text = change(item["achieved"], item["original"], item["unit"])
    return f"{text} not zero" if report.get("sparsity") and item["unit"] == "params" else text


def verdict(report: Mapping[str, Any]) -> str:
    """One line: every budget with what was achieved, and that everything was checked."""
    parts = [
        f"{item['text']} {'met' if item['met'] else 'NOT met'} with {achieved(item, report)}"
        for item in report["budgets"]
    ]
    checked = ", ".join(item["artefact"] for item in report["verification"]["artefacts"])
    stopped = "interrupted, the best so far: " if report.get("interrupted") else ""
    return f"{stopped}{'; '.join([*parts, f'verified, and {checked} loaded back equal'])}"
