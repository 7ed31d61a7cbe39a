"""How well latencies of sub-networks are predicted, against FLOPs and against an additive table of
layers.

python benchmarks/latency.py  # every network on every target that is there
python benchmarks/latency.py --networks resnet50 --targets ort-cpu --held-out 8 --minutes 1

For every network and target: held-out random sub-networks, which no predictor sees, are measured in
one pass; some minutes of measuring others make a predictor; and the first ones are measured again.
The mean of the passes is the truth; its own error, the noise floor, is half of what the passes
differ by, as the mean of two has half the spread of their difference. A row that is done is
written at once and left alone the next time (`--again` makes it anew); what was measured for a row
that was stopped is in the database (`--db`), and is gone on from.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from environment import stamped
from latency_table_timer import table_timer
from markdown_table import markdown_table
from scipy.stats import kendalltau

from pruneopt import capture, load_model, parse_target
from pruneopt.extend import CostModel, couple
from pruneopt.files import write_json
from pruneopt.passes.analysis.cost.latency_measure import table_of
from pruneopt.passes.latency.choose import random_widths
from pruneopt.passes.latency.database import Database
from pruneopt.passes.latency.learn import learn
from pruneopt.passes.latency.machine import machine_of
from pruneopt.passes.latency.predictor import Predictor
from pruneopt.passes.latency.probe import Probe
from pruneopt.passes.latency.regions import find_regions
from pruneopt.passes.latency.sample import Sample
from pruneopt.passes.timing.timing import measure

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "vit_small": "timm:vit_small_patch16_224",
}
TARGETS = ("ort-cpu", "torch-cpu")


def network(spec: str) -> CostModel:
    """Return the cost model of a network, whose graph has its weights."""
    source = load_model(spec)
    graph = capture(source.module, source.example_inputs)
    return CostModel(graph, couple(graph))


class HeldOut:
    """Random sub-networks of a network, which no predictor sees.

    Their times lie in the database as those of targets of their own, one for each pass, which no
    predictor reads.

    Attributes:
        rows: widths `[N, G]`.
    """

    def __init__(
        self, cost: CostModel, probe: Probe, database: Database, count: int, seconds: float
    ) -> None:
        rng = np.random.default_rng(12345)
        self.rows = np.array([random_widths(cost, rng) for _ in range(count)])
        self._cost, self._probe, self._database, self._seconds = cost, probe, database, seconds

    def measured(self, number: int) -> np.ndarray:
        """Return what each took in a pass, in seconds `[N]`."""
        target, count = self._probe.target, len(self.rows)
        name, here = f"held-out pass {number} of {target}", machine_of(target)
        regions = find_regions(self._cost, target.batch)
        self._database.check(name, here)
        found = list(self._database.measured(name, regions).seconds())[:count]
        for row in self.rows[len(found) :]:
            session = self._probe.session(row)
            median = measure([session.step], clock=session.clock(), seconds=self._seconds)[
                0
            ].seconds
            session.close()
            self._database.add(name, here, self._cost.graph.name, regions, row, Sample(median, ()))
            found.append(median)
            print(
                f"\r  pass {number + 1}: {len(found)}/{count} held-out networks", end="", flush=True
            )
        print()
        return np.array(found)


def quality(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Mean absolute percentage error, shares within 5 and 10 %, and Kendall's tau."""
    error = np.abs(predicted / true - 1)
    return {
        "mape": round(100 * float(error.mean()), 2),
        "within_5": round(100 * float((error <= 0.05).mean()), 1),
        "within_10": round(100 * float((error <= 0.10).mean()), 1),
        "tau": round(float(kendalltau(predicted, true).statistic), 4),
    }


def line_through(x: np.ndarray, seconds: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the line with the least relative error."""
    design = np.stack([x, np.ones(len(x))], axis=1) / seconds[:, None]
    slope, offset = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0]
    return lambda other: slope * other + offset


def row_of(spec: str, text: str, options: argparse.Namespace, database: Database) -> dict[str, Any]:
    """Measure one network on one target."""
    cost, target = network(spec), parse_target(text)
    started = time.perf_counter()
    probe = Probe(cost, target)
    preparing = time.perf_counter() - started
    held_out = HeldOut(cost, probe, database, options.held_out, options.seconds)
    rows, before = held_out.rows, held_out.measured(0)
    regions = find_regions(cost, target.batch)
    done = len(database.measured(str(target), regions).samples)
    minutes = 0.0 if done and not options.again and done >= options.enough else options.minutes
    started = time.perf_counter()
    predictor = learn(cost, target, database, minutes=minutes, probe=probe)
    measuring = time.perf_counter() - started
    started = time.perf_counter()
    predicted = predictor.seconds(rows)
    predicting = time.perf_counter() - started
    after = held_out.measured(1)
    true, measured = (before + after) / 2, predictor.measured
    found: dict[str, Any] = {
        "network": spec,
        "target": str(target),
        "held_out": len(rows),
        "fastest_ms": round(1e3 * float(true.min()), 3),
        "slowest_ms": round(1e3 * float(true.max()), 3),
        "measured_networks": len(measured.samples),
        "measured_ops": sum(len(sample.nodes) for sample in measured.samples),
        "profiling_seconds": round(preparing + measuring, 1),
        "seconds_per_prediction": predicting / len(rows),
        "predictor": quality(predicted, true),
        "passes": quality(before, after),
        "passes_ms": [[round(1e3 * float(item), 5) for item in one] for one in (before, after)],
        "uncertainty": round(100 * float((predictor.uncertainty(rows) / predicted).mean()), 2),
        "flops": quality(_by_flops(cost, predictor)(rows), true),
    }
    found |= _by_table(cost, text, predictor, rows, true)
    return found


def _by_flops(cost: CostModel, predictor: Predictor) -> Callable[[np.ndarray], np.ndarray]:
    """Predict by FLOPs, with the line fitted to the same measured networks."""
    known = predictor.measured
    line = line_through(cost.measure("flops", known.widths).astype(float), known.seconds())
    return lambda rows: line(cost.measure("flops", rows).astype(float))


def _by_table(
    cost: CostModel, text: str, predictor: Predictor, rows: np.ndarray, true: np.ndarray
) -> dict[str, Any]:
    """Predict by the additive table, each layer alone on the target: as it is, and with a line
    fitted to the measured networks."""
    started = time.perf_counter()
    table = table_of(cost, table_timer(parse_target(text), cost))
    seconds = time.perf_counter() - started
    sums = table.predictor(cost)
    line = line_through(
        sums(predictor.measured.widths.astype(float)) / 1e9, predictor.measured.seconds()
    )
    raw = sums(rows.astype(float)) / 1e9
    return {
        "table": quality(raw, true),
        "table_fitted": quality(line(raw), true),
        "table_seconds": round(seconds, 1),
    }


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    print(
        f"{row['network']} on {row['target']}: {row['measured_networks']} networks, "
        f"{row['profiling_seconds']} s"
    )
    for name in PREDICTORS:
        item = row[name]
        print(
            f"  {name:12s} MAPE {item['mape']:6.2f} %  within 5 % {item['within_5']:5.1f}  within "
            "10 % "
            f"{item['within_10']:5.1f}  tau {item['tau']:.3f}"
        )


PREDICTORS = {
    "predictor": "pruneopt",
    "passes": "one pass by the other",
    "table": "additive table",
    "table_fitted": "table, fitted",
    "flops": "FLOPs, fitted",
}


def noise_floor(row: dict[str, Any]) -> float:
    """Return the error, in percent, that a perfect prediction would show on average.

    The truth is the mean of two passes. With errors of spread s in each, the passes differ by a
    spread of sqrt(2) s, and their mean is off by s / sqrt(2): half as much.
    """
    return float(row["passes"]["mape"]) / 2


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown: error, shares within 5 and 10 %, and Kendall's tau of
    every predictor."""
    columns = ["network, target, ms", "measured, s", *PREDICTORS.values(), "noise floor"]
    lines = []
    for row in rows:
        cells = [
            f"{row['network'].partition(':')[2]}, {row['target']}, {row['fastest_ms']:.1f} to "
            f"{row['slowest_ms']:.1f}",
            f"{row['measured_networks']}, {row['profiling_seconds']:.0f}",
        ]
        for item in (row[name] for name in PREDICTORS):
            cells.append(
                f"{item['mape']:.1f} %, {item['within_5']:.0f}, {item['within_10']:.0f}, "
                f"{item['tau']:.2f}"
            )
        cells.append(f"{noise_floor(row):.1f} %")
        lines.append(cells)
    return markdown_table(columns, lines, left=range(len(columns)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}, or MODELs"
    )
    parser.add_argument(
        "--targets", nargs="+", default=list(TARGETS), help="such as ort-cpu{threads=2}"
    )
    parser.add_argument("--held-out", type=int, default=50, help="random sub-networks (50)")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="of measuring for each predictor (5)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="that each held-out network runs in a pass (2)"
    )
    parser.add_argument(
        "--enough",
        type=int,
        default=1000,
        help="measured networks in --db that need no more (1000)",
    )
    parser.add_argument("--db", type=Path, default=RESULTS / "latency.db", help="what was measured")
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.json", help="the results")
    parser.add_argument("--again", action="store_true", help="measure rows that are done again")
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of what there is and stop"
    )
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    rows = {(row["network"], row["target"]): row for row in known["rows"]}
    if options.markdown:
        print(table(rows.values()))
        return
    with Database(options.db) as database:
        for name in options.networks:
            for text in options.targets:
                key = (NETWORKS.get(name, name), str(parse_target(text)))
                if parse_target(text).unavailable() is not None:
                    print(f"{text}: {parse_target(text).unavailable()}")
                elif key not in rows or options.again:
                    print(f"{key[0]} on {key[1]}", flush=True)
                    rows[key] = stamped(row_of(*key, options, database))
                    show(rows[key])
                    write_json(options.out, {"rows": list(rows.values())})


if __name__ == "__main__":
    main()
