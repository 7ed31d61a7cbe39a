"""Which networks compile: each is captured, coupled, pruned to half its FLOPs, proved, and run in onnxruntime.

Random weights suffice: nothing is trained. Every network runs in a process of its own, so that a crash or a time-out
costs one row; finished rows are kept in the JSON file, and a second run only does what is missing (``--again``: all).

    python benchmarks/coverage.py                     # the default list
    python benchmarks/coverage.py torchvision:resnet18 zoo:resnet20
    python benchmarks/coverage.py --markdown          # only print the table of what was measured
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from torch import Tensor, nn

import pruneopt
from pruneopt.files import write_json
from pruneopt.ir.export import export_onnx, run_onnx
from pruneopt.models.source import load_model
from pruneopt.passes.analysis.cost import CostModel

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
DEFAULT = (ROOT / "benchmarks" / "networks.txt").read_text(encoding="utf-8").split()


def measure(spec: str) -> dict[str, Any]:
    """One network through the whole pipeline; seconds by stage."""
    torch.manual_seed(0)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] = round(now - clock, 2)
        clock = now

    loaded = load_model(spec)
    enliven(loaded.module, loaded.example_inputs)
    lap("load")
    graph = pruneopt.capture(loaded.module, loaded.example_inputs)
    lap("capture")
    pipeline = pruneopt.PassManager.parse("couple,cost,l1,slice,verify")
    result = pipeline.run(graph, budgets=["50%FLOPs"])
    lap("compile")
    coupling = result.coupling
    cost = CostModel(coupling.graph, coupling)
    inputs = tuple(x.repeat(3, *[1] * (x.dim() - 1)) for x in loaded.example_inputs)
    with torch.no_grad():
        expected = _tensors(result.module.eval()(*inputs))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(result.module, loaded.example_inputs, path)
        got = run_onnx(path, inputs)
    lap("onnx")
    scale = max(1.0, max(float(t.abs().max()) for t in expected))
    onnx_error = max(float(np.abs(t.numpy() - a).max()) for t, a in zip(expected, got, strict=True))
    full, least = cost.measure("flops", cost.full), cost.measure("flops", cost.minimum)
    kept = cost.measure("flops", cost.widths(result.plan))
    widths = sum(group.width for group in coupling.groups)
    return {
        "ok": bool(result.verification.equivalent) and onnx_error <= 1e-3 * scale,
        "groups": len(coupling.free),
        "prunable_channels": sum(group.width for group in coupling.free) / widths,
        "prunable_flops": float(1 - least / full),
        "flops": float(full),
        "achieved": float(kept / full),
        "verification_error": result.verification.max_abs_error,
        "by_construction": len(result.verification.notes),
        "unknown_ops": len(coupling.unknown),
        "onnx_error": onnx_error,
        "output_scale": max(float(t.abs().max()) for t in expected),
        "seconds": seconds,
    }


def enliven(module: nn.Module, examples: Sequence[Tensor]) -> None:
    """Make random weights carry a signal to the outputs, so that comparing outputs means something.

    Batch norm takes the statistics of random inputs, as it would have after training; weights that start at zero (the
    head of a ViT) become small random numbers.
    """
    norms = [item for item in module.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1 and not weight.any():
                weight.normal_(std=0.02)
        for norm in norms:
            norm.momentum = 1.0
        module.train()
        module(*(torch.randn(4, *x.shape[1:]) for x in examples))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def _tensors(outputs: Any) -> list[Any]:
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for item in items for tensor in _tensors(item)]


def run_one(spec: str, timeout: float) -> dict[str, Any]:
    """Measure a network in a process of its own; failures become a row that says why."""
    command = [sys.executable, __file__, "--one", spec]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not finished in {timeout:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"ok": False, "error": reason[:300]}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    columns = ["network", "free groups", "channels prunable", "FLOPs prunable", "FLOPs kept", "proof error"]
    columns += ["ONNX error", "seconds"]
    lines = [f"| {' | '.join(columns)} |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for spec, row in rows.items():
        if "error" in row:
            lines.append(f"| {spec} | failed: {row['error']} | | | | | | |")
            continue
        note = "" if row["ok"] else " (failed)"
        lines.append(
            f"| {spec}{note} | {row['groups']} | {row['prunable_channels']:.1%} | {row['prunable_flops']:.1%} "
            f"| {row['achieved']:.2%} | {row['verification_error']:.1e} | {row['onnx_error']:.1e} "
            f"| {sum(row['seconds'].values()):.1f} |"
        )
    return "\n".join(lines)


def save(rows: dict[str, dict[str, Any]]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS, {"environment": environment(), "budget": "50%FLOPs", "networks": rows})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", help="model specs (default: the list of the documentation)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one network")
    parser.add_argument("--again", action="store_true", help="measure networks that have a row already")
    parser.add_argument("--markdown", action="store_true", help="print the table of the saved rows and stop")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.networks[0])))
        return 0
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["networks"] if RESULTS.exists() else {}
    if not options.markdown:
        for spec in options.networks or DEFAULT:
            if options.again or not rows.get(spec, {}).get("ok"):
                rows[spec] = run_one(spec, options.timeout)
                print(f"{spec}: {'ok' if rows[spec]['ok'] else rows[spec].get('error', 'failed')}", flush=True)
                save(rows)
    print(table(rows))
    return 0 if all(row["ok"] for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
