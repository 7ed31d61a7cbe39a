"""``pruneopt bench``: the original and the pruned network of a bundle side by side on targets, in
pairs of runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pruneopt.files import write_json
from pruneopt.models.source import load_model
from pruneopt.passes.targets.fallback import or_processor
from pruneopt.passes.targets.session import fixed_inputs
from pruneopt.passes.targets.target import Target, parse_target
from pruneopt.passes.timing.timing import Measurement, Speedup, take_rounds
from pruneopt.tools.bundle.bundle_networks import Network, original_of, pruned_of, report_of
from pruneopt.tools.commands.loading import captured
from pruneopt.tools.report.report import versions
from pruneopt.tools.report.text import table

__all__ = ["Comparison", "bench_data", "bench_lines", "compared", "run"]


@dataclass(frozen=True)
class Comparison:
    """Both networks as measured on one target, and how many times as fast the pruned one is."""

    target: Target
    original: Measurement
    pruned: Measurement
    speedup: Speedup


def run(options: argparse.Namespace) -> int:
    """Measure on every target, and print the table or JSON."""
    targets = list(dict.fromkeys(_offered(text) for text in options.target or ["ort-cpu"]))
    pruned, report = pruned_of(options.bundle), report_of(options.bundle)
    original, notes = _original(options)
    if any(getattr(target, "dtype", None) == "int8" for target in targets):
        notes.append("int8: the ranges come from random inputs, which times do not depend on")
    found = [compared(target, original, pruned, options.seconds) for target in targets]
    data = bench_data(found, report, notes)
    if options.out is not None:
        write_json(options.out, data)
    if options.json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        print("\n".join(bench_lines(found, report, notes)))
    return 0


def compared(
    target: Target, original: Network, pruned: Network, seconds: float = 5.0
) -> Comparison:
    """Measure both networks on a target, in turns.

    Args:
        seconds: about how long, beside loading and warming up.

    Raises:
        UserError: this machine does not offer the target, or one of the networks does not run on
            it.
    """
    sessions = []
    try:
        for network in (original, pruned):
            calibration = [tuple(fixed_inputs(network.graph, target.batch))]
            sessions.append(target.load(network.graph, network.weights, calibration=calibration))
        steps: list[Callable[[], None]] = [session.step for session in sessions]
        rounds = take_rounds(steps, clock=sessions[0].clock(), seconds=seconds)
    finally:
        for session in sessions:
            session.close()
    return Comparison(target, rounds.measurement(0), rounds.measurement(1), rounds.speedup(0, 1))


def bench_data(
    found: Sequence[Comparison], report: dict[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """Return the comparisons as JSON: times in seconds, with the ends of their 95 % intervals."""
    return {
        "model": report.get("model"),
        "flops_ratio": _flops_ratio(report),
        "notes": list(notes),
        "versions": versions(),
        "targets": [
            {
                "target": str(item.target),
                "runtime": item.target.runtime(),
                "original": dataclasses.asdict(item.original),
                "pruned": dataclasses.asdict(item.pruned),
                "speedup": dataclasses.asdict(item.speedup),
            }
            for item in found
        ],
    }


def bench_lines(
    found: Sequence[Comparison], report: dict[str, Any], notes: Sequence[str]
) -> list[str]:
    """Return the comparisons as a table, and what has to be said about them."""
    ratio = _flops_ratio(report)
    fewer = "" if ratio is None else f"{ratio:.2f}x"
    head = ("target", "original ms", "pruned ms", "speed-up", "fewer FLOPs")
    rows = [
        (str(x.target), _ms(x.original), _ms(x.pruned), _times(x.speedup), fewer) for x in found
    ]
    lines = [
        table([head, *rows]),
        "medians with their 95 % intervals; the speed-up is that of pairs of runs",
    ]
    lines += [f"{item.target}: {item.speedup.noisy}" for item in found if item.speedup.noisy]
    return [*lines, *notes]


def _original(options: argparse.Namespace) -> tuple[Network, list[str]]:
    """Return the original network, and what is to be said about it."""
    if options.original is None:
        note = (
            "the original runs with random weights: the bundle holds its graph only (times do "
            "not depend on weights)"
        )
        return original_of(options.bundle), [note]
    graph = captured(
        load_model(
            options.original,
            weights=options.weights,
            input_shape=options.input,
            trusted=options.trust,
        )
    )
    return Network(graph, graph.weights), []


def _offered(text: str) -> Target:
    """Return the target of a text, or what takes its place here; `UserError` where nothing does."""
    target, note = or_processor(parse_target(text))
    if note is not None:
        print(f"pruneopt: {note}", file=sys.stderr)
    target.need()
    return target


def _flops_ratio(report: dict[str, Any]) -> float | None:
    """Return how many times as many FLOPs the original needs."""
    full, kept = (report.get(which, {}).get("flops") for which in ("original", "pruned"))
    return full / kept if full and kept else None


def _ms(found: Measurement) -> str:
    return f"{1e3 * found.seconds:.3g} ({1e3 * found.low:.3g} to {1e3 * found.high:.3g})"


def _times(found: Speedup) -> str:
    return f"{found.ratio:.2f}x ({found.low:.2f} to {found.high:.2f})"
