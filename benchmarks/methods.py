"""Every published method on trained networks and real images, at equal budgets and with equal
fine-tuning.

    python benchmarks/methods.py --networks digits_resnet
    python benchmarks/methods.py --networks resnet20,resnet56 --data
    'cifar10:DIR?normalise=imagenet' --weights DIR

Each row is a method, run with several seeds at every budget: prune, prove, recompute batch-norm
statistics, fine-tune, with the same fine-tuning for all. Results are added to a file line by line,
so that a run that was stopped goes on; the table and benchmarks/results/methods.json are made of
what there is. ``DIR`` of ``--weights`` holds ``cifar10_resnet20_optA.safetensors`` and
``cifar10_resnet56_optA.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import stamped
from markdown_table import markdown_table
from torch import nn

from pruneopt import Graph, PassManager, Workload, build_module, capture, load_model
from pruneopt.extend import SGD, train
from pruneopt.files import write_json

RESULTS = Path(__file__).parent / "results" / "methods.json"
COLUMNS = ("method", "FLOPs kept", "recalibrated", "fine-tuned", "seeds", "seconds to decide")


@dataclass(frozen=True)
class Setting:
    """What is equal for all methods on one network."""

    data: str
    """The data spec, or what is added to the one given."""
    budgets: tuple[str, ...]
    """Half of the FLOPs, and a harder one."""
    finetune: int
    """Epochs of fine-tuning, for every method."""
    training: int
    """Epochs of training under a regulariser (slimming, greg1, greg2), and of the hypernetworks,
    times four."""
    batches: int
    """Iterations in an epoch: training images over a batch of 64."""
    candidates: int
    """Structures that a search judges."""


SMALL = "limit=7000&subval=1000&calibration=2000"
SETTINGS = {
    "digits_resnet": Setting("digits", ("50%FLOPs", "10%FLOPs"), 1, 5, 20, 40),
    "resnet20": Setting(SMALL, ("50%FLOPs", "30%FLOPs"), 2, 1, 93, 24),
    "resnet56": Setting(SMALL, ("50%FLOPs", "30%FLOPs"), 1, 1, 93, 12),
}


def methods(setting: Setting) -> dict[str, str]:
    """Return the pass of every row, without its budget."""
    steps = setting.training * setting.batches
    judge = "evaluator=abn{calibration-batches=20 batch-size=64}"
    size = setting.candidates // 4
    children = f"parents=4 mutations={size // 3} crossovers={size // 3}"
    evolution = f"searcher=evolution{{population={size} iterations=4 {children}}}"
    hyper = (
        "evaluator=pruning-net{calibration-batches=20 batch-size=64 "
        f"recipe=sgd{{epochs={4 * setting.training} lr=0.05 batch-size=64 schedule=linear "
        f"label-smoothing=0.1}}}}"
    )
    regularised = f"recipe=sgd{{epochs={setting.training} lr=0.01 batch-size=64}}"
    growing = (
        f"regulariser=growing{{iterations={steps}}} recipe=sgd{{lr=0.01 batch-size=64 "
        f"schedule=constant}}"
    )
    return {
        "random": "random",
        "uniform": "uniform",
        "l1": "l1",
        "fpgm": "prune{criterion=fpgm}",
        "taylor": "prune{criterion=taylor}",
        "hrank": "hrank",
        "abn": f"abn{{searcher=random{{candidates={setting.candidates}}} {judge} "
        f"finetune-epochs=0}}",
        "metapruning (abn)": f"metapruning{{{evolution} {judge} weights=inherit epochs=0}}",
        "metapruning": f"metapruning{{{evolution} {hyper} weights=inherit epochs=0}}",
        "rewarded": f"rewarded{{{evolution} {hyper} weights=inherit epochs=0 window=0.2}}",
        # The pull of the penalty is its scale times the steps: the published 1e-4 is for hundreds
        # of epochs.
        "slimming": f"slimming{{regulariser=gamma-l1{{scale=0.02}} {regularised}}}",
        "greg1": f"greg1{{{growing}}}",
        "greg2": f"greg2{{{growing}}}",
    }


def variants(setting: Setting) -> dict[str, str]:
    """Return rows that take an explanation of the table apart; only made when ``--methods`` names
    them."""
    long = 8 * setting.training
    sparse = f"regulariser=gamma-l1{{scale=0.02}} recipe=sgd{{epochs={long} lr=0.01 batch-size=64}}"
    return {
        # Slimming: is it the scales, the one threshold over all layers, the merging, or the short
        # training?
        "bn-scale, one threshold": "prune{criterion=bn-scale normalise=false}",
        "bn-scale, normalised": "prune{criterion=bn-scale}",
        "bn-scale, uniform": "uniform{criterion=bn-scale}",
        "slimming (and)": methods(setting)["slimming"].replace("slimming{", "slimming{merge=and "),
        "slimming (8 x)": f"slimming{{{sparse}}}",
        # The criterion alone, with the same widths as the uniform row.
        "hrank, uniform": "uniform{criterion=hrank}",
        "taylor, uniform": "uniform{criterion=taylor}",
        "random, uniform": "uniform{criterion=random}",
    }


def one_run(
    graph: Graph, workload: Workload, setting: Setting, step: str, budget: str, seed: int
) -> dict[str, Any]:
    """Prune, prove, recalibrate and fine-tune; accuracies are shares, on the sub-validation and the
    test images."""
    started = time.perf_counter()
    pipeline = (
        f"couple,cost,{step},slice,verify,recalibrate{{batches=20 batch-size=64}},"
        f"finetune{{epochs={setting.finetune} lr=0.01 batch-size=64 distil=0}}"
    )
    result = PassManager.parse(pipeline).run(graph, budgets=[budget], workload=workload, seed=seed)
    recalibrated: Any = result.records["recalibrate"]
    return {
        "pipeline": pipeline,
        "flops": result.budgets[0].kept,
        "cut": recalibrated.before,
        "recalibrated": recalibrated.after,
        "finetuned": workload.score(result.module, "test"),
        "deciding": round(
            sum(s for name, s in result.timings.items() if name == step.partition("{")[0]), 1
        ),
        "seconds": round(time.perf_counter() - started, 1),
    }


def load(
    network: str, setting: Setting, seed: int, options: argparse.Namespace
) -> tuple[Graph, Workload]:
    """Return the trained network and the data, cut by the seed."""
    digits = network == "digits_resnet"
    weights = None if digits else options.weights / f"cifar10_{network}_optA.safetensors"
    model = load_model(f"zoo:{network}", weights=weights)
    data = (
        setting.data
        if digits
        else f"{options.data}{'&' if '?' in options.data else '?'}{setting.data}"
    )
    workload = model.workload(data, seed=seed)
    if not isinstance(model.module, nn.Module):
        raise TypeError(f"zoo:{network} is no module")
    if digits:
        train(model.module, workload, SGD(epochs=20, lr=0.1, batch_size=64), seed=seed)
    return capture(model.module, model.example_inputs), workload


def run_all(options: argparse.Namespace) -> None:
    """Run everything that is not in the file yet."""
    done = {(r["network"], r["method"], r["budget"], r["seed"]) for r in lines(options.out)}
    for network in options.networks.split(","):
        setting = SETTINGS[network]
        known = methods(setting) | variants(setting)
        chosen = options.methods.split(";") if options.methods else list(methods(setting))
        for seed in map(int, options.seeds.split(",")):
            budgets = options.budgets.split(",") if options.budgets else setting.budgets
            wanted = [(m, b) for b in budgets for m in chosen if (network, m, b, seed) not in done]
            if not wanted:
                continue
            graph, workload = load(network, setting, seed, options)
            base = workload.score(build_module(graph, graph.weights), "test")
            for method, budget in wanted:
                found = one_run(graph, workload, setting, known[method], budget, seed)
                row = {
                    "network": network,
                    "method": method,
                    "budget": budget,
                    "seed": seed,
                    "original": base,
                    "threads": options.threads,
                    **found,
                }
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(stamped(row)) + "\n")
                print(
                    f"{network} {method} {budget} seed {seed}: {100 * found['finetuned']:.2f} %",
                    flush=True,
                )


def lines(path: Path) -> list[dict[str, Any]]:
    """Return what was measured so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and, with several seeds, standard deviation of every method, the best first; accuracies
    in percent."""
    text = []
    for network, budget in dict.fromkeys((row["network"], row["budget"]) for row in rows):
        here = [row for row in rows if (row["network"], row["budget"]) == (network, budget)]
        base = statistics.mean(row["original"] for row in here)
        entries = []
        for method in dict.fromkeys(row["method"] for row in here):
            runs = [row for row in here if row["method"] == method]
            spread = [
                _spread([100 * row[key] for row in runs])
                for key in ("flops", "recalibrated", "finetuned")
            ]
            seconds = statistics.mean(row["deciding"] for row in runs)
            mean = statistics.mean(row["finetuned"] for row in runs)
            entries.append((-mean, [method, *spread, str(len(runs)), f"{seconds:.1f}"]))
        text.append(f"\n{network}, {budget} (original {100 * base:.2f})\n")
        text.append(markdown_table(COLUMNS, [cells for _, cells in sorted(entries)]))
    return "\n".join(text)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--networks", default="digits_resnet", help=f"of {', '.join(SETTINGS)}, joined by commas"
    )
    parser.add_argument(
        "--methods", help="only these rows, or those of variants(), joined by semicolons"
    )
    parser.add_argument(
        "--budgets", help="instead of both of a network's budgets, joined by commas"
    )
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas")
    parser.add_argument("--data", help="for the CIFAR networks: cifar10:DIR?normalise=imagenet")
    parser.add_argument(
        "--weights", type=Path, help="for the CIFAR networks: the folder of the trained weights"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/methods.jsonl"), help="where results are added"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    run_all(options)
    rows = lines(options.out)
    write_json(RESULTS, {"runs": rows})
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
