"""What searches, trainings, rounding and dropped blocks have to tell the user, taken from their
records."""

from __future__ import annotations

from collections.abc import Mapping

from pruneopt.passes.depth.drop_blocks import DroppedBlocks
from pruneopt.passes.regularised.slimming import SlimmingRecord
from pruneopt.passes.search.outcome import Outcome
from pruneopt.passes.search.pruning_net.training import PruningNetReport
from pruneopt.passes.selection.rounding import Rounding
from pruneopt.passes.training.log import TrainingLog

__all__ = ["pass_notes"]

KINDS = (Outcome, PruningNetReport, SlimmingRecord, TrainingLog, Rounding, DroppedBlocks)


def pass_notes(records: Mapping[str, object]) -> list[str]:
    """The notes of all of them, in the order of the passes."""
    said = (record for record in records.values() if isinstance(record, KINDS))
    return [note for record in said for note in record.notes]
