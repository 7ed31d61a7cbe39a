"""What compile does for budgets on the time on targets: predictors before the search, rounds, and
the report."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.budget import Budget, parse_budget
from pruneopt.passes.front.front_point import FrontPoint
from pruneopt.passes.latency.deliver import Delivery, Observation, check_targets, targets_of
from pruneopt.passes.latency.learn import Learner
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.selection.prune import Choose
from pruneopt.passes.training.parallel import Processes
from pruneopt.tools.bundle.bundle import LATENCY_DB, LATENCY_ROUNDS
from pruneopt.tools.report.text import amount, percent

__all__ = [
    "delivery_of",
    "front_times",
    "latency_data",
    "latency_lines",
    "latency_rows",
    "on_steps",
    "round_folder",
    "target_budgets",
]

ALIGNED = "auto:cpu-avx512"


def target_budgets(
    options: argparse.Namespace,
    steps: Sequence[Pass],
    budgets: Sequence[Budget],
    processes: Processes,
) -> list[Budget]:
    """The budgets of a run and of its passes that name a target.

    Raises:
        UserError: several processes, or options that nothing reads.
    """
    own = [parse_budget(text) for step in steps for text in getattr(step, "budget", ())]
    every = [*budgets, *own]
    if not targets_of(every):
        for flag, value in (
            ("--latency-db", options.latency_db),
            ("--latency-minutes", options.latency_minutes),
        ):
            if value is not None:
                raise UserError(
                    f"{flag} is for budgets that name a target, such as --budget 4ms@ort-cpu"
                )
    elif processes.world > 1:
        raise UserError(
            "a budget on the time on a target is for one process: leave torchrun out, or train "
            "afterwards"
        )
    return every


def on_steps(
    options: argparse.Namespace, steps: list[Pass], budgets: Sequence[Budget]
) -> tuple[list[Pass], list[str]]:
    """The passes, choosing widths that suit a processor where a budget names one and nobody says
    otherwise; and notes.

    Times on processors are staircases: a channel more than a block of a vector costs as much as a
    whole block. A search by single channels does not climb them, and leaves a part of the budget
    unused.
    """
    on_processor = any(text.partition("{")[0].endswith("-cpu") for text in targets_of(budgets))
    if not on_processor or options.round_to is not None:
        return steps, []
    changed = [_aligned(step) for step in steps]
    if changed == steps:
        return steps, []
    return changed, [
        f"widths are multiples that suit the processor ({ALIGNED}), as a budget names one: "
        "--round-to decides"
    ]


def _aligned(step: Pass) -> Pass:
    """A pass that chooses widths in multiples; one whose widths somebody decided, or that has none,
    as it is."""
    single = getattr(step, "granularity", None) == "weight"
    if single or not isinstance(step, Choose) or getattr(step, "round_to", None) != 1:
        return step
    aligned: dict[str, Any] = {"round_to": ALIGNED}
    return dataclasses.replace(step, **aligned)


def delivery_of(
    options: argparse.Namespace, budgets: Sequence[Budget], folder: Path
) -> Delivery | None:
    """What predicts and measures in a run; None where no budget names a target.

    Without --latency-db, measurements lie in the output directory. A run that is resumed measures
    no more where the database has enough: it must decide as it did before.
    """
    if not targets_of(budgets):
        return None
    database = options.latency_db or folder / LATENCY_DB
    minutes = None if options.resume else options.latency_minutes
    return Delivery(Learner(database, minutes), budgets, folder)


def round_folder(folder: Path, delivery: Delivery | None) -> Path:
    """Where the passes of this round leave their files: each round searches anew."""
    if delivery is None or not delivery.rounds:
        return folder
    found = folder / f"{LATENCY_ROUNDS}-{len(delivery.rounds) + 1}"
    found.mkdir(exist_ok=True)
    return found


def front_times(
    steps: Sequence[Pass], delivery: Delivery | None, notes: list[str]
) -> Delivery | Observation | None:
    """What measures the delivered network: ``delivery`` where there is one, else the targets whose
    times a front has.

    A target that is not here is left out, and noted.
    """
    times = [step.times() for step in steps if isinstance(step, FrontPoint)]
    predicted: dict[str, tuple[float, float]] = {}
    for text, pair in (item for found in times for item in found.items()):
        try:
            check_targets([text])
        except UserError as reason:
            notes.append(f"the time on {text} that the front predicts is not measured: {reason}")
        else:
            predicted[text] = pair
    return delivery or (Observation(predicted) if predicted else None)


def latency_data(
    delivery: Delivery | Observation, budgets: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The times for the report; what was measured also becomes what the budgets came to.

    ``budgets`` is the report's list, which is changed.
    """
    last = {item.target: item for item in delivery.rounds[-1]}
    for entry in budgets:
        found = last.get(entry["unit"].partition("@")[2])
        if found is not None:
            entry["achieved"], entry["original"] = 1e9 * found.measured, 1e9 * found.measured_before
            entry["met"] = entry["achieved"] <= entry["limit"] * (1 + 1e-12)
    rounds = [[{**_plain(item)} for item in items] for items in delivery.rounds]
    return {"targets": rounds[-1], "rounds": rounds, "corrections": delivery.corrections}


def _plain(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__} | {"met": item.met}


def latency_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Before, after and what is left, predicted and measured, for each target."""
    for item in (report.get("latency") or {}).get("targets", ()):
        for what, before, after in (
            ("measured", "measured_before", "measured"),
            ("predicted", "predicted_before", "predicted"),
        ):
            times = (amount(1e9 * item[before], "latency"), amount(1e9 * item[after], "latency"))
            yield f"{item['target']} {what}", *times, percent(item[after] / item[before])


def latency_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of the times."""
    found = report.get("latency") or {}
    for item in found.get("targets", ()):
        low, high = (amount(1e9 * item[end], "latency") for end in ("low", "high"))
        noise = f"; {item['noisy']}" if item["noisy"] else ""
        yield f"On {item['target']} the median lies between {low} and {high} (95 %){noise}."
    rounds = len(found.get("rounds", ()))
    if rounds > 1:
        yield (
            f"The first {rounds - 1} of {rounds} networks missed a budget on a target, and "
            "corrected the predictions."
        )
