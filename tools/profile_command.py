"""``pruneopt profile``: measure how long each layer takes at a grid of widths, and write the latency table."""

from __future__ import annotations

import argparse

from pruneopt.passes.analysis.cost import CostModel
from pruneopt.passes.analysis.coupling import couple
from pruneopt.passes.analysis.latency_measure import measure_table
from pruneopt.passes.analysis.latency_table import timed_layers
from pruneopt.passes.analysis.naming import freeze_named
from pruneopt.tools.loading import captured, check_device, loaded_model
from pruneopt.tools.progress import progress_bar
from pruneopt.tools.text import amount, percent

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Measure and write the table; says what it covers and how long the original takes by it."""
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
    slowest, fastest = (amount(int(timed.measure("latency", row)), "latency") for row in (timed.full, timed.minimum))
    print(f"the layers of the original take {slowest}, those of the narrowest network {fastest}")
    return 0
