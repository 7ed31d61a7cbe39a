"""How well adaptive batch norm predicts fine-tuned accuracy: EagleEye's Table 1 on CIFAR-10 and
ResNet-20.

    .venv/bin/python benchmarks/correlation.py

prints one table per FLOPs level and writes the numbers to benchmarks/results/correlation.json.
`--help` lists the options: sizes, the folder of images, the weights.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from environment import environment
from score_correlation import CorrelationReport, correlation_report

from pruneopt import Graph, PruneoptError, Workload, capture, load_data, load_model
from pruneopt.extend import CostModel, EvaluationSettings, couple, parse_budget, score_units
from pruneopt.files import write_json
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.search.searchers.sampling import WidthSampler

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
BATCH = 128
MEASURED = ("candidates", "epochs", "limit", "subval", "max_ratio", "batches", "seed")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=f"cifar10:{SHARED / 'cifar10'}", help="a data spec (cifar10:DIR)"
    )
    parser.add_argument(
        "--weights", default=str(SHARED / "weights" / "cifar10_resnet20_optA.safetensors")
    )
    parser.add_argument(
        "--levels", default="50%FLOPs,not fixed", help="budgets, or 'not fixed', joined by commas"
    )
    parser.add_argument("--candidates", type=int, default=16, help="plans per level")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning")
    parser.add_argument(
        "--limit",
        type=int,
        default=4500,
        help="images to cut the training parts from, and to test on",
    )
    parser.add_argument("--subval", type=int, default=1500, help="of them held out for the scores")
    parser.add_argument(
        "--max-ratio", type=float, default=0.7, help="the largest share of a group that goes"
    )
    parser.add_argument("--batches", type=int, default=20, help="calibration batches of 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "correlation.json"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    separator = "&" if "?" in options.data else "?"
    # Batches for the statistics may come from all images that are trained on.
    calibration = min(options.batches * BATCH, options.limit - options.subval)
    sizes = f"limit={options.limit}&subval={options.subval}&calibration={calibration}"
    spec = f"{options.data}{separator}normalise=imagenet&{sizes}"
    workload = load_data(spec, input_shape=(1, 3, 32, 32), seed=options.seed)
    graph = capture(
        load_model("zoo:resnet20", weights=Path(options.weights)).module, torch.zeros(2, 3, 32, 32)
    )
    levels = {}
    for level in (text.strip() for text in options.levels.split(",")):
        print(f"\n{level}", flush=True)
        started = time.perf_counter()
        report = measured(graph, workload, level, options)
        print(report.text(), flush=True)
        levels[level] = as_data(report, time.perf_counter() - started)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, {**setting(options, workload), "levels": levels})


def measured(
    graph: Graph, workload: Workload, level: str, options: argparse.Namespace
) -> CorrelationReport:
    coupling = couple(graph)
    budgets = [] if level == "not fixed" else [parse_budget(level)]
    scores = score_units(coupling, graph.weights, "l1")
    cost = CostModel(graph, coupling)
    sampler = WidthSampler(
        coupling, cost, budgets, scores, max_ratio=options.max_ratio, seed=options.seed
    )
    networks = CutNetworks(
        graph, coupling, workload, EvaluationSettings(options.batches, BATCH, seed=options.seed)
    )

    def tell(text: str, done: int = 0, total: int | None = None) -> None:
        print(f"  {done}/{total} {text}", flush=True)

    return correlation_report(
        sampler, networks, candidates=options.candidates, epochs=options.epochs, progress=tell
    )


def as_data(report: CorrelationReport, seconds: float) -> dict[str, object]:
    flops = [item.flops for item in report.samples]
    return {
        "adaptive": asdict(report.adaptive),
        "stale": asdict(report.stale),
        "flops_share": [min(flops), max(flops)],
        "seconds": round(seconds, 1),
        "averaging": report.averaging,
        "samples": [asdict(item) for item in report.samples],
    }


def setting(options: argparse.Namespace, workload: Workload) -> dict[str, object]:
    """Return what ran on what; no name of the machine and no path."""
    return {
        "network": "ResNet-20 (CIFAR-10)",
        "weights": Path(options.weights).name,
        "options": {key: getattr(options, key) for key in MEASURED},
        "data": workload.describe(),
        **environment(),
        "threads": options.threads,
    }


if __name__ == "__main__":
    try:
        main()
    except PruneoptError as error:
        raise SystemExit(f"error: {error}") from None
