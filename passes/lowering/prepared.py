"""Preparation that is done once: a pass laid out for the widest candidates, which takes in one
after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneopt.errors import InternalError
from pruneopt.ir.graph import Graph
from pruneopt.passes.lowering.backends import Backend, ReferenceKernels
from pruneopt.passes.lowering.cuda_graphs import LaunchRecorder
from pruneopt.passes.lowering.fused_ops import HANDLERS
from pruneopt.passes.lowering.layout import Layout
from pruneopt.passes.lowering.program import Program
from pruneopt.passes.lowering.shape_match import why_not_reusable

__all__ = ["Prepared", "image_bytes"]


def image_bytes(widest: Graph, backend: Backend) -> int:
    """Return the bytes that a layout takes for the activations of one image of one candidate, kept
    as long as it is."""
    layout = Layout([widest], [1], ReferenceKernels(backend.dtype), torch.device("meta"), HANDLERS)
    return layout.memory.bytes


class Prepared:
    """A pass that is laid out at its first run, and again only when more or larger batches come
    than ever before.

    Args:
        widest: of every candidate that runs at the same time, the widest graph that comes.
        backend: what runs the fused operations.
        capture: what records launches; None starts each by itself.

    Attributes:
        told: how the launches of the last run were started, and why not otherwise.
    """

    def __init__(
        self, widest: Sequence[Graph], backend: Backend, capture: LaunchRecorder | None = None
    ) -> None:
        self._widest, self._backend, self._capture = tuple(widest), backend, capture
        self._most = (0, 0)
        self._shared: Program | None = None
        self._own: Program | None = None
        self._graphs: tuple[Graph, ...] = ()
        self._weights: tuple[Mapping[str, Tensor], ...] = ()
        self._loaded: Program | None = None
        self._why: str | None = None

    @property
    def told(self) -> str:
        program = self._loaded
        return "" if program is None else program.told + (f" ({self._why})" if self._why else "")

    @property
    def bytes(self) -> int:
        """The memory held for activations."""
        return sum(
            program.layout.memory.bytes
            for program in (self._shared, self._own)
            if program is not None
        )

    def load(self, graphs: Sequence[Graph], weights: Sequence[Mapping[str, Tensor]]) -> None:
        """Take candidates in, as many as there are buffers for or fewer.

        One that does not fit its buffers is laid out by itself, and its launches are not recorded.

        Args:
            graphs: lowered, of each candidate.
            weights: of each, by name, on the device of the batches; not written to while it is
                loaded.
        """
        if not 0 < len(graphs) <= len(self._widest):
            raise InternalError(f"{len(graphs)} candidates for the buffers of {len(self._widest)}")
        self._graphs, self._weights = tuple(graphs), tuple(weights)
        pairs = zip(self._widest, graphs, strict=False)
        self._why = next(
            (why for wide, graph in pairs if (why := why_not_reusable(wide, graph))), None
        )
        self._loaded = self._own = None

    def run(self, batches: Sequence[Tensor]) -> Program:
        """Run the loaded candidates; the program has the results."""
        if not self._graphs:
            raise InternalError("no candidate is loaded")
        program = self._fitting(batches)
        if program is not self._loaded:
            program.load(self._graphs, self._weights)
            self._loaded = program
        program.place(batches)
        program.start()
        return program

    def _fitting(self, batches: Sequence[Tensor]) -> Program:
        """Return the program with room for the batches."""
        count, images = len(batches), max(len(batch) for batch in batches)
        if count > self._most[0] or images > self._most[1]:
            self._most = max(count, self._most[0]), max(images, self._most[1])
            self._shared = self._own = self._loaded = (
                None  # buffers first: both need not fit at once
            )
        sizes = [self._most[1]] * self._most[0]
        device = batches[0].device
        if self._why is not None:
            self._own = self._own or Program(
                Layout(self._graphs, sizes, self._backend, device, HANDLERS)
            )
            return self._own
        if self._shared is None:
            self._shared = Program(
                Layout(self._widest, sizes, self._backend, device, HANDLERS), self._capture
            )
        return self._shared
