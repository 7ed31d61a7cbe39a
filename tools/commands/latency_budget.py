"""Budgets on the time on targets in a compile: predictors before the search, and rounds."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruneopt.errors import UserError
from pruneopt.manifest import claim
from pruneopt.passes.analysis.cost.budget import Budget, parse_budget
from pruneopt.passes.front.front_point import FrontPoint
from pruneopt.passes.latency.deliver import Delivery, Observation, check_targets, targets_of
from pruneopt.passes.latency.learn import Learner
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.selection.prune import Choose
from pruneopt.passes.training.parallel import Processes
from pruneopt.tools.bundle.bundle import LATENCY_DB, LATENCY_ROUNDS

__all__ = [
    "delivery_of",
    "front_times",
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
    """Return the budgets of a run and of its passes that name a target.

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
    """Return the passes with widths that suit the processor, where a budget names one and no width
    is asked for; and notes.

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
    """Return a pass that chooses widths in multiples; one whose widths somebody decided, or that
    has none, as it is."""
    single = getattr(step, "granularity", None) == "weight"
    if single or not isinstance(step, Choose) or getattr(step, "round_to", None) != 1:
        return step
    aligned: dict[str, Any] = {"round_to": ALIGNED}
    return dataclasses.replace(step, **aligned)


def delivery_of(
    options: argparse.Namespace, budgets: Sequence[Budget], folder: Path
) -> Delivery | None:
    """Return what predicts and measures in a run; None where no budget names a target.

    Without --latency-db, measurements lie in the output directory. A run that is resumed measures
    no more where the database has enough: it must decide as it did before.
    """
    if not targets_of(budgets):
        return None
    database = options.latency_db or folder / LATENCY_DB
    minutes = None if options.resume else options.latency_minutes
    return Delivery(Learner(database, minutes), budgets, folder)


def round_folder(folder: Path, delivery: Delivery | None) -> Path:
    """Return the folder of the passes in this round: each round searches anew."""
    if delivery is None or not delivery.rounds:
        return folder
    found = folder / f"{LATENCY_ROUNDS}-{len(delivery.rounds) + 1}"
    claim(found)
    found.mkdir(exist_ok=True)
    return found


def front_times(
    steps: Sequence[Pass], delivery: Delivery | None, notes: list[str]
) -> Delivery | Observation | None:
    """Return what measures the delivered network: ``delivery`` where there is one, else the targets
    whose times a front has.

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
