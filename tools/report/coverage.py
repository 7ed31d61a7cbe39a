"""The reach of pruning in a network: what inspect ends with, and what compile warns about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import NAME_WIDTH
from pruneopt.tools.report.text import amount, percent

__all__ = [
    "LITTLE",
    "Coverage",
    "coverage_data",
    "coverage_lines",
    "coverage_of",
    "coverage_warning",
    "unknown_ops",
]

LITTLE = 0.10
"""A network of whose FLOPs less than this can be removed is worth a warning."""


@dataclass(frozen=True, slots=True)
class Reach:
    """One cost unit: the original's value and the smallest that the constraints allow."""

    unit: str
    full: int
    smallest: int

    @property
    def removable(self) -> float:
        """The share that can be removed."""
        return 1 - self.smallest / self.full if self.full else 0.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """Channels that can be removed of how many; every cost unit's reach; frozen channels by
    reason."""

    removable: int
    channels: int
    free_groups: int
    groups: int
    reach: tuple[Reach, ...]
    frozen: tuple[tuple[str, int, int], ...]
    """Reason, groups, channels; the most channels first."""

    def of(self, unit: str) -> Reach:
        return next(item for item in self.reach if item.unit == unit)


def coverage_of(coupling: Coupling, cost: CostModel) -> Coverage:
    """Measure a coupled network."""
    groups: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    for group in coupling.groups:
        if group.frozen is not None:
            groups[group.frozen] += 1
            channels[group.frozen] += group.width
    return Coverage(
        removable=int((cost.full - cost.minimum).sum()),
        channels=sum(group.width for group in coupling.groups),
        free_groups=len(coupling.free),
        groups=len(coupling.groups),
        reach=tuple(
            Reach(unit, int(cost.measure(unit, cost.full)), int(cost.measure(unit, cost.minimum)))
            for unit in cost.units
        ),
        frozen=tuple((reason, groups[reason], count) for reason, count in channels.most_common()),
    )


def unknown_ops(coupling: Coupling) -> list[tuple[str, int, str, str]]:
    """Return ops without a rule: name, how often, where first, why that matters; the most frequent
    first."""
    count = Counter(item.op.target.removesuffix(".default") for item in coupling.unknown)
    first = {item.op.target.removesuffix(".default"): item for item in reversed(coupling.unknown)}
    return [
        (name, number, str(first[name].op.loc), first[name].why)
        for name, number in count.most_common()
    ]


def coverage_lines(found: Coverage) -> Iterator[str]:
    """Yield the frozen channels by reason, the smallest reachable costs, and the coverage line."""
    if found.frozen:
        yield "frozen:"
        for reason, groups, channels in found.frozen:
            yield f"  {channels} channels in {_counted(groups, 'group')}: {reason}"
    yield "smallest reachable:"
    for item in found.reach:
        kept = percent(1 - item.removable)
        yield (
            f"  {item.unit:{NAME_WIDTH}} {amount(item.smallest, item.unit)} ({kept} of "
            f"{amount(item.full, item.unit)})"
        )
    share = found.removable / found.channels if found.channels else 0.0
    yield (
        f"coverage: {percent(share)} of the channels, {percent(found.of('params').removable)} of "
        "the parameters and "
        f"{percent(found.of('flops').removable)} of the FLOPs can be removed "
        f"({found.free_groups} of {_counted(found.groups, 'group')} free)"
    )


def coverage_warning(found: Coverage) -> str | None:
    """A sentence about a network that has almost nothing to prune; None otherwise."""
    removable = found.of("flops").removable
    if removable >= LITTLE:
        return None
    why = f", mostly because: {found.frozen[0][0]}" if found.frozen else ""
    return f"only {percent(removable)} of the FLOPs of this network can be removed{why}"


def coverage_data(found: Coverage) -> dict[str, Any]:
    """Return the same as data."""
    return {
        "channels": found.channels,
        "removable_channels": found.removable,
        "groups": found.groups,
        "free_groups": found.free_groups,
        "units": {
            item.unit: {
                "original": item.full,
                "smallest": item.smallest,
                "removable": item.removable,
            }
            for item in found.reach
        },
        "frozen": [
            {"reason": reason, "groups": groups, "channels": count}
            for reason, groups, count in found.frozen
        ],
    }


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
