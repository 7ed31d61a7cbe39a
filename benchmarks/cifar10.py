"""Trained CIFAR-10 ResNets at half their FLOPs: the search, against ranking by L1, globally and by
one ratio for all.

    python benchmarks/cifar10.py --data 'cifar10:DIR?normalise=imagenet' --weights DIR --out
    runs/cifar10

DIR of ``--weights`` holds ``cifar10_resnet20_optA.safetensors`` and
``cifar10_resnet56_optA.safetensors``. Runs the command line once for each row (an hour or two on
two cores); a bundle that is there is read instead of made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from environment import environment
from markdown_table import markdown_table

from pruneopt.files import write_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "cifar10.json"
RECALIBRATED = "couple,cost,{},slice,verify,recalibrate"
RUNS: dict[str, list[str]] = {
    "resnet20 abn": [
        "--pass",
        "abn{candidates=60 calibration-batches=30}",
        "--finetune-epochs",
        "8",
    ],
    "resnet20 l1": ["--pipeline", RECALIBRATED.format("l1")],
    "resnet20 uniform": ["--pipeline", RECALIBRATED.format("uniform")],
    "resnet56 abn": [
        *(
            "--pass",
            "abn{candidates=16 calibration-batches=20 subval-limit=1000 finetune-epochs=0}",
        ),
        *("--finetune-epochs", "2"),
    ],
}


def report(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report of one row's bundle, which is made if it is not there.

    What it was made by lies beside the bundle, so that a bundle that was there keeps it.
    """
    bundle = options.out / name.replace(" ", "_")
    if not (bundle / "report.json").exists():
        network = name.partition(" ")[0]
        weights = options.weights / f"cifar10_{network}_optA.safetensors"
        command = [
            sys.executable,
            "-m",
            "pruneopt.tools.main",
            "compile",
            f"zoo:{network}",
            "--budget",
            "50%FLOPs",
        ]
        command += [
            "--weights",
            str(weights),
            "--data",
            options.data,
            "--out",
            str(bundle),
            *RUNS[name],
        ]
        subprocess.run(command, check=True)
        write_json(made_by(bundle), environment())
    found: dict[str, Any] = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    beside = made_by(bundle)
    made = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
    return {**found, "environment": made}


def made_by(bundle: Path) -> Path:
    """Return the file beside a bundle that says what it was made by."""
    return bundle.with_name(f"{bundle.name}.environment.json")


def row(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a report says about cost, accuracy by stage (a share, on the test images), and
    the proof."""
    keys = ("flops", "params", "bytes", "memory")
    return {
        "environment": found["environment"],
        "pipeline": found["pipeline"],
        "original": {key: found["original"][key] for key in keys},
        "pruned": {key: found["pruned"][key] for key in keys},
        "accuracy": {stage["after"]: stage["score"] for stage in found["scores"]},
        "proof": {
            key: found["verification"][key] for key in ("max_abs_error", "max_abs_error_float32")
        },
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; accuracy in percent."""
    stages = ("original", "slice", "recalibrate", "finetune")
    columns = ["network, pass", "FLOPs (M)", "parameters (k)", "original", "cut"]
    columns += ["after adaptive BN", "fine-tuned"]
    lines = []
    for name, item in rows.items():
        before, after = item["original"], item["pruned"]
        scores = [
            f"{100 * item['accuracy'][stage]:.2f}" if stage in item["accuracy"] else ""
            for stage in stages
        ]
        flops = f"{before['flops'] / 1e6:.2f} -> {after['flops'] / 1e6:.2f}"
        params = f"{before['params'] / 1e3:.1f} -> {after['params'] / 1e3:.1f}"
        lines.append([name, flops, params, *scores])
    return markdown_table(columns, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", required=True, help="data spec, such as cifar10:DIR?normalise=imagenet"
    )
    parser.add_argument("--weights", type=Path, required=True, help="folder of the trained weights")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/cifar10"), help="where the bundles go"
    )
    options = parser.parse_args()
    rows = {name: row(report(name, options)) for name in RUNS}
    write_json(RESULTS, {"budget": "50%FLOPs", "rows": rows})
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
