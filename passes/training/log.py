"""The records of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["EpochLog", "TrainingLog"]


@dataclass(frozen=True, slots=True)
class EpochLog:
    """One epoch: its number from 1, mean training loss and metric, last learning rate, seconds,
    samples seen."""

    epoch: int
    loss: float
    metric: float
    lr: float
    seconds: float
    samples: int

    @property
    def throughput(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds if self.seconds else float("inf")


@dataclass(slots=True)
class TrainingLog:
    """The course of a training run; epochs of one that was interrupted and resumed count as one
    run's."""

    epochs: list[EpochLog] = field(default_factory=list)
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """Return the log as plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.epochs[:] = [EpochLog(**epoch) for epoch in state["epochs"]]
        self.steps = state["steps"]
        self.notes[:] = state["notes"]
