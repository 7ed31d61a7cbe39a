"""``pruneopt profile``: where the time goes on a target (`profile_target`), or the additive table
of layers, which is measured here: how long each layer takes, alone, at a grid of widths.
"""

from __future__ import annotations

import argparse

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_measure import measure_table
from pruneopt.passes.analysis.cost.latency_table import timed_layers
from pruneopt.passes.analysis.couple import couple
from pruneopt.tools.commands import profile_target
from pruneopt.tools.commands.loading import captured, check_device, loaded_model
from pruneopt.tools.report.progress import progress_bar
from pruneopt.tools.report.text import amount, percent

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print the profile on a target, or write the table and say what it covers and how long the
    original takes by it."""
    if options.target is not None:
        return profile_target.run(options)
    if options.picture is not None or options.json:
        raise UserError(
            "--picture and --json show the profile on a target: give --target, such as --target "
            "ort-cpu"
        )
    check_device(options.device)
    graph = captured(loaded_model(options))
    coupling = freeze_named(couple(graph), options.ignore)
    cost = CostModel(graph, coupling, options.flops_convention)
    with progress_bar(True) as progress:
        table = measure_table(
            cost,
            points=options.points,
            batch=options.batch,
            repeats=options.repeats,
            device=options.device,
            threads=options.threads,
            progress=progress,
        )
    timed = CostModel(graph, coupling, options.flops_convention, table)
    table.save(options.out)
    layers = {layer.op for layer in timed_layers(graph)}
    covered = sum(row.flops for row in cost.describe() if row.op in layers)
    total = max(1, int(cost.measure("flops", cost.full)))
    print(f"{options.out}: {len(table.layers)} layers with {percent(covered / total)} of the FLOPs")
    print(f"measured on {table.device}, {table.threads} threads, batch {table.batch}")
    slowest, fastest = (
        amount(int(timed.measure("latency", row)), "latency") for row in (timed.full, timed.minimum)
    )
    print(f"the layers of the original take {slowest}, those of the narrowest network {fastest}")
    return 0
