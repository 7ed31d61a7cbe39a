"""``pruneopt search``: find the Pareto front of accuracy against costs, and write it with a
picture."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pruneopt.errors import InternalError, UserError
from pruneopt.files import write_json, write_text
from pruneopt.ir.graph import Graph
from pruneopt.models.source import LoadedModel
from pruneopt.models.workload import Workload, top1
from pruneopt.passes.analysis.channels.constraints import Constraints
from pruneopt.passes.analysis.cost.budget import Budget, parse_budget
from pruneopt.passes.analysis.cost.units import target_of
from pruneopt.passes.front.explore import Explore, canonical_unit
from pruneopt.passes.front.front_file import FRONT, front_data
from pruneopt.passes.front.front_outcome import FrontOutcome
from pruneopt.passes.latency.deliver import WithTimes, check_targets, targets_of
from pruneopt.passes.latency.learn import Learner
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.instrument import Instrument
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline, pipeline_text
from pruneopt.passes.selection.prune import Choose
from pruneopt.passes.transform.stages import Cost, Slice
from pruneopt.progress import Progress
from pruneopt.tools.bundle.bundle import LATENCY_DB, OutputDirectory, fingerprint
from pruneopt.tools.commands.from_front import RUN
from pruneopt.tools.commands.loading import (
    captured,
    check_device,
    early_model,
    loaded_model,
    loaded_workload,
)
from pruneopt.tools.commands.run_words import run_words
from pruneopt.tools.report.front_plot import front_svg
from pruneopt.tools.report.front_text import front_html, front_lines
from pruneopt.tools.report.progress import progress_bar
from pruneopt.tools.report.report import plain, versions
from pruneopt.tools.report.watch import metric_name

__all__ = ["run"]

INTERRUPTED = 130
PICTURE, PAGE = "front.svg", "front.html"


@dataclass
class _Job:
    """One search: what was asked for."""

    options: argparse.Namespace
    before: list[Pass]
    explore: Explore
    loaded: LoadedModel
    workload: Workload
    on_targets: list[Budget]
    """Budgets that name a target, and what accuracy is traded against on one."""


@dataclass
class _Last(Instrument):
    """Keeps the state of a run."""

    state: State | None = None

    def before_pass(self, index: int, step: Pass, state: State) -> None:
        self.state = state
        state.progress(step.label)


def run(options: argparse.Namespace) -> int:
    """Search, and return 0, or 130 when it was interrupted and the front so far was written."""
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        job = _prepared(options)
        place = OutputDirectory(
            options.out or Path("fronts") / job.loaded.name,
            run=run_words(options, job.loaded.name, [*job.before, job.explore]),
            resume=options.resume,
            force=options.force,
            names=(FRONT, PICTURE, PAGE, RUN),
        )
        with place as out:
            try:
                front = _searched(job, out)
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt("--resume continues it" if out.can_resume else "") from stop
    _show(front, job, out.path)
    return INTERRUPTED if front["interrupted"] else 0


def _prepared(options: argparse.Namespace) -> _Job:
    """Check the options, and load the network: all that can be refused is refused here, before any
    work."""
    Constraints.parse(options.width, options.max_ratio, options.tie)
    loaded = early_model(options)
    before, explore = _before(options), _explore(options)
    on_targets = _on_targets(options)
    check_device(options.device)
    loaded = loaded or loaded_model(options)
    workload = loaded_workload(options, loaded, "search")
    if workload is None:
        raise InternalError("a search without data")
    return _Job(options, before, explore, loaded, workload, on_targets)


def _on_targets(options: argparse.Namespace) -> list[Budget]:
    """Return budgets and costs that are times on targets; `UserError` for a target that is not
    here, or unread options."""
    found = [
        budget
        for budget in map(parse_budget, options.budgets)
        if target_of(budget.unit) is not None
    ]
    for unit in options.against:
        if target_of(unit) is not None:
            found.append(Budget(unit, canonical_unit(unit), 1.0, relative=True))
    check_targets(targets_of(found))
    for flag, value in (
        ("--latency-db", options.latency_db),
        ("--latency-minutes", options.latency_minutes),
    ):
        if value is not None and not found:
            raise UserError(f"{flag} is for times on targets, such as --against latency@ort-cpu")
    return found


def _before(options: argparse.Namespace) -> list[Pass]:
    """Return the passes before the search."""
    found = parse_pipeline(options.before)
    wrong = next((step.name for step in found if isinstance(step, Choose | Slice | Explore)), None)
    if wrong is not None or not any(isinstance(step, Cost) for step in found):
        problem = "lacks cost" if wrong is None else f"must not hold {wrong}"
        raise UserError(
            f"--before {problem}: it is what comes before a search, such as 'couple,cost'"
        )
    if options.flops_convention != "macs":
        convention = options.flops_convention
        found = [
            dataclasses.replace(step, convention=convention) if isinstance(step, Cost) else step
            for step in found
        ]
    return found


def _explore(options: argparse.Namespace) -> Explore:
    """Return the pass that the options describe."""
    given = {
        "against": tuple(options.against) or None,
        "round_to": options.round_to,
        "minimum": options.min_channels,
        **{
            name: getattr(options, name)
            for name in ("candidates", "population", "searcher", "evaluator", "criterion")
        },
    }
    least, most = options.range or (None, 1.0)
    return Explore(
        least=least,
        most=most,
        **{name: value for name, value in given.items() if value is not None},
    )


def _searched(job: _Job, out: OutputDirectory) -> dict[str, Any]:
    """Search and write, and return the front's data."""
    graph = captured(job.loaded, check=True)
    with progress_bar(not (job.options.json or job.options.quiet)) as progress:
        last = _run_passes(job, graph, progress, out.path)
    outcome = last.records[job.explore.name]
    if not isinstance(outcome, FrontOutcome):
        raise InternalError("the search left no front")
    outcome.notes[:0] = [*graph.notes, *_guessing(outcome, job.workload)]
    front = front_data(outcome, last, job.explore, pipeline_text(job.before))
    with out.replacing() as folder:
        _write(job, outcome, front, folder)
    return front


def _guessing(outcome: FrontOutcome, workload: Workload) -> list[str]:
    """Return a note where the original does hardly better than chance: most often it has no trained
    weights."""
    classes = workload.num_classes if workload.metric is top1 else None
    scores = [item.score for item in outcome.candidates if item.origin == "original"]
    if classes is None or not scores or scores[0] > 2 / classes:
        return []
    return [
        f"the original scores {scores[0]:.1%}, and guessing among {classes} classes "
        f"{1 / classes:.1%}: is it trained? "
        "Give --weights"
    ]


def _run_passes(job: _Job, graph: Graph, progress: Progress, folder: Path) -> State:
    """Run the passes, and return the state at their end."""
    options, last = job.options, _Last()
    # A search that goes on measures no more where it knows enough: it must propose what it did
    # before.
    minutes = None if options.resume else options.latency_minutes
    learner = Learner(options.latency_db or folder / LATENCY_DB, minutes)
    times = [WithTimes(learner, job.on_targets)] if job.on_targets else []
    PassManager([*job.before, job.explore], instruments=[last, *times]).run(
        graph,
        budgets=options.budgets,
        workload=job.workload,
        seed=options.seed,
        device=options.device,
        ignore=options.ignore,
        width=options.width,
        max_ratio=options.max_ratio,
        tie=options.tie,
        progress=progress,
        run_dir=folder,
    )
    if last.state is None:
        raise InternalError("no pass ran")
    return last.state


def _write(job: _Job, outcome: FrontOutcome, front: dict[str, Any], folder: Path) -> None:
    metric = metric_name(job.workload)
    measured = [{"score": point.tried.score, "costs": point.costs} for point in outcome.measured]
    picture = front_svg(front, measured, metric)
    write_text(folder / PICTURE, picture)
    write_text(folder / PAGE, front_html(front, metric, picture))
    write_json(folder / RUN, _run_record(job))
    write_json(folder / FRONT, front)


def _run_record(job: _Job) -> dict[str, Any]:
    """Return how to do the same again, and what ``compile --from-front`` needs to know."""
    options = job.options
    inputs = {"weights": options.weights, "model": job.loaded.origin}
    return {
        "command": ["pruneopt", *options.words],
        "pipeline": pipeline_text([*job.before, job.explore]),
        "searched": {
            "model": options.model,
            "weights": None if options.weights is None else str(options.weights),
            "input": None if options.input is None else list(options.input),
            "data": options.data,
            "seed": options.seed,
        },
        "constraints": {
            name: list(getattr(options, name)) for name in ("ignore", "width", "max_ratio", "tie")
        },
        "device": options.device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "data": plain(job.workload.describe()),
        "sha256": {name: fingerprint(path) for name, path in inputs.items() if path is not None},
    }


def _show(front: dict[str, Any], job: _Job, folder: Path) -> None:
    """Print the front: JSON alone, the last line alone, or the table."""
    if job.options.json:
        print(json.dumps(front, indent=2, ensure_ascii=False))
        return
    lines = list(front_lines(front, metric_name(job.workload)))
    for line in lines[-1:] if job.options.quiet else lines:
        print(line)
    if not job.options.quiet:
        print(f"front: {folder / FRONT}, {folder / PICTURE}, {folder / PAGE}")
        print(f"a point of it as a bundle: pruneopt compile {folder} --from-front K")
    sys.stdout.flush()
