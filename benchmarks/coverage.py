"""Which networks compile: each is captured, coupled, pruned to half its FLOPs, proved, and run in
onnxruntime.

Every network runs in a process of its own, with a time-out and a memory limit. A row is appended to
the log as soon as it is known, so that a stopped run goes on where it was; the last row of a
network counts.

    python benchmarks/coverage.py  # all lists of benchmarks/networks/
    python benchmarks/coverage.py torchvision --until verify       # one list, up to the proof
    python benchmarks/coverage.py timm --skip onnx                 # all stages but the export
    python benchmarks/coverage.py timm --skip verify --skip apply  # what the export needs; the rest
    of each row stays python benchmarks/coverage.py torchvision:resnet18 timm:dpn68  # single
    networks
    python benchmarks/coverage.py timm --failed                    # what failed, once more
    python benchmarks/coverage.py --report  # no measuring: the tables, and results/coverage.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from coverage_measure import STAGES, measure
from coverage_networks import LISTS, named
from coverage_peer import peer
from coverage_process import run_alone
from coverage_report import failures, remarks, save, summary, table
from environment import stamped

from pruneopt import export_onnx

ROOT = Path(__file__).parents[1]
PLACES = "|".join(re.escape(place) for place in (str(ROOT), *sys.path) if Path(place).is_absolute())
HOMES = re.compile(rf"[^\s\"']*/site-packages/|(?:{PLACES})/")
"""Where files lie on this machine, which is nobody's business."""
LOG = ROOT / "runs" / "coverage.jsonl"
PRELOAD = (
    "torchvision",
    "timm",
    "torch.export",
    "onnx",
    "onnxruntime",
    "torch_pruning",
    "transformers",
)

FOUND_AT = {
    "verify": ("proof_error", "proof_scale"),
    "run": ("module_error",),
    "onnx": ("onnx_error",),
    "apply": ("applied", "refused"),
}
"""The stages that can be left out if all that need them are, and what a row holds of them."""
NEEDS = (("onnx", "run"), ("apply", "run"), ("apply", "verify"))
PLAN = ("parameters", "ops", "groups", "flops", "target", "achieved_flops", "achieved_params")
"""What two rows of one network have in common if the same channels were cut."""

Rows = dict[str, dict[str, Any]]


def read_log(path: Path) -> Rows:
    """Return the last row of every network, with the last result of the peer."""
    rows: Rows = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            old = rows.get(row["spec"], {})
            rows[row["spec"]] = merged(old, row)
    return rows


def merged(old: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Put a row of ours in the place of the former one, but for the peer's result and what was
    found at stages left out now, which stays with what it was measured by (``kept_from``)."""
    if "until" not in row:
        return old | row
    kept = {"peer": old["peer"]} if "peer" in old else {}
    same = "error" not in old and all(old.get(key) == row.get(key) for key in PLAN)
    stages = [
        stage
        for stage in row.get("skipped", ())
        if same and stage in FOUND_AT and stage in old["seconds"]
    ]
    kept |= {key: old[key] for stage in stages for key in FOUND_AT[stage] if key in old}
    if stages:
        before, whole = old.get("kept_from", {}), old.get("environment")
        kept["kept_from"] = {stage: before.get(stage, whole) for stage in stages}
    seconds = row["seconds"] | {stage: old["seconds"][stage] for stage in stages}
    return kept | row | {"seconds": seconds}


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the log, with files named as they lie in their package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(HOMES.sub("", json.dumps(row)) + "\n")


def finished(row: dict[str, Any] | None, stages: Sequence[str]) -> bool:
    """Return whether a row holds all stages asked for, or failed before."""
    return (
        row is not None
        and "until" in row
        and ("error" in row or set(stages) <= set(row["seconds"]))
    )


def sweep(specs: Iterable[str], rows: Rows, options: argparse.Namespace) -> None:
    """Measure one network after the other; rows go to the log."""
    deadline = time.monotonic() + options.stop_after if options.stop_after else float("inf")
    for spec in specs:
        if time.monotonic() > deadline:
            break
        if wanted(rows.get(spec), options):
            work = partial(measure, spec, asked(options))
            row = {
                "spec": spec,
                "until": options.until,
                "skipped": sorted(set(STAGES) - set(asked(options))),
            }
            row |= run_alone(work, timeout=options.timeout, memory=options.memory)
            row = stamped(row)
            rows[spec] = merged(rows.get(spec, {}), row)
            append(options.log, row)
            say(spec, row)
        if options.peer and (options.again or "peer" not in rows.get(spec, {})):
            outputs = rows.get(spec, {}).get("output_layers", [])
            found = stamped(
                run_alone(
                    partial(peer, spec, outputs), timeout=options.timeout, memory=options.memory
                )
            )
            rows[spec] = rows.get(spec, {"spec": spec}) | {"peer": found}
            append(options.log, {"spec": spec, "peer": found})
            say(f"{spec} (torch-pruning)", found)


def wanted(row: dict[str, Any] | None, options: argparse.Namespace) -> bool:
    """Return whether a network is to be measured, given what is known of it."""
    if options.failed:
        return row is not None and "error" in row
    return options.again or not finished(row, asked(options))


def asked(options: argparse.Namespace) -> list[str]:
    """Return the stages to go through: what later ones need is never skipped."""
    stages = STAGES[: STAGES.index(options.until) + 1]
    return [stage for stage in stages if stage not in options.skip]


def say(name: str, row: dict[str, Any]) -> None:
    result = f"FAILED at {row['stage']}: {row['error']}" if "error" in row else "ok"
    print(f"{name}: {result} ({row['wall']:.0f} s)", flush=True)


def preload(*, export: bool) -> None:
    """Import once what every forked process needs; the first export to ONNX, where one follows,
    imports the most."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in PRELOAD:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    if export:
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(torch.nn.Linear(1, 1), torch.zeros(1, 1), Path(folder) / "model.onnx")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "networks",
        nargs="*",
        help=f"model specs, or lists ({', '.join(LISTS)}; default: all lists)",
    )
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage")
    parser.add_argument(
        "--skip", choices=tuple(FOUND_AT), action="append", default=[], help="a stage to leave out"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="processor seconds for one network"
    )
    parser.add_argument("--memory", type=float, default=12.0, help="gigabytes for one network")
    parser.add_argument(
        "--stop-after",
        type=float,
        default=None,
        metavar="S",
        help="begin no network after S seconds",
    )
    parser.add_argument(
        "--again", action="store_true", help="measure networks that have a row already"
    )
    parser.add_argument(
        "--failed", action="store_true", help="measure only networks whose last row is a failure"
    )
    parser.add_argument(
        "--log",
        type=Path,
        default=LOG,
        help="where rows are appended (default: runs/coverage.jsonl)",
    )
    parser.add_argument(
        "--peer", action="store_true", help="prune each network with torch-pruning as well"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write results/coverage.json, print the tables and stop",
    )
    options = parser.parse_args()
    for stage, needed in NEEDS:
        if needed in options.skip and stage in asked(options):
            parser.error(f"--skip {needed} needs --skip {stage}")
    rows = read_log(options.log)
    if not options.report:
        preload(export="onnx" in asked(options))
        sweep(named(options.networks), rows, options)
        return 0
    save(rows)
    print(summary(rows), failures(rows), remarks(rows), table(rows), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
