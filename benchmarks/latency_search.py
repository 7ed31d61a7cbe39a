"""Searching by time against searching by FLOPs, and what half of the FLOPs is worth in time.

    python benchmarks/latency_search.py  # both parts; benchmarks/results/latency_search.json
    python benchmarks/latency_search.py --only speedups --networks resnet18 --ways FLOPs time
    python benchmarks/latency_search.py --markdown            # the tables of docs/benchmarks.md

1. *accuracy*: trained networks on CIFAR-10. A search at half of the FLOPs has a winner, whose time
   on `ort-cpu` is measured; searches with the same evaluator, number of candidates and seed then
   have that time (and shares of it) as their budget. There are two rivals: *FLOPs*, with any
   widths, which the processor dislikes, and *FLOPs, multiples*, with the same multiples as the
   searches by time: held against this one, a search by time has no head start. Scores are those on
   test images: with recomputed batch-norm statistics, and after a short fine-tuning.
2. *speedups*: networks cut by `l1` to half of their FLOPs, or of their measured time, with any
   widths and with the multiples that the processor likes (`--round-to auto`); the speed-up in pairs
   of runs, and the time of every class of ops before and after.

Every row is written when it is done and left alone the next time (`--again` makes it anew).
Sub-networks that were measured for predictions lie in `--db`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from environment import stamped
from latency_search_accuracy import ARMS, check_arms, searches
from latency_search_report import tables
from latency_search_speedups import NETWORKS, WAYS, speedups

from pruneopt import PruneoptError, UserError
from pruneopt.files import write_json

RESULTS = Path(__file__).parent / "results"
TRAINED = ("resnet20", "resnet56")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("accuracy", "speedups"), help="one of the two parts")
    parser.add_argument(
        "--networks", nargs="+", help=f"of {', '.join((*TRAINED, *NETWORKS))} (all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="of measuring for the predictor of a network (2)"
    )
    parser.add_argument(
        "--enough", type=int, default=16, help="measured sub-networks that need no more (16)"
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="that networks are timed in turns (8)"
    )
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="of cutting, in part 2"
    )
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="searches, in part 1"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(5)), help="of part 1 (0 to 4)"
    )
    parser.add_argument(
        "--searcher", default="random{candidates=60}", help="of part 1 (random{candidates=60})"
    )
    parser.add_argument(
        "--batches", type=int, default=4, help="calibration batches of 128 for each candidate (4)"
    )
    parser.add_argument(
        "--subval", type=int, default=1000, help="held-out images for each candidate (1000)"
    )
    parser.add_argument(
        "--race", type=int, default=256, help="give up what is worse after so many images (256)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of judging (fp32)"
    )
    parser.add_argument(
        "--finetune", type=int, default=1, help="epochs of fine-tuning for the winners (1)"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=10000,
        help="of the training and of the test set, at most (10000)",
    )
    parser.add_argument(
        "--db", type=Path, default=Path("runs/latency_search.db"), help="what was measured"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "latency_search.json", help="the results"
    )
    parser.add_argument("--again", action="store_true", help="make rows that are done again")
    parser.add_argument("--markdown", action="store_true", help="print the tables of what there is")
    return parser.parse_args()


class Rows:
    """The rows of both parts in their file, which another process may add to as well."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, part: str) -> list[dict[str, Any]]:
        """Return the rows of a part."""
        found: list[dict[str, Any]] = self._read().get(part, [])
        return found

    def put(self, part: str, row: dict[str, Any], *key: str) -> None:
        """Add a row, or put it in the place of the one with the same key."""
        rows = [
            *(item for item in self.of(part) if any(item[name] != row[name] for name in key)),
            row,
        ]
        write_json(self.path, {**self._read(), part: rows})

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = (
            json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        )
        return found


def accuracy(name: str, options: argparse.Namespace, rows: Rows) -> None:
    """Run the first part on a network."""
    check_arms(options.arms)
    for seed in options.seeds:
        known = [
            row for row in rows.of("accuracy") if (row["network"], row["seed"]) == (name, seed)
        ]
        for row in searches(name, seed, options, None if options.again or not known else known[0]):
            rows.put("accuracy", row, "network", "seed")


def halved(name: str, options: argparse.Namespace, rows: Rows) -> None:
    """Run the second part on a network."""
    done = (
        []
        if options.again
        else [row["way"] for row in rows.of("speedups") if row["network"] == name]
    )
    for row in speedups(name, options, done):
        rows.put("speedups", stamped(row), "network", "way")
        ratio = row.get("speedup", {}).get("ratio")
        print(
            f"{name}, {row['way']}: {row['missed'] if ratio is None else f'{ratio:.2f} times'}",
            flush=True,
        )


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    options.db.parent.mkdir(parents=True, exist_ok=True)
    rows = Rows(options.out)
    unknown = set(options.networks or ()) - {*TRAINED, *NETWORKS}
    if unknown:
        raise UserError(
            f"there is no network {min(unknown)}: use {', '.join((*TRAINED, *NETWORKS))}"
        )
    if options.markdown:
        print(tables(rows.of("accuracy"), rows.of("speedups")))
        return
    for part, names, measure in (("accuracy", TRAINED, accuracy), ("speedups", NETWORKS, halved)):
        if options.only in (None, part):
            for name in names:
                if options.networks is None or name in options.networks:
                    measure(name, options, rows)


if __name__ == "__main__":
    try:
        main()
    except PruneoptError as error:
        raise SystemExit(f"error: {error}") from None
