"""What is worked on at once: every candidate on every batch, each a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruneopt.kernels.segments import Segment, Segments
from pruneopt.passes.lowering.backends import Backend

__all__ = ["Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """The segments of a pass.

    Attributes:
        candidates, images: of each segment.
        backend: what runs the fused operations.
        device: of all tensors.
    """

    candidates: tuple[int, ...]
    images: tuple[int, ...]
    backend: Backend
    device: torch.device

    @property
    def segments(self) -> range:
        return range(len(self.candidates))

    def table(
        self,
        n_in: Sequence[int],
        n_out: Sequence[int],
        columns: Mapping[str, Sequence[int]],
        chosen: Sequence[int] | None = None,
    ) -> Segments:
        """The table of a launch over the chosen segments (None: all); ``columns`` are its other fields."""
        rows = [
            Segment(
                n_in=n_in[number],
                n_out=n_out[number],
                images=self.images[number],
                **{name: starts[number] for name, starts in columns.items()},
            )
            for number in (self.segments if chosen is None else chosen)
        ]
        return Segments(rows, self.device)
