"""Accuracy at equal measured time, of searches that know FLOPs and of those that know time: the
first part of `latency_search.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from environment import stamped
from evaluate_setups import SHARED
from latency_search_timing import TARGET, Stand, pair
from torch import nn

from pruneopt import UserError, Workload, capture, load_data, load_model
from pruneopt.extend import SGD, AdaptiveStatistics, RoundTo, Searcher, parse_part, train
from pruneopt.passes.search.abn import AdaptiveBN
from pruneopt.passes.search.outcome import Outcome
from pruneopt.passes.transform.recalibrate import recalibrate_on

__all__ = ["ARMS", "FAIR", "Arm", "Bench", "check_arms", "searches", "setting_of"]

CIFAR = "cifar10:{}?normalise=imagenet&limit={}&subval=2000&calibration=4000"
BASE = "FLOPs"
FAIR = "FLOPs, multiples"
"""The rival with the widths that searches by time may choose from, too."""


@dataclass(frozen=True)
class Arm:
    """A search: ``--round-to``, and its budget: half of the FLOPs, or a share of the measured time
    of a rival's winner."""

    round_to: RoundTo
    rival: str | None = None
    share: float = 1.0


ARMS = {
    BASE: Arm(1),
    FAIR: Arm("auto"),
    "time": Arm(1, BASE),
    "time, multiples": Arm("auto", BASE),
    "0.85 of the time, multiples": Arm("auto", BASE, 0.85),
    "0.7 of the time, multiples": Arm("auto", BASE, 0.7),
    "time of FLOPs in multiples": Arm("auto", FAIR),
    "0.85 of the time of FLOPs in multiples": Arm("auto", FAIR, 0.85),
}


def check_arms(names: Iterable[str]) -> None:
    """Raise `UserError` where the rival of a search is not among the searches."""
    asked = list(names)
    for rival in {ARMS[name].rival for name in asked} - {None, *asked}:
        raise UserError(f"other searches take their time from the one called {rival}: add it")


def setting_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is equal for all searches."""
    names = ("searcher", "batches", "subval", "race", "precision", "finetune", "images")
    return {name: getattr(options, name) for name in names}


@dataclass
class Bench:
    """A trained network on the target, its data, and how it is searched."""

    name: str
    stand: Stand
    workload: Workload
    options: argparse.Namespace

    @classmethod
    def load(cls, name: str, options: argparse.Namespace) -> Bench:
        """Raises `UserError` where there are no weights and images."""
        weights = SHARED / "weights" / f"cifar10_{name}_optA.safetensors"
        if not weights.is_file():
            raise UserError(f"the benchmark needs trained weights and images in {SHARED}")
        workload = load_data(
            CIFAR.format(SHARED / "cifar10", options.images), input_shape=(1, 3, 32, 32), seed=0
        )
        graph = capture(
            load_model(f"zoo:{name}", weights=weights).module, torch.zeros(2, 3, 32, 32)
        )
        return cls(name, Stand(graph, options), workload, options)

    def search(
        self, budget: str, round_to: RoundTo, seed: int, anchor: tuple[list[int], float] | None
    ) -> dict[str, Any]:
        """Search once; return the winner's score on held-out images, and on all test images."""
        options = self.options
        evaluator = AdaptiveStatistics(
            calibration_batches=options.batches,
            subval_limit=options.subval,
            race=options.race,
            precision=options.precision,
        )
        searcher: Any = parse_part(Searcher, options.searcher)
        choose = AdaptiveBN(
            searcher=searcher, evaluator=evaluator, finetune_epochs=0, round_to=round_to
        )
        found = self.stand.cut(choose, budget, workload=self.workload, seed=seed, anchor=anchor)
        if found.result is None:
            return found.row
        outcome: Any = found.result.records["abn"]
        assert isinstance(outcome, Outcome)
        scores = {"candidates": len(outcome.candidates), "score": outcome.winner.score}
        return found.row | scores | self._tested(found.result.module, seed)

    def _tested(self, module: nn.Module, seed: int) -> dict[str, float]:
        """Return accuracy on all test images: after fresh statistics, and after a short fine-tuning
        from there."""
        recalibrate_on(module, self.workload, batches=20, batch_size=128, seed=seed)
        found = {"test": self.workload.score(module, "test")}
        if self.options.finetune:
            train(
                module,
                self.workload,
                SGD(epochs=self.options.finetune, lr=0.01, batch_size=64),
                seed=seed,
            )
            found["finetuned"] = self.workload.score(module, "test")
        return found


def searches(
    name: str, seed: int, options: argparse.Namespace, row: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Yield the row of a network and a seed, again after every search and at last with the times of
    all winners."""
    row = row or {"network": name, "seed": seed, "setting": setting_of(options), "arms": {}}
    arms = row["arms"]
    missing = [arm for arm in ARMS if arm in options.arms and arm not in arms]
    if not missing and "times" in row:
        return
    if row["setting"] != setting_of(options):
        raise UserError(
            f"the row of {name}, seed {seed}, was begun with {row['setting']}: go on with "
            "these, or make it anew with --again"
        )
    bench = Bench.load(name, options)
    row["measured_networks"] = bench.stand.prepare()
    for arm in missing:
        print(f"{name}, seed {seed}: {arm}", flush=True)
        search = ARMS[arm]
        budget, anchor = "50%FLOPs", None
        if search.rival is not None:
            rival = arms[search.rival]
            if "ms" not in rival:
                rounds = bench.stand.timed([rival["widths"]])
                rival["ms"] = 1e3 * rounds.measurement(0).seconds
            budget = f"{search.share * rival['ms']:.5f}ms@{TARGET}"
            anchor = (rival["widths"], rival["ms"])
        arms[arm] = stamped(bench.search(budget, search.round_to, seed, anchor))
        row.pop("times", None)
        yield row
    row["times"] = _times(bench.stand, arms)
    yield stamped(row)


def _times(stand: Stand, arms: dict[str, Any]) -> dict[str, Any]:
    """Time the original and all winners in turns: milliseconds, and how many times as fast as the
    winners by FLOPs that were searched."""
    names = [arm for arm in arms if "missed" not in arms[arm]]
    rounds = stand.timed([stand.full, *(arms[arm]["widths"] for arm in names)])
    rivals = [name for name in (BASE, FAIR) if name in names]
    found: dict[str, Any] = {}
    for index, name in enumerate(["original", *names]):
        item = rounds.measurement(index)
        found[name] = {
            "ms": round(1e3 * item.seconds, 4),
            "low": round(1e3 * item.low, 4),
            "high": round(1e3 * item.high, 4),
            "against": {rival: pair(rounds, 1 + names.index(rival), index) for rival in rivals},
            "against_original": pair(rounds, 0, index),
        }
    return found
