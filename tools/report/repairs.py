"""What repairs did, for the reports: what they added to the network's cost, what they left, and
layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pruneopt.passes.repair.repair import RepairReport

__all__ = ["repair_notes", "repair_rows", "with_repairs"]


def with_repairs(costs: Mapping[str, int], records: Mapping[str, object]) -> dict[str, int]:
    """What the delivered network costs: that of its plan, and of the biases that repairs have
    made."""
    total = dict(costs)
    for report in _reports(records):
        for unit, value in report.added.items():
            total[unit] += value
    return total


def repair_notes(records: Mapping[str, object]) -> Iterator[str]:
    """A line for every layer that a repair had to leave as it was, and for a repair that had
    nothing to do."""
    for report in _reports(records):
        for item in report.left:
            yield f"repair by {report.method} left {item.layer} as it was: {item.why}"
        if report.norm_batches == 0:
            yield (
                "repair by bn had nothing to do: the network has no batch norm with running "
                "statistics"
            )


def repair_rows(records: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Method, layer and what was done to it, by the records of a report as data."""
    for record in records.values():
        if not isinstance(record, Mapping) or not {"method", "layers", "left"} <= record.keys():
            continue
        for item in record["layers"]:
            if "into" in item:
                yield record["method"], item["layer"], "", f"{item['shift']:.3g} to {item['into']}"
            else:
                yield (
                    record["method"],
                    item["layer"],
                    f"{item['before']:.4f}",
                    f"{item['after']:.4f}",
                )


def _reports(records: Mapping[str, object]) -> Iterator[RepairReport]:
    return (record for record in records.values() if isinstance(record, RepairReport))
