"""The sections of a report: a new section or column is made here. The page shows all of them, the
terminal the table of changes and the sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pruneopt.passes.analysis.cost.units import TABLE
from pruneopt.passes.regularised.growing import GrowingReport
from pruneopt.passes.repair.bias import BiasShift
from pruneopt.passes.repair.repair import RepairReport
from pruneopt.passes.selection.masks import MASKS
from pruneopt.passes.selection.rounding import Rounding
from pruneopt.tools.report.report import (
    EQUIVALENT,
    NOT_PROVED,
    BudgetResult,
    GroupResult,
    LatencyResult,
    Report,
)
from pruneopt.tools.report.tables import (
    Bar,
    Section,
    Table,
    page,
    section_html,
    table_of,
    table_text,
)
from pruneopt.tools.report.text import FLOP_NOTE, amount, change, percent, score_text, seconds

__all__ = ["html_report", "report_lines", "verdict"]

STAGES = {
    "slice": "pruned",
    "repair-bias": "repaired by bias",
    "repair-lstsq": "repaired by least squares",
    "repair-bn": "repaired by batch norm",
    "recalibrate": "recalibrated",
    "finetune": "fine-tuned",
    "scratch": "from scratch",
}


class Change(NamedTuple):
    """A measure of the original and of the pruned network, in words, and the share that is left."""

    what: str
    before: str
    after: str
    left: float | None = None


def report_lines(report: Report) -> Iterator[str]:
    """Yield what the terminal shows: before and after, the sentences of all sections, the
    verdict."""
    yield table_text(_changes([*_costs(report), *_times(report), *_scores(report)]))
    yield ""
    yield from (f"note: {note}" for note in report.notes)
    if report.reached == "one channel step":
        yield (
            "note: the budget is not used to 99 %, but one more channel of any group would exceed "
            "it"
        )
    yield from (line for section in sections(report) for line in section.lines)
    changed = len(report.verification.notes)
    if changed:
        places = "one place" if changed == 1 else f"{changed} places"
        yield (
            f"Not equivalent by construction in {places}, where statistics run over channels; "
            "the reports name them."
        )
    yield verdict(report)


def html_report(report: Report) -> str:
    """Return the page: the verdict, the notes and every section."""
    return page(
        f"{report.model} pruned by {report.pass_}",
        verdict(report),
        report.notes,
        (line for section in sections(report) for line in section_html(section)),
        stopped=report.interrupted or report.equivalence != EQUIVALENT,
    )


def verdict(report: Report) -> str:
    """Return one line: whether the function is the same, every budget with what was achieved, and
    what was checked."""
    parts = [
        f"{item.text} {'met' if item.met else 'NOT met'} with {_achieved(item, report)}"
        for item in report.budgets
    ]
    checked = ", ".join(item.artefact for item in report.verification.artefacts)
    stopped = "interrupted, the best so far: " if report.interrupted else ""
    verified = "" if report.equivalence == NOT_PROVED else "verified, and "
    parts = [report.equivalence, *parts, f"{verified}{checked} loaded back equal"]
    return f"{stopped}{'; '.join(parts)}"


def sections(report: Report) -> Iterator[Section]:
    """Yield all sections in order, without those that have nothing to say."""
    for make in (
        *(_budget_section, _cost_section, _latency_section, _sparsity_section, _score_section),
        *(_repair_section, _search_section, _penalty_section, _group_section, _frozen_section),
        *(_verification_section, _time_section, _file_section),
    ):
        found = make(report)
        if found.lines or any(shown.rows for shown in found.tables):
            yield found


# Before and after


def _changes(rows: list[Change]) -> Table:
    """Return the table of measures before and after: each has a row, wherever it comes from."""
    return table_of(
        rows,
        ("", lambda row: row.what),
        ("before", lambda row: row.before),
        ("after", lambda row: row.after),
        ("left", lambda row: "" if row.left is None else percent(row.left)),
        ("", lambda row: "" if row.left is None else Bar(row.left, 1.0)),
    )


def _costs(report: Report) -> Iterator[Change]:
    for unit in (unit for unit in TABLE if unit.name in report.original):
        before, after = report.original[unit.name], report.pruned[unit.name]
        texts = (amount(before, unit.name), amount(after, unit.name))
        yield Change(unit.label, *texts, after / before if before else None)


def _times(report: Report) -> Iterator[Change]:
    for item in () if report.latency is None else report.latency.targets:
        for what, before, after in (
            ("measured", item.measured_before, item.measured),
            ("predicted", item.predicted_before, item.predicted),
        ):
            yield Change(f"{item.target} {what}", _time(before), _time(after), after / before)


def _scores(report: Report) -> Iterator[Change]:
    for stage in report.scores[1:]:
        what = f"{report.metric} {STAGES.get(stage.after, f'after {stage.after}')}"
        first = score_text(report.scores[0].score, report.metric)
        yield Change(what, first, score_text(stage.score, report.metric))


# Sections


def _budget_section(report: Report) -> Section:
    shown = table_of(
        report.budgets,
        ("budget", lambda item: item.text),
        ("limit", lambda item: amount(item.limit, item.unit)),
        ("achieved", lambda item: _achieved(item, report)),
        ("", lambda item: "met" if item.met else "not met"),
    )
    return Section("Budgets", (shown,))


def _achieved(item: BudgetResult, report: Report) -> str:
    """Say what a budget came to; parameters that masks hold at zero do not count."""
    text = change(item.achieved, item.original, item.unit)
    return f"{text} not zero" if report.sparsity and item.unit == "params" else text


def _cost_section(report: Report) -> Section:
    convention = report.flops_convention
    return Section(
        "Before and after",
        (_changes(list(_costs(report))),),
        (FLOP_NOTE if convention == "macs" else f"FLOPs as counted by {convention}.",),
        ("Peak memory is that of activations.",),
    )


def _latency_section(report: Report) -> Section:
    found = report.latency
    if found is None:
        return Section("Time on targets")
    lines = [
        f"On {item.target} the median lies between {_time(item.low)} and {_time(item.high)} (95 %)"
        f"{f'; {item.noisy}' if item.noisy else ''}."
        for item in found.targets
    ]
    tables = [_changes(list(_times(report)))]
    if len(found.rounds) > 1:
        lines.append(
            f"The first {len(found.rounds) - 1} of {len(found.rounds)} networks missed a budget on "
            "a target, and corrected the predictions."
        )
        tables.append(_rounds(found))
    return Section("Time on targets", tuple(tables), tuple(lines))


def _rounds(found: LatencyResult) -> Table:
    return table_of(
        [(number, item) for number, items in enumerate(found.rounds, 1) for item in items],
        ("target", lambda row: row[1].target),
        ("round", lambda row: str(row[0])),
        ("limit", lambda row: "" if row[1].limit is None else _time(row[1].limit)),
        ("predicted", lambda row: _time(row[1].predicted)),
        ("measured", lambda row: _time(row[1].measured)),
    )


def _time(value: float) -> str:
    return amount(1e9 * value, "latency")


def _sparsity_section(report: Report) -> Section:
    found = report.sparsity
    if found is None:
        return Section("Sparsity")
    shown = table_of(
        found.layers,
        ("layer", lambda item: item.name),
        ("weights", lambda item: f"{item.weights:,}"),
        ("zeros", lambda item: f"{item.zeros:,}"),
        ("sparsity", lambda item: percent(item.share, 2)),
        ("left", lambda item: Bar(item.weights - item.zeros, item.weights)),
    )
    lines = (
        f"Sparsity: {percent(found.share, 2)} of the {amount(found.weights, 'params')} of "
        "convolutions and linear layers are zero "
        f"({amount(found.nonzero_params, 'params')} are not, in all); {MASKS} says which.",
        "Zeros change no shape: sizes, FLOPs and memory are those of the dense network.",
    )
    return Section("Sparsity", (shown,), lines)


def _score_section(report: Report) -> Section:
    name = report.metric or "score"
    shown = table_of(
        report.scores,
        ("network", lambda item: STAGES.get(item.after, item.after)),
        (name, lambda item: score_text(item.score, name, 2)),
    )
    return Section(name.capitalize(), (shown,))


def _repair_section(report: Report) -> Section:
    repairs = [record for record in report.records.values() if isinstance(record, RepairReport)]
    shown = table_of(
        [(record.method, layer) for record in repairs for layer in record.layers],
        ("method", lambda row: row[0]),
        ("layer", lambda row: row[1].layer),
        ("before", lambda row: "" if isinstance(row[1], BiasShift) else f"{row[1].before:.4f}"),
        (
            "after",
            lambda row: (
                f"{row[1].shift:.3g} to {row[1].into}"
                if isinstance(row[1], BiasShift)
                else f"{row[1].after:.4f}"
            ),
        ),
        words=(0, 1),
    )
    remark = (
        "Error of a layer's outputs against the original's, relative, on the calibration images; "
        "of a constant, its size and the tensor it is in."
    )
    return Section("Repair", (shown,), remarks=(remark,))


def _search_section(report: Report) -> Section:
    found = {} if report.search is None else report.search_data()
    shown = table_of(
        [pair for pair in found.items() if isinstance(pair[1], bool | int | float | str)],
        ("", lambda pair: pair[0].replace("_", " ")),
        ("", lambda pair: str(pair[1])),
    )
    return Section("Search", (shown,))


def _penalty_section(report: Report) -> Section:
    found = getattr(report.search, "regulariser", None)
    shown = table_of(
        found.layers if isinstance(found, GrowingReport) else (),
        ("layer", lambda item: item.name),
        ("groups", lambda item: str(item.groups)),
        ("removed", lambda item: str(item.removed)),
        ("last penalty", lambda item: f"{item.penalty:.4g}"),
        (
            "kept over removed magnitude",
            lambda item: "" if item.ratio is None else f"{item.ratio:.4g}",
        ),
        (
            "finished at iteration",
            lambda item: "" if item.finished is None else f"{item.finished:,}",
        ),
    )
    return Section("Growing penalty", (shown,))


def _group_section(report: Report) -> Section:
    rounded = next((item for item in report.records.values() if isinstance(item, Rounding)), None)
    multiples = {} if rounded is None else rounded.multiples
    shown = table_of(
        [group for group in report.groups if group.frozen is None],
        ("group", lambda group: group.name),
        ("width", lambda group: str(group.width)),
        ("kept", lambda group: str(group.kept)),
        *(
            ()
            if rounded is None
            else (("multiple of", lambda group: str(multiples.get(group.name, ""))),)
        ),
        ("", lambda group: Bar(group.kept, group.width)),
    )
    return Section("Channel groups", (shown,))


def _frozen_section(report: Report) -> Section:
    frozen: dict[str, list[GroupResult]] = {}
    for group in report.groups:
        if group.frozen is not None:
            frozen.setdefault(group.frozen, []).append(group)
    channels = {reason: sum(group.width for group in groups) for reason, groups in frozen.items()}
    shown = table_of(
        sorted(frozen, key=lambda reason: -channels[reason]),
        ("reason", lambda reason: reason),
        ("groups", lambda reason: ", ".join(group.name for group in frozen[reason])),
        ("channels", lambda reason: str(channels[reason])),
        words=(0, 1),
    )
    return Section("What stays whole, and why", (shown,))


def _verification_section(report: Report) -> Section:
    proof, single = report.verification, report.verification.max_abs_error_float32
    original = "original with the removed channels unread, float64, random input"
    rows = [
        (original, "", proof.max_abs_error),
        *(() if single is None else (("the same, float32, real input", "", single),)),
        *(
            (f"{item.artefact} loaded back", ", ".join(map(str, item.batches)), item.max_abs_error)
            for item in proof.artefacts
        ),
    ]
    shown = table_of(
        rows,
        ("compared with the pruned network", lambda row: row[0]),
        ("batch sizes", lambda row: row[1]),
        ("largest difference", lambda row: f"{row[2]:.2e}"),
    )
    real = "" if single is None else f", and off by at most {single:.1e} on real input in float32"
    line = (
        "Proved in float64: the original with channels removed, off by at most "
        f"{proof.max_abs_error:.1e} (outputs up to {proof.scale:.3g}){real}."
    )
    return Section("Verification", (shown,), (line,), proof.notes)


def _time_section(report: Report) -> Section:
    shown = table_of(
        report.seconds.items(),
        ("stage", lambda pair: pair[0]),
        ("", lambda pair: seconds(pair[1])),
    )
    return Section("Time", (shown,))


def _file_section(report: Report) -> Section:
    shown = table_of(
        report.artefacts.items(),
        ("file", lambda pair: pair[0]),
        ("SHA-256", lambda pair: f"{pair[1]['sha256'][:16]}..."),
        ("size", lambda pair: amount(pair[1]["bytes"], "bytes")),
        words=(0, 1),
    )
    return Section("Files", (shown,))
