"""``compile`` under torchrun: process 0 does everything, the others run the same passes for their
part in training.

Passes are deterministic, so every process has the same network when training begins; the trainer
checks it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruneopt.passes.search.search_loop import JOURNAL
from pruneopt.passes.training.parallel import Processes

__all__ = ["run_folder"]


@contextmanager
def run_folder(processes: Processes, folder: Path | None) -> Iterator[Path]:
    """Give the folder of the passes of this process: process 0's ``folder``, or a temporary one.

    A search that is resumed finds its journal in all of them; states of training runs are read by
    process 0 alone.
    """
    processes.join()
    place = None if folder is None else folder / JOURNAL
    journal = processes.share(place.read_bytes() if place is not None and place.exists() else None)
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="pruneopt-") as name:
        if journal is not None:
            (Path(name) / JOURNAL).write_bytes(journal)
        yield Path(name)
