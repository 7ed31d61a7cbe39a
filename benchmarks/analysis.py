"""How long capture, analysis and the whole way to a pruned network take, beside Torch-Pruning in
the same run.

Every network runs in a process of its own for each of the two, forked from one that has imported
both. Finished rows are kept in the JSON file, and a second run only does what is missing
(``--again``: all).

    python benchmarks/analysis.py  # every network of torchvision, smallest first
    python benchmarks/analysis.py torchvision:resnet50 --again
    python benchmarks/analysis.py torchvision:resnet18 --out FILE  # kept out of the results
    python benchmarks/analysis.py --markdown  # only print the tables of what was measured
    python benchmarks/analysis.py --cost --memory  # width vectors per second; memory of no weights

Seconds are processor time of the process (one thread): other work on the machine disturbs it less
than wall time, which is kept beside it. What both tools do: nothing is given but the module and an
example input; half of the channels of every layer but the last go, by L1.

Analysis is, for pruneopt, `couple` on the captured graph, and *with capture* that and `capture`;
for the peer, `DependencyGraph.build_dependency` (which runs the network once, that is captures it)
and `get_all_groups`. So only the ratio with capture compares like with like.

From module to module there are two columns of ours beside the peer's `MagnitudePruner` and its
step, on an input of one sample, with its heads left alone and the numbers of attention heads given:
*PassManager* is what users get, `capture` and `PassManager.run` as the README has it, with all
default checks and the proof; *stages* is the sum of the functions below that, without any check.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage_networks import named
from environment import stamped
from markdown_table import markdown_table
from torch import nn

from pruneopt import LoadedModel, PassManager, build_module, capture, load_model
from pruneopt.extend import CostModel, couple, score_units, select, slice_graph
from pruneopt.files import write_json

try:
    import torch_pruning as tp
except ModuleNotFoundError:
    tp = None

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "analysis.json"
RATIO = 0.5
DOCUMENTED = f"couple,cost,prune{{criterion=l1 ratio={RATIO} scope=local}},slice,verify"
"""The README's pipeline, with the ratio that the peer is given for a budget."""
NO_PEER = "not measured: torch-pruning is not installed"
SHORT = 2.0
"""Seconds of processor time below which a stage is run again, up to three times; the best
counts."""

LARGE = 60_000_000
"""Parameters from which a network is not copied to be pruned three times."""
STAGES = ("capture", "couple", "cost", "score", "select", "slice", "build")


class Clock:
    """Processor and wall seconds of stages."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def time(self, stage: str, function: Callable[[], Any], tries: int = 3) -> Any:
        """Run a stage, again while it is short; keeps the best and returns the last result."""
        best, best_wall = float("inf"), float("inf")
        gc.collect()
        for _ in range(tries):
            wall, cpu = time.perf_counter(), time.process_time()
            result = function()
            spent, passed = time.process_time() - cpu, time.perf_counter() - wall
            best, best_wall = min(best, spent), min(best_wall, passed)
            if spent > SHORT:
                break
        self.cpu[stage], self.wall[stage] = round(best, 4), round(best_wall, 4)
        return result


def measure_ours(loaded: LoadedModel) -> dict[str, Any]:
    """Measure one network by ours: seconds of every stage, and what came out."""
    clock = Clock()
    graph = clock.time(
        "capture", lambda: capture(loaded.module, loaded.example_inputs, check=False)
    )
    coupling = clock.time("couple", lambda: couple(graph))

    def compiled() -> CostModel:
        model = CostModel(graph, coupling)
        model.measure("flops", model.full)
        return model

    cost = clock.time("cost", compiled)
    scores = clock.time("score", lambda: score_units(coupling, graph.weights, "l1"))
    plan = clock.time("select", lambda: select(scores, coupling, cost, ratio=RATIO, scope="local"))
    small = clock.time("slice", lambda: slice_graph(graph, coupling, plan))
    module = clock.time("build", lambda: build_module(small, small.weights))
    delivered = clock.time("documented", lambda: documented(loaded))
    params = [sum(p.numel() for p in item.parameters()) for item in (module, delivered)]
    if params[0] != params[1]:
        raise RuntimeError(f"PassManager left {params[1]} parameters, the stages {params[0]}")
    return {
        "ops": len(graph.ops),
        "groups": len(coupling.free),
        "params": params[0],
        "cpu": clock.cpu,
        "wall": clock.wall,
    }


def documented(loaded: LoadedModel) -> nn.Module:
    """Return the pruned module as the README makes it, with every default check and the proof."""
    graph = capture(loaded.module, loaded.example_inputs)
    return PassManager.parse(DOCUMENTED).run(graph).module


def measure_peer(loaded: LoadedModel, send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return seconds of the peer's analysis (sent as soon as it is known) and of its whole way; an
    error where it has one."""
    if tp is None:
        return {"cpu": {}, "error": NO_PEER}
    assert isinstance(loaded.module, nn.Module)
    model, inputs = loaded.module.eval(), loaded.example_inputs
    clock = Clock()

    def heads(network: nn.Module) -> list[nn.Linear | nn.modules.conv._ConvNd]:
        return [
            item
            for item in network.modules()
            if isinstance(item, nn.Linear | nn.modules.conv._ConvNd)
        ][-1:]

    def analysed() -> int:
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
        return len(list(graph.get_all_groups(ignored_layers=heads(model))))

    def pruned() -> int:
        small = copies.pop()
        pruner = tp.pruner.MagnitudePruner(
            small,
            inputs,
            importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=RATIO,
            ignored_layers=heads(small),
            num_heads={
                item: item.num_heads
                for item in small.modules()
                if isinstance(item, nn.MultiheadAttention)
            },
        )
        pruner.step()
        return sum(p.numel() for p in small.parameters())

    row: dict[str, Any] = {"cpu": clock.cpu, "wall": clock.wall}
    tries = 3 if sum(p.numel() for p in model.parameters()) < LARGE else 1
    copies = [copy.deepcopy(model) for _ in range(tries)]
    try:
        row["groups"] = clock.time("analysis", analysed)
        send(row)
        row["params"] = clock.time("whole", pruned, tries)
    except Exception as error:
        row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return row


def child(spec: str, part: str, pipe: Connection, memory: float) -> None:
    """Measure one network with one tool."""
    resource.setrlimit(resource.RLIMIT_DATA, (round(memory * 1e9),) * 2)
    torch.manual_seed(0)
    loaded = load_model(spec)
    try:
        pipe.send(measure_ours(loaded) if part == "ours" else measure_peer(loaded, pipe.send))
    except Exception as error:
        pipe.send({"cpu": {}, "error": " ".join(f"{type(error).__name__}: {error}".split())[:200]})


def run_one(spec: str, timeout: float, memory: float) -> dict[str, Any]:
    """Run both tools on one network, one after the other."""
    row: dict[str, Any] = {"network": spec, "ratio": RATIO}
    for part in ("ours", "peer"):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=child, args=(spec, part, theirs, memory)
        )
        process.start()
        theirs.close()
        process.join(timeout)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        found: dict[str, Any] = {"cpu": {}}
        while ours.poll():
            try:
                found = ours.recv()
            except EOFError:
                break
        if late:
            found["error"] = f"not finished in {timeout:.0f} s of wall time"
        elif process.exitcode:
            found["error"] = f"exit code {process.exitcode}"
        row[part] = found
    return row


def warm_up() -> None:
    """Import what both tools import when they are first used."""
    loaded = load_model("torchvision:squeezenet1_1")
    measure_ours(loaded)
    measure_peer(loaded, lambda row: None)
    gc.collect()
    gc.freeze()  # a collection in a child need not look at what was imported


# Tables


def whole(row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return processor seconds from module to module: our stages without checks, and the peer."""
    ours = row["ours"]["cpu"]
    known = [ours[stage] for stage in STAGES if stage in ours]
    return (sum(known) if len(known) == len(STAGES) else None), row["peer"]["cpu"].get("whole")


def by_manager(row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return processor seconds from module to module: by `PassManager` with default checks, and the
    peer."""
    return row["ours"]["cpu"].get("documented"), row["peer"]["cpu"].get("whole")


def analysis(row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return processor seconds of the analysis: ours on a captured graph, the peer's with its
    trace."""
    return row["ours"]["cpu"].get("couple"), row["peer"]["cpu"].get("analysis")


def with_capture(row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return processor seconds of capture and analysis, of both tools."""
    ours = row["ours"]["cpu"]
    known = "capture" in ours and "couple" in ours
    return (ours["capture"] + ours["couple"] if known else None), row["peer"]["cpu"].get("analysis")


def cells(pair: tuple[float | None, float | None]) -> list[str]:
    ours, peer = pair
    times = peer / ours if ours and peer is not None else None
    ratio = "" if times is None else f"{times:.{1 if times >= 1 else 2}f}"
    return [*("" if value is None else f"{value:.3f}" for value in pair), ratio]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return processor seconds of analysis and from module to module, and their sums where both
    tools finished."""
    rows = list(rows)
    lines = []
    for row in rows:
        outcome = row["peer"].get("error", "") + (
            f" (ours: {row['ours']['error']})" if "error" in row["ours"] else ""
        )
        pairs = [cells(part(row)) for part in PARTS]
        lines.append([row["network"].partition(":")[2], *in_columns(pairs), outcome[:90]])
    lines.append(["sum where both finished", *in_columns([sums(rows, part) for part in PARTS])])
    others = [sums([row for row in rows if row is not slowest(rows, part)], part) for part in PARTS]
    lines.append(["without the peer's slowest", *in_columns(others)])
    return markdown_table(COLUMNS, lines, left=(0, len(COLUMNS) - 1))


def in_columns(pairs: Sequence[Sequence[str]]) -> list[str]:
    """Return the cells of `COLUMNS` from those of `PARTS`: the peer has one figure for two of
    ours."""
    plain, captured, stages, manager = pairs
    peer = captured[1] or plain[1], stages[1] or manager[1]
    analysis = [plain[0], captured[0], peer[0], plain[2], captured[2]]
    return [*analysis, stages[0], manager[0], peer[1], stages[2], manager[2]]


Part = Callable[[dict[str, Any]], tuple[float | None, float | None]]


def both(rows: Iterable[dict[str, Any]], part: Part) -> list[tuple[float, float]]:
    """Return the pairs of seconds where both tools finished."""
    return [(ours, peer) for ours, peer in map(part, rows) if ours is not None and peer is not None]


def sums(rows: Iterable[dict[str, Any]], part: Part) -> list[str]:
    pairs = both(rows, part)
    if not pairs:
        return [""] * 3
    return cells((sum(ours for ours, _ in pairs), sum(peer for _, peer in pairs)))


def slowest(rows: list[dict[str, Any]], part: Part) -> dict[str, Any] | None:
    """Return the network that took the peer longest."""
    finished = [row for row in rows if both([row], part)]
    return max(finished, key=lambda row: part(row)[1] or 0.0, default=None)


PARTS: tuple[Part, ...] = (analysis, with_capture, whole, by_manager)
COLUMNS = [
    "network",
    "analysis",
    "with capture",
    "peer",
    "ratio",
    "ratio with capture",
    "stages",
    "PassManager",
    "peer",
    "ratio of stages",
    "ratio of PassManager",
    "peer's outcome",
]


# Cost model and memory


def cost_rate() -> dict[str, float]:
    """Return width vectors of ResNet-50 measured per second of processor time, by unit, in one
    thread."""
    loaded = load_model("torchvision:resnet50")
    graph = capture(loaded.module, loaded.example_inputs)
    model = CostModel(graph, couple(graph))
    widths = np.random.default_rng(0).integers(1, model.full + 1, size=(100_000, len(model.full)))
    clock = Clock()
    for unit in ("flops", "params"):
        model.measure(unit, widths[:10])
        clock.time(unit, partial(model.measure, unit, widths))
    return {unit: round(len(widths) / seconds) for unit, seconds in clock.cpu.items()}


def status(entry: str) -> int:
    """Return a line of this process's state, in kB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{entry}:")).split()[1])


def memory_of(name: str) -> dict[str, float]:
    """Return peak memory, in GB, of capturing and analysing a network whose weights have no values,
    above that before."""
    from torchvision import models

    module = models.get_model(name).to("meta")
    size = getattr(module, "image_size", 224)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    clock = Clock()
    graph = clock.time("capture", lambda: capture(module, torch.empty(1, 3, size, size)), tries=1)
    coupling = clock.time("couple", lambda: couple(graph), tries=1)

    def planned() -> np.ndarray:
        cost = CostModel(graph, coupling)
        for unit in cost.units:
            cost.measure(unit, cost.full)
        return cost.full // 2

    clock.time("cost", planned, tries=1)
    peak = status("VmHWM")
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    return {
        "above_gb": round((peak - before) / 1e6, 3),
        "weights_gb": round(weights / 1e9, 2),
        **clock.cpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", help="model specs (default: the list `torchvision`)")
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="wall seconds for each tool on one network"
    )
    parser.add_argument(
        "--memory-limit", type=float, default=12.0, help="gigabytes for each tool on one network"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure networks that have a row already"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of the saved rows and stop"
    )
    parser.add_argument("--cost", action="store_true", help="width vectors per second, too")
    parser.add_argument(
        "--memory", action="store_true", help="memory of the largest networks without values, too"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(memory_of(options.networks[0])))
        return 0
    saved: dict[str, Any] = (
        json.loads(options.out.read_text()) if options.out.exists() else {"networks": {}}
    )
    rows = saved["networks"]
    if options.cost:
        saved["vectors_per_second"] = stamped(cost_rate())
    for name in ("vit_h_14", "regnet_y_128gf") if options.memory else ():
        command = [sys.executable, __file__, name, "--one"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        saved.setdefault("memory", {})[name] = stamped(json.loads(done.stdout.splitlines()[-1]))
    extra = options.cost or options.memory
    asked = options.networks or ([] if extra or options.markdown else ["torchvision"])
    wanted = named(asked) if asked else []
    missing = [spec for spec in wanted if options.again or spec not in rows]
    if missing:
        warm_up()
    for spec in missing:
        rows[spec] = stamped(run_one(spec, options.timeout, options.memory_limit))
        print(table([rows[spec]]).splitlines()[2], flush=True)
        write_json(options.out, saved)
    if extra:
        write_json(options.out, saved)
    print(table(rows.values()))
    print(
        json.dumps(
            {key: saved[key] for key in ("vectors_per_second", "memory") if key in saved}, indent=1
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
