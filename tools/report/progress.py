"""A progress bar on stderr, for people: silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pruneopt.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(show: bool) -> Iterator[Progress]:
    """Give what passes report their progress to, for a block of work; nothing is shown unless
    stderr is a terminal."""
    if not (show and sys.stderr.isatty()):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Shown(bar)


class _Shown:
    """The current step: its text (a search puts the best score so far into it) and how much of it
    is done."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("", total=None)

    def __call__(self, text: str, done: int = 0, total: int | None = None) -> None:
        self._bar.update(self._task, description=text, completed=done, total=total)
