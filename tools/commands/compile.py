"""``pruneopt compile``: load, check, capture, run the passes, write the bundle, load it back, and
say what came out."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pruneopt.errors import InternalError
from pruneopt.files import write_json, write_text
from pruneopt.ir.graph import Graph
from pruneopt.models.source import LoadedModel
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.constraints import Constraints
from pruneopt.passes.analysis.cost.budget import Budget, parse_budget
from pruneopt.passes.depth.drop_blocks import dropped_blocks
from pruneopt.passes.latency.deliver import Delivery, Observation, in_rounds
from pruneopt.passes.manager import PassManager
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.instrument import Instrument
from pruneopt.passes.result import Result
from pruneopt.passes.training.parallel import Processes
from pruneopt.progress import Progress, silent
from pruneopt.tools.bundle.artefacts import onnx_notes, write_artefacts
from pruneopt.tools.bundle.bundle import OutputDirectory, fingerprint, fingerprints
from pruneopt.tools.bundle.checks import Check, check_artefacts
from pruneopt.tools.commands.from_front import with_front
from pruneopt.tools.commands.latency_budget import (
    delivery_of,
    front_times,
    on_steps,
    round_folder,
    target_budgets,
)
from pruneopt.tools.commands.loading import (
    captured,
    check_device,
    early_model,
    loaded_model,
    loaded_workload,
)
from pruneopt.tools.commands.pipeline import chosen_pass, needs_data, passes_of
from pruneopt.tools.commands.processes import run_folder
from pruneopt.tools.commands.run_words import run_words
from pruneopt.tools.report.coverage import coverage_of, coverage_warning
from pruneopt.tools.report.notes import notes_of
from pruneopt.tools.report.progress import progress_bar
from pruneopt.tools.report.report import (
    BudgetResult,
    GroupResult,
    LatencyResult,
    Proof,
    Report,
    SparsityResult,
    delivered_costs,
    original_costs,
    plain,
    versions,
)
from pruneopt.tools.report.sections import html_report, report_lines, verdict
from pruneopt.tools.report.watch import Watch, metric_name, stopped

__all__ = ["run"]

INTERRUPTED = 130
SHOWN_ELSEWHERE = ("verify", "cost", "budget", "masks")


@dataclass
class _Job:
    """One compile: what was asked for, and what is known so far."""

    options: argparse.Namespace
    steps: list[Pass]
    budgets: list[Budget]
    loaded: LoadedModel
    workload: Workload | None
    on_targets: list[Budget]
    """All budgets, those of passes too, if any names a target."""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to a stage."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def run(options: argparse.Namespace) -> int:
    """Compile, and return 0, or 130 when a search was interrupted and its best result was
    delivered."""
    with_front(options)
    processes = Processes.here()
    if processes.rank:
        with redirect_stdout(io.StringIO()):
            _follow(options, processes)
        return 0
    # What a model file prints must not end up in the JSON.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        report, folder = _checked_and_compiled(options, processes)
    _show(report, options, folder)
    return INTERRUPTED if report.interrupted else 0


def _checked_and_compiled(options: argparse.Namespace, processes: Processes) -> tuple[Report, Path]:
    """Return the report and where the bundle is."""
    job = _prepared(options, processes)
    place = OutputDirectory(
        options.out or Path("pruned") / job.loaded.name,
        run=run_words(options, job.loaded.name, job.steps),
        resume=options.resume,
        force=options.force,
    )
    with place as out:
        try:
            report = _compile(job, out, processes)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("--resume continues it" if out.can_resume else "") from stop
    return report, out.path


def _prepared(options: argparse.Namespace, processes: Processes) -> _Job:
    """Check the options, and load the network: all that can be refused is refused here, before any
    work."""
    budgets = [parse_budget(text) for text in options.budgets]
    Constraints.parse(options.width, options.max_ratio, options.tie)
    started = time.perf_counter()
    loaded = early_model(options)
    early = time.perf_counter() - started
    steps = passes_of(options)
    if processes.launched and options.device.startswith("cuda"):
        options.device = str(processes.device(options.device))
    check_device(options.device)
    on_targets = target_budgets(options, steps, budgets, processes)
    steps, notes = on_steps(options, steps, on_targets)
    started = time.perf_counter()
    loaded = loaded or loaded_model(options)
    workload = loaded_workload(options, loaded, needs_data(steps))
    return _Job(
        options,
        steps,
        budgets,
        loaded,
        workload,
        on_targets,
        {"load": early + time.perf_counter() - started},
        notes,
    )


def _follow(options: argparse.Namespace, processes: Processes) -> None:
    """Do what the other processes under torchrun do: the same passes, and nothing that is seen."""
    job = _prepared(options, processes)
    watch = Watch(job.loaded, None, tuple(job.steps), options.device)
    with run_folder(processes, None) as folder:
        _run_passes(job, captured(job.loaded), watch, silent, folder)


def _compile(job: _Job, out: OutputDirectory, processes: Processes) -> Report:
    """Do everything between the checks and the words on the terminal, and return the report."""
    options = job.options
    with job.timed("capture"):
        graph = captured(job.loaded, check=True)
    job.notes.extend(graph.notes)
    with progress_bar(not (options.json or options.quiet)) as progress:
        with run_folder(processes, out.path) as run_dir:
            delivery = delivery_of(options, job.on_targets, run_dir)
            measured = front_times(job.steps, delivery, job.notes)
            watch, result = _run_rounds(job, graph, measured, progress, run_dir)
        progress("writing the bundle")
        with out.replacing(unfinished=job.interrupted) as folder:
            return _deliver(job, watch, result, measured, folder)


def _run_rounds(
    job: _Job,
    graph: Graph,
    measured: Delivery | Observation | None,
    progress: Progress,
    run_dir: Path,
) -> tuple[Watch, Result]:
    """Run the passes until the cut network is inside its budgets on targets: once where no budget
    names one."""

    delivery = measured if isinstance(measured, Delivery) else None

    def one_round() -> tuple[Watch, Result]:
        watch = Watch(job.loaded, job.workload, tuple(job.steps), job.options.device)
        return watch, _run_passes(
            job, graph, watch, progress, round_folder(run_dir, delivery), measured
        )

    return in_rounds(one_round, delivery)


def _run_passes(
    job: _Job,
    graph: Graph,
    watch: Watch,
    progress: Progress,
    run_dir: Path,
    measured: Instrument | None = None,
) -> Result:
    # The last one is told first after a pass: costs have their predictors before the budgets are
    # checked.
    manager = PassManager(job.steps, instruments=[watch] if measured is None else [watch, measured])
    try:
        result = manager.run(
            graph,
            budgets=job.budgets,
            workload=job.workload,
            seed=job.options.seed,
            device=job.options.device,
            ignore=job.options.ignore,
            width=job.options.width,
            max_ratio=job.options.max_ratio,
            tie=job.options.tie,
            progress=progress,
            run_dir=run_dir,
        )
    except KeyboardInterrupt:
        # A network that is proved is worth delivering, whatever was to follow.
        if watch.state is None or watch.state.verification is None:
            raise
        result = Result.of(watch.state)
        job.interrupted = True
        job.notes.append("interrupted: what was to follow the proof is left out")
    job.interrupted |= stopped(result.records)
    job.seconds.update(result.timings)
    if watch.scores:
        job.seconds["scoring"] = watch.seconds
    if result.plan is None or result.coupling is None or result.verification is None:
        raise InternalError("the pipeline ended without a plan or a proof")
    return result


def _deliver(
    job: _Job, watch: Watch, result: Result, measured: Delivery | Observation | None, folder: Path
) -> Report:
    """Write the bundle into a folder, load it back, and write the reports."""
    state, plan, coupling = watch.state, result.plan, result.coupling
    if state is None or state.uncut is None or plan is None or coupling is None:
        raise InternalError("the passes left nothing to deliver")
    examples = job.loaded.example_inputs
    with job.timed("export"):
        write_artefacts(
            folder,
            module=result.module,
            before=state.uncut,
            after=result.graph,
            coupling=coupling,
            plan=plan,
            examples=examples,
            masks=result.masks,
            dropped=dropped_blocks(result.records),
        )
    with job.timed("checks"):
        checks = check_artefacts(
            folder,
            result.module,
            result.graph,
            examples,
            seed=job.options.seed,
            replay=(state.uncut, coupling, watch.sliced),
            masks=result.masks,
        )
    warning = coverage_warning(coverage_of(coupling, state.need_cost()))
    if warning is not None:
        job.notes.append(warning)
    job.notes += onnx_notes(result.graph)
    report = _report(job, watch, result, measured, checks, fingerprints(folder))
    data = report.data()
    write_json(folder / "run.json", _run_record(job, report))
    write_json(folder / "report.json", data)
    write_text(folder / "report.html", html_report(report))
    if json.loads((folder / "report.json").read_text(encoding="utf-8")) != data:
        raise InternalError("report.json does not read back to what was written")
    return report


def _report(
    job: _Job,
    watch: Watch,
    result: Result,
    measured: Delivery | Observation | None,
    checks: list[Check],
    artefacts: dict[str, dict[str, Any]],
) -> Report:
    if (
        watch.state is None
        or result.coupling is None
        or result.plan is None
        or result.verification is None
    ):
        raise InternalError("the passes left nothing to report")
    cost, records = watch.state.need_cost(), result.records
    chooser = chosen_pass(job.steps)
    original, pruned = original_costs(cost), delivered_costs(cost, result.plan, records)
    sparsity = None
    if result.masks is not None:
        sparsity = SparsityResult.of(result.graph, result.masks, int(pruned["params"]))
    if watch.scores:
        original["accuracy"], pruned["accuracy"] = watch.scores[0].score, watch.scores[-1].score
    latency = None
    if measured is not None and measured.rounds:
        latency = LatencyResult(measured.rounds, measured.corrections)
    return Report(
        model=job.loaded.spec,
        pass_=pass_text(chooser),
        pipeline=",".join(map(pass_text, job.steps)),
        interrupted=job.interrupted,
        budgets=[BudgetResult.of(use, latency) for use in result.budgets],
        flops_convention=cost.convention.name,
        original=original,
        pruned=pruned,
        metric=None if job.workload is None else metric_name(job.workload),
        scores=watch.scores,
        verification=Proof(**vars(result.verification), artefacts=tuple(checks)),
        groups=GroupResult.all(result.coupling, result.plan),
        seconds={stage: round(value, 3) for stage, value in job.seconds.items()},
        notes=list(dict.fromkeys([*job.notes, *notes_of(records)])),
        sparsity=sparsity,
        reached=getattr(records.get("budget"), "reached", None),
        records={
            name: record
            for name, record in records.items()
            if name not in (*SHOWN_ELSEWHERE, chooser.name)
        },
        search=records.get(chooser.name),
        latency=latency,
        artefacts=artefacts,
    )


def _run_record(job: _Job, report: Report) -> dict[str, Any]:
    """Return how to do the same again: what ran, on what, with which versions."""
    options = job.options
    inputs = {"weights": options.weights, "model": job.loaded.origin}
    return {
        "command": ["pruneopt", *options.words],
        "model": job.loaded.spec,
        "pipeline": report.pipeline,
        "budgets": [budget.text for budget in job.budgets],
        "seed": options.seed,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "data": None if job.workload is None else plain(job.workload.describe()),
        "sha256": {name: fingerprint(path) for name, path in inputs.items() if path is not None},
        "artefacts": report.artefacts,
    }


def _show(report: Report, options: argparse.Namespace, out: Path) -> None:
    """Print the report: JSON alone, the verdict alone, or table and verdict."""
    if options.json:
        print(json.dumps(report.data(), indent=2, ensure_ascii=False))
        return
    if options.quiet:
        print(verdict(report))
        return
    for line in report_lines(report):
        print(line)
    print(f"bundle: {out}")
    print(f"report: {out / 'report.html'}")
    sys.stdout.flush()
