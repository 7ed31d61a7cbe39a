"""Sums over an epoch, and telling people about them: the progress line, and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruneopt.passes.training.hooks import TrainingRun
from pruneopt.passes.training.log import EpochLog
from pruneopt.passes.training.parallel import Processes
from pruneopt.passes.training.recipe import Recipe
from pruneopt.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Reporter", "Sums"]


@dataclass(slots=True)
class Sums:
    """Loss and metric summed over the samples of an epoch so far (`[2]`, on the device), their
    number, the seconds."""

    values: Tensor
    count: int = 0
    seconds: float = 0.0

    @classmethod
    def none(cls, device: torch.device) -> Sums:
        """Return the sums of no samples."""
        return cls(torch.zeros(2, device=device))

    def add(self, values: Tensor, count: int) -> None:
        """Add a batch."""
        self.values = self.values + values
        self.count += count

    def total(self, processes: Processes, *, flag: bool = False) -> tuple[Sums, bool]:
        """Return the sums over all processes, and whether the flag is set in process 0."""
        if processes.world == 1:
            return self, flag
        extra = torch.tensor(
            [float(self.count), float(flag and processes.rank == 0)], dtype=torch.float64
        )
        summed = processes.total(torch.cat([self.values.double(), extra.to(self.values.device)]))
        return Sums(summed[:2], round(float(summed[2])), self.seconds), bool(summed[3])

    def finite(self) -> bool:
        """Return whether no loss was infinite or NaN; this waits for the device."""
        return bool(torch.isfinite(self.values[0]))

    def means(self) -> tuple[float, float]:
        """Return the mean loss and metric of a sample."""
        loss, metric = (self.values / self.count).tolist()
        return loss, metric

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"values": self.values.cpu(), "count": self.count, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.values = state["values"].to(self.values.device)
        self.count, self.seconds = state["count"], state["seconds"]


class Reporter:
    """Reports a run to ``progress`` and, where the recipe says so, to TensorBoard; process 0 alone
    does."""

    def __init__(
        self, recipe: Recipe, steps: int, processes: Processes, progress: Progress, name: str
    ) -> None:
        self._recipe, self._steps, self._progress, self._name = recipe, steps, progress, name
        self._silent = processes.rank > 0
        self._board: SummaryWriter | None = None
        self._began, self._first = time.perf_counter(), 0

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    def begin(self, run: TrainingRun) -> None:
        """Measure time from here on."""
        self._began, self._first = time.perf_counter(), run.iteration
        if self._recipe.tensorboard and not self._silent and run.iteration < run.steps:
            from torch.utils.tensorboard import SummaryWriter

            # Steps that an interrupted run logged after its last checkpoint are made once more.
            self._board = SummaryWriter(self._recipe.tensorboard, purge_step=run.iteration)

    def step(self, run: TrainingRun, sums: Sums, rate: float) -> None:
        """Tell how far an epoch is."""
        if self._silent:
            return
        loss, metric = sums.means()
        speed = sums.count / sums.seconds
        self._tell(run, loss, metric, rate, speed)
        if self._board is not None:
            for key, value in (("loss", loss), ("lr", rate), ("samples_per_second", speed)):
                self._board.add_scalar(f"{self._name}/{key}", value, run.iteration)

    def epoch(self, log: EpochLog, run: TrainingRun) -> None:
        """Tell how an epoch went."""
        if self._silent:
            return
        self._tell(run, log.loss, log.metric, log.lr, log.throughput)
        if self._board is not None:
            for key in ("loss", "metric", "lr", "throughput"):
                self._board.add_scalar(f"{self._name}/epoch/{key}", getattr(log, key), log.epoch)

    def _tell(
        self, run: TrainingRun, loss: float, metric: float, rate: float, speed: float
    ) -> None:
        done = run.iteration - self._first
        left = (time.perf_counter() - self._began) / max(done, 1) * (run.steps - run.iteration)
        text = (
            f"epoch {run.epoch}/{self._recipe.epochs}, loss {loss:.4g}, metric {metric:.4g}, lr "
            f"{rate:.3g}, "
            f"{speed:.0f} samples/s, {_duration(left)} left"
        )
        self._progress(text, run.iteration, run.steps)


def _duration(seconds: float) -> str:
    """Return seconds as text: ``42 s``, ``7 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
