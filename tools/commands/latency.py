"""``pruneopt latency``: measure sub-networks into a database, merge databases, and show what one
holds."""

from __future__ import annotations

import argparse

import numpy as np

from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.latency.database import Database, merge
from pruneopt.passes.latency.deliver import check_targets
from pruneopt.passes.latency.learn import learn
from pruneopt.passes.targets.target import parse_target
from pruneopt.tools.commands.loading import captured, loaded_model
from pruneopt.tools.report.progress import progress_bar
from pruneopt.tools.report.tables import table_of, table_text
from pruneopt.tools.report.text import amount, percent

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Do what the action says."""
    actions = {"measure": _measure, "merge": _merge, "show": _show}
    actions[options.action](options)
    return 0


def _measure(options: argparse.Namespace) -> None:
    targets = [parse_target(text) for text in options.targets]
    check_targets([str(target) for target in targets])
    graph = captured(loaded_model(options))
    cost = CostModel(graph, freeze_named(couple(graph), options.ignore), options.flops_convention)
    with Database(options.db) as database:
        for target in targets:
            with progress_bar(True) as progress:
                predictor = learn(
                    cost,
                    target,
                    database,
                    minutes=options.minutes,
                    seed=options.seed,
                    progress=progress,
                )
            whole, unsure = (
                predictor.seconds(cost.full[None])[0],
                predictor.uncertainty(cost.full[None])[0],
            )
            ops = sum(len(sample.nodes) for sample in predictor.measured.samples)
            known = predictor.measured
            share = np.abs(predictor.seconds(known.widths) / known.seconds() - 1).mean()
            print(
                f"{options.db}: {len(known.samples)} networks with {ops} ops on {target} "
                f"({target.runtime()})"
            )
            print(
                f"the original is predicted at {amount(1e9 * whole, 'latency')}, +- "
                f"{percent(unsure / whole)}; "
                f"measured networks lie {percent(share)} from their predictions on average"
            )


def _merge(options: argparse.Namespace) -> None:
    merge(options.files, options.out)
    print(f"{options.out}: {len(options.files)} databases in one")


def _show(options: argparse.Namespace) -> None:
    with Database(options.file, must_exist=True) as database:
        found = database.summary()
    if not found:
        print(f"{options.file} holds no measurements")
        return
    shown = table_of(
        found,
        ("target", lambda row: row.target),
        ("network", lambda row: row.network),
        ("networks", lambda row: str(row.networks)),
        ("ops", lambda row: str(row.ops)),
        ("fastest", lambda row: amount(1e9 * row.fastest, "latency")),
        ("slowest", lambda row: amount(1e9 * row.slowest, "latency")),
        ("measured with", lambda row: row.machine),
        words=(0, 1, 6),
    )
    print(table_text(shown))
