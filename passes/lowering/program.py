"""A lowered graph laid out for several candidates on several batches: made once, run for whatever
fits into it.

Launches read their candidates from tables and buffers alone. So they can be recorded once, as a
CUDA graph, and serve every candidate that is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Value
from pruneopt.passes.lowering.backends import Step
from pruneopt.passes.lowering.cuda_graphs import LaunchRecorder
from pruneopt.passes.lowering.layout import Layout, Weights, check_batch
from pruneopt.passes.lowering.shape_match import matching_values
from pruneopt.passes.lowering.storage import Activation, Loose, Table

__all__ = ["Program"]


class Program:
    """A pass over several candidates, ready to run.

    Args:
        layout: the steps, and where everything lies.
        capture: what records launches, to start them as one; None starts each by itself.

    Attributes:
        told: how the launches are started, in a few words.
    """

    def __init__(self, layout: Layout, capture: LaunchRecorder | None = None) -> None:
        self.layout = layout
        self.told = ""
        self._capture = capture
        self._sections: list[Step] = []
        self._placed: tuple[tuple[Tensor, ...], list[tuple[int, int] | None]] | None = None

    @torch.no_grad()
    def load(self, graphs: Sequence[Graph], weights: Sequence[Weights]) -> None:
        """Take candidates in; the launches stay what they are.

        Args:
            graphs: of each candidate, as many as there are buffers for or fewer; each fits them
                (`shape_match.why_not_reusable`).
            weights: of each candidate, by name, on the device.
        """
        layout = self.layout
        absent = layout.widest[len(graphs) :]  # their segments have no work
        layout.twins = [matching_values(layout.widest[0], graph) for graph in (*graphs, *absent)]
        layout.weights, layout.live = weights, ()
        pairs = [pair for copies in layout.copies for pair in copies()]
        if layout.cleared:
            torch._foreach_zero_(layout.cleared)
        if pairs:
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])
        for step in layout.at_load:
            step()

    @torch.no_grad()
    def place(self, batches: Sequence[Tensor]) -> None:
        """Put batches where the launches read them, unless they lie there; at most as many and as
        large as fit."""
        layout, marks = self.layout, [_mark(batch) for batch in batches]
        if isinstance(layout.input, Loose):
            layout.input.tensors = {
                at: batches[of] for at, of in enumerate(layout.batch_of) if of < len(batches)
            }
        elif self._placed is None or None in marks or marks != self._placed[1]:
            for number, batch in enumerate(batches):
                check_batch(batch, layout.input, number)
                layout.input.fill(number, batch)
        self._placed = (
            tuple(batches),
            marks,
        )  # holds the batches, so that no other takes an identity over
        places = zip(layout.candidates, layout.batch_of, strict=True)
        counts = tuple(
            len(batches[of]) if of < len(batches) and candidate < len(layout.weights) else 0
            for candidate, of in places
        )
        if counts != layout.live:
            layout.live = counts
            layout.tables.write(layout.twins, counts)

    @torch.no_grad()
    def start(self) -> None:
        """Start all launches, on what was loaded and placed."""
        if not self._sections:
            self._sections = self._record()
        for step in (*self._sections, *self.layout.after):
            step()

    def _record(self) -> list[Step]:
        """Return what is started one after the other: recorded launches, and what runs in PyTorch
        between them."""
        steps = self.layout.steps
        launches = sum(launch for launch, _ in steps)
        self.told = f"{launches} launches"
        if self._capture is None:
            return [step for _, step in steps]
        sections: list[Step] = []
        graphs = 0
        try:
            for launch, group in groupby(steps, key=lambda item: item[0]):
                part = [step for _, step in group]
                worth = launch and len(part) > 1
                sections += [self._capture(part)] if worth else part
                graphs += worth
        except (RuntimeError, UserError) as error:
            why = str(error).partition("\n")[0]
            self.told += f" one by one, as they could not be recorded as a CUDA graph: {why}"
            warnings.warn(self.told, RuntimeWarning, stacklevel=2)
            return [step for _, step in steps]
        self.told += f" in {graphs} CUDA graph{'' if graphs == 1 else 's'}"
        return sections

    def read(self, values: Iterable[Value]) -> dict[Value, dict[int, Tensor]]:
        """Return the outputs of every segment that had work, as PyTorch has them; copies, which the
        next run leaves alone."""
        layout = self.layout
        stored = {value: layout.env[value] for value in values}
        buffers = [item.buffer for item in stored.values() if isinstance(item, Table)]
        copies = iter(
            torch.cat(buffers).split([len(buffer) for buffer in buffers]) if buffers else ()
        )
        found = {}
        for value, item in stored.items():
            source = Table(next(copies), item.starts) if isinstance(item, Table) else item
            parts = {segment: layout.part(source, value, segment) for segment in layout.busy}
            found[value] = (
                {at: part.clone() for at, part in parts.items()}
                if isinstance(item, Activation)
                else parts
            )
        return found


def _mark(batch: Tensor) -> tuple[int, int] | None:
    """Return which tensor it is and how often it was written to; None where PyTorch does not count
    that."""
    return None if batch.is_inference() else (id(batch), batch._version)
