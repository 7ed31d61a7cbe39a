"""Repair without training: ResNet-20 on CIFAR-10 at half its FLOPs by L1, mended in every way from
few images.

    .venv/bin/python benchmarks/repair.py --data 'cifar10:DIR?normalise=imagenet' --weights FILE

prints top-1 accuracy on the test images and writes it to benchmarks/results/repair.json. The seed
decides which training images are the calibration images and which output positions least squares
looks at. Minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment
from markdown_table import markdown_table

from pruneopt import Graph, PruneoptError, Workload, build_module, capture, load_data, load_model
from pruneopt.extend import State, parse_pipeline
from pruneopt.files import write_json
from pruneopt.passes.repair.lstsq import LayerFit
from pruneopt.passes.repair.repair import Repair, RepairReport
from pruneopt.passes.transform.recalibrate import recalibrate_on

RESULTS = Path(__file__).resolve().parent / "results" / "repair.json"
SHAPE = (1, 3, 32, 32)
BUDGET = "50%FLOPs"
ROWS: dict[str, tuple[str, ...]] = {
    "bn": ("bn",),
    "bias": ("bias",),
    "bias, bn": ("bias", "bn"),
    "lstsq": ("lstsq",),
    "lstsq, bn": ("lstsq", "bn"),
}
"""What is printed on a line: the methods that follow one another."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, help="data spec, such as cifar10:DIR?normalise=imagenet"
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="cifar10_resnet20_optA.safetensors"
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[128, 512],
        help="calibration images to repair with",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def cut(graph: Graph, workload: Workload, seed: int) -> State:
    """Return the state after the proof."""
    state = State(original=graph, graph=graph.copy(), workload=workload, seed=seed)
    for step in parse_pipeline(f"couple,cost,l1{{budget={BUDGET}}},slice,verify"):
        step.run(state)
    return state


def accuracy(graph: Graph, workload: Workload) -> float:
    return workload.score(build_module(graph, graph.weights), "test")


def measured(graph: Graph, workload: Workload, seed: int, images: list[int]) -> dict[str, Any]:
    """Return accuracy of every row, and for lstsq the error of every layer before and after."""
    fresh = build_module(graph, graph.weights)
    recalibrate_on(fresh, workload, batches=4, batch_size=128, seed=seed)
    found: dict[str, Any] = {
        "original": accuracy(graph, workload),
        # What fresh statistics alone cost a network that lost nothing.
        "original, bn on 512": workload.score(fresh, "test"),
        "stale": accuracy(cut(graph, workload, seed).graph, workload),
    }
    for count in images:
        for name, methods in ROWS.items():
            state, started = cut(graph, workload, seed), time.perf_counter()
            for method in methods:
                Repair(method=method, images=count).run(state)  # type: ignore[arg-type]
            seconds = time.perf_counter() - started
            score = accuracy(state.graph, workload)
            print(
                f"  seed {seed}, {count} images, {name}: {score:.2%} in {seconds:.1f} s", flush=True
            )
            found[f"{name} on {count}"] = score
            found.setdefault("seconds", {})[f"{name} on {count}"] = round(seconds, 1)
            report = state.records.get("repair-lstsq")
            if name == "lstsq" and isinstance(report, RepairReport):
                fits = [item for item in report.layers if isinstance(item, LayerFit)]
                found.setdefault("layers", {})[count] = {
                    item.layer: [item.before, item.after] for item in fits
                }
    return found


def table(runs: dict[int, dict[str, Any]]) -> str:
    """Return mean, smallest and largest accuracy over the seeds, as a Markdown table, in
    percent."""
    lines = []
    for name in next(iter(runs.values())):
        scores = [100 * run[name] for run in runs.values() if isinstance(run[name], float)]
        if scores:
            figures = statistics.mean(scores), min(scores), max(scores)
            lines.append([name, *(f"{figure:.2f}" for figure in figures)])
    return markdown_table(["network", "mean", "least", "most"], lines)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    graph = capture(
        load_model("zoo:resnet20", weights=options.weights).module, torch.zeros(2, *SHAPE[1:])
    )
    runs = {}
    for seed in options.seeds:
        workload = load_data(options.data, input_shape=SHAPE, seed=seed)
        runs[seed] = measured(graph, workload, seed, options.images)
    print(table(runs))
    content = {
        "network": "ResNet-20 (CIFAR-10)",
        "weights": options.weights.name,
        "budget": BUDGET,
        "pass": "l1",
    }
    write_json(
        options.output, {**content, "runs": runs, **environment(), "threads": options.threads}
    )


if __name__ == "__main__":
    try:
        main()
    except PruneoptError as error:
        raise SystemExit(f"error: {error}") from None
