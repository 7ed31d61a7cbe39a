"""Watching a pipeline: objects with ``before_pass`` and ``after_pass`` that no pass knows of."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pruneopt.errors import UserError
from pruneopt.files import write_text
from pruneopt.ir.text.printer import print_graph

if TYPE_CHECKING:
    from pruneopt.passes.pipeline.base import Pass
    from pruneopt.passes.pipeline.state import State

__all__ = ["DumpDir", "Instrument", "PrintAfter", "Timing"]


class Instrument:
    """An observer of every pass; ``index`` counts from 1, and both methods do nothing here."""

    def before_pass(self, index: int, step: Pass, state: State) -> None:
        """Called when the pass is about to run."""

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        """Called when the pass ran without error."""


class Timing(Instrument):
    """Writes seconds by pass to `State.timings`; a repeated one gets a number (``finetune.2``)."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = 0.0

    def before_pass(self, index: int, step: Pass, state: State) -> None:
        self._started = self._clock()

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        key, number = step.label, 1
        while key in state.timings:
            number += 1
            key = f"{step.label}.{number}"
        state.timings[key] = self._clock() - self._started


class PrintAfter(Instrument):
    """Gives the graph's text to ``write`` after the named passes, or after all of them."""

    def __init__(
        self, names: Collection[str] | None = None, write: Callable[[str], object] = print
    ) -> None:
        self._names = names
        self._write = write

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        if self._names is None or step.name in self._names:
            self._write(f"// after {index} {step.name}\n{print_graph(state.graph)}")


class DumpDir(Instrument):
    """Leaves the graph's text in numbered files of a folder: ``000_input.pir``, ``003_slice.pir``.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def before_pass(self, index: int, step: Pass, state: State) -> None:
        if index == 1:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot make the folder {self._folder}: {error.strerror or error}"
                ) from error
            write_text(self._folder / "000_input.pir", print_graph(state.graph))

    def after_pass(self, index: int, step: Pass, state: State) -> None:
        write_text(self._folder / f"{index:03d}_{step.name}.pir", print_graph(state.graph))
