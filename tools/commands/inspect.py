"""``pruneopt inspect``: the graph with its channel groups as text, and how far it can be pruned."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

from pruneopt.errors import UserError
from pruneopt.files import write_json
from pruneopt.ir.graph import Graph
from pruneopt.ir.text.json_form import graph_to_dict
from pruneopt.ir.text.printer import print_graph
from pruneopt.passes.analysis.channels.annotate import annotate, write_plan
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.budget import (
    BudgetUse,
    budget_uses,
    check_reachable,
    parse_budget,
)
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import NAME_WIDTH, UNITS
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.pns.result import write_result
from pruneopt.passes.pns.schema import write_schema
from pruneopt.passes.transform.given_plan import read_plan
from pruneopt.tools.commands.loading import captured, loaded_model
from pruneopt.tools.report.coverage import (
    Coverage,
    coverage_data,
    coverage_lines,
    coverage_of,
    coverage_warning,
    unknown_ops,
)
from pruneopt.tools.report.group_table import GroupTable
from pruneopt.tools.report.lowered_text import Lowered, lowered_data, lowered_lines
from pruneopt.tools.report.text import FLOP_NOTE, change, times

__all__ = ["run"]


@dataclass(frozen=True)
class _Found:
    """The findings about a network. ``plan`` is the user's, or empty."""

    name: str
    graph: Graph
    coupling: Coupling
    cost: CostModel
    plan: Plan | None
    uses: tuple[BudgetUse, ...]
    coverage: Coverage
    lowered: Lowered | None = None

    @property
    def groups(self) -> GroupTable:
        """The channel groups as a table."""
        return GroupTable(self.coupling, self.cost, self.plan)


def run(options: argparse.Namespace) -> int:
    """Print what is known about a network; `BudgetError` for a budget that it cannot reach."""
    budgets = [parse_budget(text) for text in options.budgets]
    if options.pns_result is not None and options.plan is None:
        raise UserError("--pns-result writes what a plan keeps: give it with --plan")
    # What a model file prints must not end up in the JSON.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        loaded = loaded_model(options)
        coupling = freeze_named(couple(captured(loaded)), options.ignore)
    plan = None if options.plan is None else read_plan(options.plan, coupling)[0]
    if options.pns_schema is not None:
        write_json(options.pns_schema, write_schema(coupling))
    if options.pns_result is not None:
        write_json(options.pns_result, write_result(coupling, plan or {}))
    cost = CostModel(coupling.graph, coupling, options.flops_convention)
    graph = annotate(coupling)
    write_plan(graph, plan or {})
    uses = budget_uses(budgets, cost, plan or {})
    lowered = Lowered.of(coupling.graph) if options.lowered else None
    found = _Found(
        loaded.name, graph, coupling, cost, plan, uses, coverage_of(coupling, cost), lowered
    )
    if options.json:
        print(json.dumps(_data(found), indent=2, ensure_ascii=False))
    else:
        print("\n".join(_lines(found, groups_only=options.groups)))
    warning = coverage_warning(found.coverage)
    if warning is not None:
        print(f"pruneopt: warning: {warning}", file=sys.stderr)
    sys.stdout.flush()
    check_reachable(budgets, cost)
    return 0


def _lines(found: _Found, *, groups_only: bool) -> Iterator[str]:
    if found.lowered is not None:
        yield from lowered_lines(found.lowered)
    else:
        yield found.groups.text() if groups_only else print_graph(found.graph).rstrip("\n")
    yield ""
    for note in found.graph.notes:
        yield f"note: {note}"
    for name, count, place, why in unknown_ops(found.coupling):
        yield f"no rule: {name}, {times(count)}, first at {place}: {why}"
    yield from _by_construction(found.coupling)
    if found.plan is not None:
        yield "the plan costs:"
        yield from _costs(found)
    for use in found.uses:
        state = (
            "met" if use.value <= use.limit else f"not met: {change(use.value, use.full, use.unit)}"
        )
        yield (
            f"budget {use.text}: {state}"
            if found.plan is not None
            else f"budget {use.text}: {_reach(found, use)}"
        )
    yield from coverage_lines(found.coverage)
    yield (
        FLOP_NOTE
        if found.cost.convention.name == "macs"
        else f"FLOPs: {found.cost.convention.summary}"
    )


def _by_construction(coupling: Coupling) -> Iterator[str]:
    """Yield the ops that run a statistic over channels, the same op over the same channels in one
    line."""
    count = Counter(
        (note.op.target.removesuffix(".default"), note.groups) for note in coupling.notes
    )
    first = {
        (note.op.target.removesuffix(".default"), note.groups): note.op.loc
        for note in reversed(coupling.notes)
    }
    for (name, groups), number in count.items():
        yield (
            f"by construction: {name}, {times(number)}, first at {first[name, groups]}: runs over "
            "channels of "
            f"{', '.join(groups)}, so removing some changes its result for the others"
        )


def _reach(found: _Found, use: BudgetUse) -> str:
    smallest = found.coverage.of(use.unit).smallest
    return (
        f"{'reachable' if smallest <= use.limit else 'not reachable'}, "
        f"{change(use.limit, use.full, use.unit)}"
    )


def _costs(found: _Found) -> Iterator[str]:
    widths = found.cost.widths(found.plan or {})
    for unit in UNITS:
        value, full = (float(found.cost.measure(unit, row)) for row in (widths, found.cost.full))
        yield f"  {unit:{NAME_WIDTH}} {change(value, full, unit)}"


def _data(found: _Found) -> dict[str, Any]:
    coupling = found.coupling
    data: dict[str, Any] = {
        "model": found.name,
        "graph": graph_to_dict(found.graph),
        "groups": list(found.groups.data()),
        "notes": list(found.graph.notes),
        "exported_because": found.graph.exported_because,
        "unknown_ops": [
            {"op": name, "count": count, "first": place, "why": why}
            for name, count, place, why in unknown_ops(coupling)
        ],
        "by_construction": [
            {"op": note.op.target, "location": str(note.op.loc), "groups": list(note.groups)}
            for note in coupling.notes
        ],
        "flops_convention": found.cost.convention.name,
        "coverage": coverage_data(found.coverage),
    }
    if found.lowered is not None:
        data["lowered"] = lowered_data(found.lowered)
    if found.plan is not None:
        widths = found.cost.widths(found.plan)
        data["plan"] = {unit: int(found.cost.measure(unit, widths)) for unit in UNITS}
    if found.uses:
        data["budgets"] = [
            {
                "text": use.text,
                "unit": use.unit,
                "limit": use.limit,
                "reachable": found.coverage.of(use.unit).smallest <= use.limit,
            }
            for use in found.uses
        ]
    return data
