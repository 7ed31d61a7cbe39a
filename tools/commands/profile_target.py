"""``pruneopt profile --target``: where the time goes on a target, op by op against the machine's
ceilings."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from pruneopt.errors import UserError
from pruneopt.files import write_text
from pruneopt.passes.latency.ceilings import Ceilings, measure_ceilings
from pruneopt.passes.latency.probe import op_times
from pruneopt.passes.latency.roofline import OpLine, op_lines, roofline_svg
from pruneopt.passes.targets.target import parse_target
from pruneopt.tools.commands.loading import captured, loaded_model
from pruneopt.tools.report.tables import Table, table_of, table_text
from pruneopt.tools.report.text import amount, percent

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Measure the network and the ceilings, and print the table; the picture where asked for."""
    target = parse_target(options.target)
    target.need()
    graph = captured(loaded_model(options))
    sample = op_times(target, graph, graph.weights)
    if not sample.nodes:
        raise UserError(
            f"{target} does not tell the times of single ops: the whole takes {_ms(sample.seconds)}"
        )
    ceilings = measure_ceilings(target)
    lines = op_lines(graph, sample, ceilings)
    if options.picture is not None:
        write_text(options.picture, roofline_svg(lines, ceilings, f"{graph.name} on {target}"))
    if options.json:
        ops = [asdict(line) for line in lines]
        head = {"target": str(target), "runtime": target.runtime(), "seconds": sample.seconds}
        print(json.dumps({**head, "ceilings": asdict(ceilings), "ops": ops}, indent=2))
        return 0
    print(table_text(_table(lines)))
    print()
    for line in _summary(sample.seconds, lines, ceilings):
        print(line)
    if options.picture is not None:
        print(f"picture: {options.picture}")
    return 0


def _table(lines: list[OpLine]) -> Table:
    return table_of(
        lines,
        ("layer", lambda line: line.layer),
        ("op", lambda line: line.kind),
        ("time", lambda line: _ms(line.seconds)),
        ("share", lambda line: percent(line.share)),
        ("FLOPs", lambda line: amount(line.macs, "flops") if line.macs else ""),
        ("moved", lambda line: amount(line.moved, "bytes")),
        ("GFLOPs/s", _rate),
        ("of ceiling", lambda line: percent(line.efficiency)),
        ("bound", lambda line: line.bound),
        words=(0, 1, 8),
    )


def _rate(line: OpLine) -> str:
    return f"{line.macs / line.seconds / 1e9:.1f}" if line.macs and line.seconds else ""


def _summary(seconds: float, lines: list[OpLine], ceilings: Ceilings) -> list[str]:
    macs, spent = sum(line.macs for line in lines), sum(line.seconds for line in lines)
    copies = ", ".join(
        f"{rate / 1e9:.1f} GB/s with {amount(size, 'bytes')}" for size, rate in ceilings.copies
    )
    return [
        f"the whole takes {_ms(seconds)}; its {len(lines)} ops as the target fuses them take "
        f"{_ms(spent)}",
        f"{macs / spent / 1e9:.1f} GFLOPs/s of {ceilings.macs / 1e9:.1f} in a product of matrices",
        f"a copy moves {copies}",
        "A FLOP is one multiply-accumulate; of ceiling: the least time by the ceiling that binds, "
        "over the time.",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"
