"""The segment tables of all launches of a program, in one piece of memory, so that one copy writes
them all anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneopt.ir.graph import Value
from pruneopt.kernels.segments import COLUMNS, Segment, Segments

__all__ = ["Tables"]

Sides = tuple[Value, Value]
"""The values whose channels are a launch's `n_in` and `n_out`."""


class Tables:
    """Tables whose widths and numbers of images change while all else in them stays.

    Args:
        rows: how many segments all launches have together, at most.
        device: of the tables.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._memory = torch.zeros(rows, len(COLUMNS), dtype=torch.int64, device=device)
        self._hosts: list[Tensor] = []
        self._used = 0
        self._slots: dict[tuple[int, Value], int] = {}
        self._in: list[int] = []
        self._out: list[int] = []
        self._segment: list[int] = []
        self._base: tuple[Tensor, ...] | None = None

    def add(
        self,
        rows: Sequence[Segment],
        numbers: Sequence[int],
        candidates: Sequence[int],
        sides: Sides,
    ) -> Segments:
        """Return the table of a launch.

        Args:
            rows: as wide as they may ever be.
            numbers: of these segments.
            candidates: of each of them.
            sides: where their channels are told.
        """
        memory = self._memory[self._used : self._used + len(rows)]
        self._used += len(rows)
        segments = Segments(rows, memory.device, memory)
        self._hosts.append(segments.host)
        self._segment += numbers
        for slots, value in zip((self._in, self._out), sides, strict=True):
            slots += [
                self._slots.setdefault((candidate, value), len(self._slots))
                for candidate in candidates
            ]
        self._base = None
        return segments

    def write(self, twins: Sequence[Mapping[Value, Value]], images: Sequence[int]) -> None:
        """Write all tables anew, in one copy that nothing waits for.

        Args:
            twins: of every candidate, its own value for each that `add` was given.
            images: of every segment; 0 for one without work.
        """
        if not self._hosts:
            return
        if self._base is None:
            slots = (torch.tensor(item) for item in (self._in, self._out, self._segment))
            self._base = (torch.cat(self._hosts), *slots)
        base, n_in, n_out, segment = self._base
        widths = torch.tensor(
            [twins[number][value].type.shape(1)[1] for number, value in self._slots]
        )
        host = base.clone()
        host[:, COLUMNS["n_in"]], host[:, COLUMNS["n_out"]] = widths[n_in], widths[n_out]
        host[:, COLUMNS["images"]] = torch.tensor(images)[segment]
        if self._memory.is_cuda:
            host = host.pin_memory()  # given back when the copy is over
        self._memory[: self._used].copy_(host, non_blocking=True)
