"""The meaning of ``round-to`` in a run, and the record of which multiple every group got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.alignment import TARGETS, Alignment, RoundTo, alignment_of
from pruneopt.passes.selection.ladders import channels_per_unit

__all__ = ["ROUND", "RoundTo", "Rounding", "record_rounding", "rounding"]

ROUND = (
    "kept channel counts are multiples of this, where the width allows; auto: of what the "
    "device likes"
)
RECORD = "round-to"


@dataclass(frozen=True)
class Rounding:
    """The target of ``round-to=auto``, why it likes its multiples, and which the cut groups got."""

    target: str
    reason: str
    multiples: Mapping[str, int]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader must know."""
        counts = sorted(Counter(self.multiples.values()).items(), reverse=True)
        shown = ", ".join(f"multiples of {multiple} in {count}" for multiple, count in counts)
        return (f"widths suit {self.target} ({self.reason}): {shown or 'nothing cut'}",)


def rounding(state: State, round_to: RoundTo) -> int | Alignment:
    """Return what ``round-to`` means for a run's network and device; ``auto`` is recorded."""
    found = alignment_of(round_to, state.graph, state.device)
    state.records.pop(RECORD, None)
    if isinstance(found, Alignment):
        state.records[RECORD] = Rounding(found.target, found.reason, {})
    return found


def record_rounding(state: State) -> None:
    """Fill the record of `rounding`, if there is one, with what the plan made of it."""
    record = state.records.get(RECORD)
    if not isinstance(record, Rounding) or state.plan is None:
        return
    coupling, alignment = state.need_coupling(), TARGETS[record.target]
    owned = channels_per_unit(coupling)
    widths = {name: (len(kept), coupling.group(name).width) for name, kept in state.plan.items()}
    multiples = {
        name: alignment.reached(kept * owned[name])
        for name, (kept, full) in widths.items()
        if kept < full
    }
    state.records[RECORD] = Rounding(record.target, record.reason, multiples)
