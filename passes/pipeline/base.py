"""The base class of passes.

A pass is a frozen dataclass whose fields are its options; it changes a `State` and says honestly
whether the graph changed. The work itself is a plain function that other passes may call; the pass
is the thin class around it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from pruneopt.passes.options.configured import Configured
from pruneopt.passes.pipeline.state import State

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass(Configured):
    """One step of a pipeline: a frozen dataclass whose fields are its options (`option`).

    The law: a valid graph in, a valid graph out, anything between. `run` returns whether the text
    of the graph or any of its weights changed; the pass manager checks the answer.
    """

    @property
    def label(self) -> str:
        """The name in reports and records; a pass that does several things tells them apart."""
        return self.name

    @property
    def needs_data(self) -> str | None:
        """The part that needs data (``abn``, ``prune with criterion=taylor``); None without."""
        return None

    def requires(self, state: State) -> str | None:
        """Return what must happen before this pass ("run couple first"); None if nothing."""
        return None

    @abstractmethod
    def run(self, state: State) -> bool:
        """Do the work; returns whether `state.graph` changed (its text or its weights)."""
