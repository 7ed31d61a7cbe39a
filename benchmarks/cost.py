"""How fast the cost model is: the time to build it, and width vectors measured per second, in every
unit.

python benchmarks/cost.py                         # ResNet-50
python benchmarks/cost.py torchvision:densenet121 zoo:mobilenet_v1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment

from pruneopt import capture, load_model
from pruneopt.extend import CostModel, couple

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "cost.json"


def best_of(runs: int, function: Callable[[], object]) -> float:
    """Return seconds of the fastest run: other work on the machine only ever adds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(spec: str, count: int) -> dict[str, Any]:
    """Return seconds to build the model and compile all units, and vectors per second, singly and
    as a population."""
    source = load_model(spec)
    graph = capture(source.module, source.example_inputs)
    coupling = couple(graph)
    cost = CostModel(graph, coupling)
    rng = np.random.default_rng(0)
    widths = rng.integers(1, cost.full // cost.step + 1, size=(count, len(cost.full))) * cost.step

    def build() -> None:
        new = CostModel(graph, coupling)
        for unit in new.units:
            new.measure(unit, new.full)

    rates = {unit: count / best_of(3, partial(cost.measure, unit, widths)) for unit in cost.units}
    one = best_of(100, lambda: cost.measure("flops", widths[0]))
    return {
        "network": spec,
        "ops": len(graph.ops),
        "groups": len(cost.groups),
        "vectors": count,
        "build_seconds": best_of(3, build),
        "one_vector_seconds": one,
        "vectors_per_second": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["torchvision:resnet50"])
    parser.add_argument("--vectors", type=int, default=200_000, help="size of the population")
    options = parser.parse_args()
    rows = [measure(spec, options.vectors) for spec in options.networks]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"environment": environment(), "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )
    print(
        "network                    groups  build ms  one us "
        + "".join(f"{unit + '/s':>14}" for unit in rows[0]["vectors_per_second"])
    )
    for row in rows:
        rates = "".join(f"{rate:14,.0f}" for rate in row["vectors_per_second"].values())
        build, one = 1e3 * row["build_seconds"], 1e6 * row["one_vector_seconds"]
        print(f"{row['network']:26} {row['groups']:6} {build:9.1f} {one:7.1f} {rates}")


if __name__ == "__main__":
    main()
