"""NSGA-II against random search at equal numbers of judged structures: the hypervolume of the
fronts.

    python benchmarks/front.py  # ResNet-20 on CIFAR-10, and functions: results/front.json
    python benchmarks/front.py --only functions  # functions of known widths alone: seconds

The hypervolume is that of accuracy (above 0) and of FLOPs as a share of the original's (up to 1).
Four ways are compared: `nsga2`; `random after seeds`, random structures after the same first
generation, which holds the original and what the passes uniform and prune choose at levels all over
the range; `random` alone; and those baselines alone. The real scores are those of a search, on
images of the training set that were held out, by recomputed batch-norm statistics; a second table
scores the points of every front on test images, which no search has seen. A part that is not
measured again stays in the file of results as it is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from evaluate_setups import SHARED

from pruneopt import Graph, PruneoptError, UserError, Workload, capture, load_data, load_model
from pruneopt.extend import (
    AdaptiveStatistics,
    Proposal,
    ScoringContext,
    Space,
    State,
    parse_pipeline,
    score_units,
)
from pruneopt.files import write_json
from pruneopt.passes.front.explore import Explore
from pruneopt.passes.front.front_outcome import objectives
from pruneopt.passes.search.searchers.explorer import Explorer, RandomDraws
from pruneopt.passes.search.searchers.nsga2 import Genetic
from pruneopt.passes.search.searchers.pareto import hypervolume, non_dominated
from pruneopt.passes.search.searchers.reach import Reach

RESULTS = Path(__file__).parent / "results" / "front.json"
CIFAR = "cifar10:{}?normalise=imagenet&limit={}&subval={}&calibration=3000"
UNIT = "flops"
SIZES, IMAGES = ("candidates", "population"), ("seeds", "subval", "batches", "test")
"""The options that results depend on: of both parts, and of that on images."""
Score = Callable[[np.ndarray], float]
WAYS: dict[str, tuple[type[Explorer], bool]] = {
    "nsga2": (Genetic, True),
    "random after seeds": (RandomDraws, True),
    "random": (RandomDraws, False),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("functions", "resnet20"), help="one of the two parts")
    parser.add_argument(
        "--candidates", type=int, default=120, help="structures judged in every search"
    )
    parser.add_argument("--population", type=int, default=20, help="structures in a generation")
    parser.add_argument("--seeds", type=int, default=2, help="searches of every way on ResNet-20")
    parser.add_argument(
        "--functions", type=int, default=20, help="functions, with one search of every way on each"
    )
    parser.add_argument(
        "--subval", type=int, default=500, help="held-out images that a structure is scored on"
    )
    parser.add_argument("--batches", type=int, default=3, help="calibration batches of 128")
    parser.add_argument(
        "--test", type=int, default=1000, help="test images for the points of the fronts"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def state_of(workload: Workload | None) -> State:
    """Return ResNet-20, with its trained weights where there are any, after couple and cost."""
    weights = SHARED / "weights" / "cifar10_resnet20_optA.safetensors"
    if workload is not None and not weights.is_file():
        raise UserError(
            f"the benchmark needs trained weights and images in {SHARED}; --only functions needs "
            "none"
        )
    torch.manual_seed(0)
    module = load_model("zoo:resnet20", weights=None if workload is None else weights).module
    graph: Graph = capture(module, torch.zeros(2, 3, 32, 32))
    state = State(original=graph, graph=graph.copy(), workload=workload)
    for step in parse_pipeline("couple,cost"):
        step.run(state)
    return state


def search(explorer: Explorer, score: Score, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the widths `[P, G]` and scores `[P]` of what an explorer finds."""
    cost = explorer.reach.space.cost
    widths: list[np.ndarray] = []
    scores: list[float] = []
    while len(widths) < candidates and (generation := explorer.ask()):
        generation = generation[: candidates - len(widths)]
        rows = np.stack([item.widths for item in generation])
        found = [score(row) for row in rows]
        widths += list(rows)
        scores += found
        if len(widths) < candidates:
            explorer.tell(objectives(found, rows, (UNIT,), cost))
    return np.stack(widths), np.array(scores)


def volume(space: Space, widths: np.ndarray, scores: np.ndarray) -> float:
    points = objectives(list(scores), widths, (UNIT,), space.cost)
    points[:, 1] /= space.cost.original(UNIT)
    return hypervolume(points, np.array([0.0, 1.0]))


def baselines(reach: Reach, score: Score, population: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the original and what uniform and prune choose, as in the first generation."""
    first = Genetic(reach, population, 0).ask()
    rows = np.stack([item.widths for item in first if item.origin not in ("random", "child")])
    return rows, np.array([score(row) for row in rows])


def function(space: Space, seed: int) -> Score:
    """Return a score of known form: groups differ in how much their loss matters, and how
    steeply."""
    random = np.random.default_rng([seed, 17])
    count, full = len(space.cost.groups), space.cost.full
    weight, power = random.lognormal(-2.5, 1.2, count), random.uniform(1, 4, count)
    return lambda row: float(0.92 * np.exp(-1.5 * (weight * (1 - row / full) ** power).sum()))


def on_functions(options: argparse.Namespace) -> dict[str, Any]:
    """Return the hypervolume on functions, for every way and function."""
    state = state_of(None)
    reach = reach_of(state, None)
    found: dict[str, list[float]] = {name: [] for name in (*WAYS, "baselines")}
    for seed in range(options.functions):
        score = function(reach.space, seed)
        for name, (kind, seeded) in WAYS.items():
            explorer = kind(reach, options.population, seed, seeded=seeded)
            found[name].append(volume(reach.space, *search(explorer, score, options.candidates)))
        found["baselines"].append(volume(reach.space, *baselines(reach, score, options.population)))
    return {"hypervolume": found, **shown("functions", found)}


def reach_of(state: State, workload: Workload | None) -> Reach:
    """Return all of ResNet-20 between a fifth and all of its FLOPs."""
    scores = score_units(
        state.need_coupling(), state.graph.weights, "l1", normalise=True, workload=workload
    )
    return Reach(
        Space(state.need_coupling(), state.need_cost(), [], scores, grid=range(1, 101)),
        UNIT,
        None,
        1.0,
    )


def on_images(options: argparse.Namespace) -> dict[str, Any]:
    """Compare explorers on CIFAR-10: by the scores of the search, and by test images for the points
    of every front."""
    spec = CIFAR.format(SHARED / "cifar10", 6000, options.subval)
    workload = load_data(spec, input_shape=(1, 3, 32, 32), seed=0)
    state = state_of(workload)
    reach = reach_of(state, workload)
    judge = judged_by(state, reach.space, options)
    tested = judged_by(with_test(state, workload, options.test), reach.space, options)
    found: dict[str, list[float]] = {name: [] for name in (*WAYS, "baselines")}
    test: dict[str, list[float]] = {name: [] for name in found}
    started = time.perf_counter()

    def keep(name: str, widths: np.ndarray, scores: np.ndarray) -> None:
        found[name].append(volume(reach.space, widths, scores))
        front = non_dominated(objectives(list(scores), widths, (UNIT,), reach.space.cost))
        again = np.array([tested(row) for row in widths[front]])
        test[name].append(volume(reach.space, widths[front], again))
        seconds = time.perf_counter() - started
        print(
            f"  {name}: {found[name][-1]:.4f}, on test images {test[name][-1]:.4f}, {seconds:.0f} "
            "s",
            flush=True,
        )

    keep("baselines", *baselines(reach, judge, options.population))
    for seed in range(options.seeds):
        for name, (kind, seeded) in WAYS.items():
            explorer = kind(reach, options.population, seed, seeded=seeded)
            keep(name, *search(explorer, judge, options.candidates))
    data = {"data": workload.describe(), "seconds": round(time.perf_counter() - started, 1)}
    return {
        **data,
        "hypervolume": found,
        "test": test,
        **shown("ResNet-20", found),
        "tested": shown("test images", test),
    }


def judged_by(state: State, space: Space, options: argparse.Namespace) -> Score:
    """Return the score of widths by adaptive batch norm; what was judged once is known."""
    judge = AdaptiveStatistics(calibration_batches=options.batches).open(
        ScoringContext(state, space, 0)
    )
    known: dict[bytes, float] = {}

    def score(row: np.ndarray) -> float:
        key = row.tobytes()
        if key not in known:
            known[key] = judge.score(Proposal(row)).score
        return known[key]

    return score


def with_test(state: State, workload: Workload, count: int) -> State:
    """Return a state whose structures are scored on test images."""
    return replace(state, workload=replace(workload, subval=workload.test.head(count)))


def shown(title: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Print means and wins; returns them."""
    means = {name: float(np.mean(values)) for name, values in found.items()}
    wins = {
        name: int(np.sum(np.array(found["nsga2"]) > np.array(values)))
        for name, values in found.items()
        if name != "nsga2" and len(values) == len(found["nsga2"])
    }
    print(
        f"{title}: mean hypervolume "
        + ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    )
    print(f"  nsga2 is larger {wins} times of {len(found['nsga2'])}", flush=True)
    return {"mean": means, "nsga2_larger": wins}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    # Refuses impossible numbers.
    Explore(candidates=options.candidates, population=options.population)
    data: dict[str, Any] = (
        json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    )
    for name, measured in (("functions", on_functions), ("resnet20", on_images)):
        if options.only in (None, name):
            used = {
                key: getattr(options, key)
                for key in (*SIZES, *(IMAGES if name == "resnet20" else ()))
            }
            data[name] = {"environment": environment(), "options": used, **measured(options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, data)


if __name__ == "__main__":
    try:
        main()
    except PruneoptError as error:
        raise SystemExit(f"error: {error}") from None
