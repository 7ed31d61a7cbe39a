"""The channel groups of a network as a table: what can be named, what it may become, and what it is
worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pruneopt.passes.analysis.channels.groups import Coupling, Group, Plan
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.tools.report.tables import table_of, table_text
from pruneopt.tools.report.text import percent

__all__ = ["GroupTable"]

Column = tuple[str, Callable[[dict[str, Any]], str]]
LEGEND = (
    "step: widths are multiples of it. FLOPs: what is saved when this group alone is as narrow as "
    "can be.",
    "--ignore, --width, --max-ratio and --tie take groups, modules and parameters, or patterns "
    "(layer4.*).",
)
SHOWN = 3
"""The number of modules of a group that the table names."""


@dataclass(frozen=True)
class GroupTable:
    """The groups of a network, and what a plan keeps of them, if there is one."""

    coupling: Coupling
    cost: CostModel
    plan: Plan | None = None

    def kept(self, group: Group) -> int:
        """Count the units that the plan keeps of a group."""
        return (
            len(self.plan[group.name])
            if self.plan is not None and group.name in self.plan
            else group.width
        )

    @cached_property
    def shares(self) -> dict[str, float]:
        """Of every free group, the share of the FLOPs that is gone when it alone is as narrow as it
        can be."""
        cost = self.cost
        total = float(cost.measure("flops", cost.full)) if cost.groups else 0.0
        alone = np.where(np.eye(len(cost.groups), dtype=bool), cost.minimum, cost.full)
        left = cost.measure("flops", alone) if cost.groups else np.zeros(0)
        return {
            name: 1 - float(flops) / total if total else 0.0
            for name, flops in zip(cost.groups, left, strict=True)
        }

    def modules(self, group: Group) -> list[str]:
        """Return the modules (or parameters that are in none) that hold the group's channels: first
        those that make them."""
        made = [op.loc.module for op in self.coupling.producers(group)]
        names = (member.weight.name for member in self.coupling.members(group))
        return [
            name
            for name in dict.fromkeys([*made, *(n.rpartition(".")[0] or n for n in names)])
            if name
        ]

    def data(self) -> Iterator[dict[str, Any]]:
        """Yield the groups as plain values."""
        for group in self.coupling.groups:
            yield {
                "name": group.name,
                "width": group.width,
                "kept": self.kept(group),
                "blocks": group.step,
                "frozen": group.frozen,
                "location": str(group.location),
                "modules": self.modules(group),
                "flops_share": self.shares.get(group.name),
            }

    def text(self) -> str:
        """Return the table."""
        kept: list[Column] = [] if self.plan is None else [("kept", lambda item: str(item["kept"]))]
        shown = table_of(
            self.data(),
            ("group", lambda item: str(item["name"])),
            ("width", lambda item: str(item["width"])),
            *kept,
            ("step", lambda item: str(item["blocks"])),
            ("FLOPs", lambda item: _share(item["flops_share"])),
            ("in", lambda item: _first(item["modules"])),
            ("frozen", lambda item: item["frozen"] or ""),
            words=(0, len(kept) + 4, len(kept) + 5),
        )
        return "\n".join([table_text(shown), "", *LEGEND])


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _first(modules: list[str]) -> str:
    others = f" and {len(modules) - SHOWN} others" if len(modules) > SHOWN else ""
    return ", ".join(modules[:SHOWN]) + others
