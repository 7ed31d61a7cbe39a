"""Notes for the user from the records of passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pruneopt.passes.depth.drop_blocks import DroppedBlocks
from pruneopt.passes.regularised.slimming import SlimmingRecord
from pruneopt.passes.repair.repair import RepairReport
from pruneopt.passes.search.outcome import Outcome
from pruneopt.passes.search.pruning_net.training import PruningNetReport
from pruneopt.passes.selection.rounding import Rounding
from pruneopt.passes.selection.semi_structured import TwoOfFour
from pruneopt.passes.training.log import TrainingLog

__all__ = ["notes_of"]

WITH_NOTES = (Outcome, PruningNetReport, SlimmingRecord, TrainingLog, Rounding, DroppedBlocks)


def notes_of(records: Mapping[str, object]) -> list[str]:
    """Return the notes of all passes in their order, then those of repairs and of 2:4 sparsity."""
    found = records.values()
    return [
        *(note for item in found if isinstance(item, WITH_NOTES) for note in item.notes),
        *(note for item in found if isinstance(item, RepairReport) for note in _repair_notes(item)),
        *(note for item in found if isinstance(item, TwoOfFour) for note in _mask_notes(item)),
    ]


def _repair_notes(report: RepairReport) -> Iterator[str]:
    for item in report.left:
        yield f"repair by {report.method} left {item.layer} as it was: {item.why}"
    if report.norm_batches == 0:
        yield (
            "repair by bn had nothing to do: the network has no batch norm with running statistics"
        )


def _mask_notes(record: TwoOfFour) -> Iterator[str]:
    yield from (f"2:4 sparsity left {left}" for left in record.left)
    yield (
        "2:4 sparsity is delivered as masks; on an NVIDIA GPU of compute capability 8.0 or newer "
        "pruneopt.passes.selection.semi_structured.to_semi_structured(module) makes linear layers "
        "use it"
    )
