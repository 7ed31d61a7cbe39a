"""A lowered graph on its way to launches: what an op needs of buffers, tables and weights, and the
steps in order.

A segment is one candidate on one batch. Fused operations take all segments in one launch
(`fused_ops`); what no kernel does runs in PyTorch, segment by segment, on views of the same
buffers.

Buffers, grids and offsets are those of the widest networks that come. Candidates that are
loaded later change what stands in the buffers of weights and in the segment tables, and nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.interpreter import last_uses
from pruneopt.ir.schema import call, torch_value
from pruneopt.ir.types import BatchSize
from pruneopt.kernels.operands import Affine
from pruneopt.kernels.segments import Segment, Segments
from pruneopt.passes.lowering.backends import Backend, Step
from pruneopt.passes.lowering.shape_match import matching_values, same_calls, width_of
from pruneopt.passes.lowering.storage import Activation, Loose, Memory, Stored, Table
from pruneopt.passes.lowering.tables import Sides, Tables

__all__ = ["Handler", "Layout", "Pair", "Weights", "check_batch"]

Weights = Mapping[str, Tensor]
Pair = tuple[Tensor, Tensor]


class Layout:
    """Steps of a pass over several candidates. Values and ops are known by those of the first
    widest graph.

    Args:
        widest: the widest graph of each candidate; they differ in widths alone.
        images: of every batch, at most.
        backend: what runs the fused operations.
        device: of all tensors.
        handlers: what lays out an op, by its base name; ops without one run in PyTorch.

    Attributes:
        candidates, images: of each segment.
        batch_of: the batch of each segment.
        input: where the batches are placed.
        env: where every value is while its op is laid out; at the end, outputs.
        twins: of each candidate that is loaded, its own values; before any is, those of the widest.
        weights: of each candidate that is loaded, by name.
        live: how many images each segment has; none before batches are placed.
        steps: what runs, in order, and whether it is a launch.
        after: what may run when all steps are over.
        copies: pairs of a target and its source, copied when candidates are loaded, after what is
            ``cleared``.
        at_load: what runs then, after these.
    """

    def __init__(
        self,
        widest: Sequence[Graph],
        images: Sequence[int],
        backend: Backend,
        device: torch.device,
        handlers: Mapping[str, Handler],
    ) -> None:
        if not all(same_calls(widest[0], other) for other in widest[1:]):
            raise InternalError("candidates with different calls cannot run side by side")
        self.widest, self.backend, self.device = widest, backend, device
        self.candidates = tuple(number for number in range(len(widest)) for _ in images)
        self.batch_of = tuple(number for _ in widest for number in range(len(images)))
        self.images = tuple(images[number] for number in self.batch_of)
        self.memory = Memory(device)
        self.tables = Tables((2 * len(widest[0].ops) + 1) * len(self.images), device)
        self.env: dict[Value, Stored] = {}
        self.applied: set[Op] = set()
        """Ops that a handler did along with one before them."""
        self.twins = [matching_values(widest[0], graph) for graph in widest]
        self.weights: Sequence[Weights] = ()
        self.live: tuple[int, ...] = ()
        self.copies: list[Callable[[], Iterator[Pair]]] = []
        self.cleared: list[Tensor] = []
        self.at_load: list[Step] = []
        self.steps: list[tuple[bool, Step]] = []
        self.after: list[Step] = []
        self._last = last_uses(widest[0])
        self._kept: set[int] = set()
        self.input = self._input_room(images)
        self.env[widest[0].inputs[0]] = self.input
        self._lay_out(handlers)

    def _input_room(self, images: Sequence[int]) -> Activation | Loose:
        """Return a place for the batches, once for all candidates."""
        value = self.widest[0].inputs[0]
        if value.type.rank != 4:
            return Loose()
        channels, height, width = value.type.shape(1)[1:]
        once = Activation.empty(
            images,
            [channels] * len(images),
            (height, width),
            self.backend.dtype,
            self.device,
            self.memory,
        )
        self._kept.add(id(once.buffer))
        starts = tuple(once.starts[number] for number in self.batch_of)
        return Activation(
            once.buffer, starts, (channels,) * len(starts), self.images, height, width
        )

    def _lay_out(self, handlers: Mapping[str, Handler]) -> None:
        for op in self.widest[0].ops:
            if op not in self.applied:
                handlers.get(op.base, Layout.plain)(self, op)
            for value in self._last.get(op, ()):
                stored = self.env.pop(value, None)
                if isinstance(stored, Activation) and id(stored.buffer) not in self._kept:
                    self.memory.give(stored.buffer)

    # For those who lay out an op

    @property
    def segments(self) -> range:
        return range(len(self.candidates))

    def own(self, op: Op) -> list[Op]:
        """Return an op as every loaded candidate has it; before any is, as every widest graph."""
        return [_producer(twins[op.results[0]]) for twins in self.twins]

    def channels(self, value: Value) -> tuple[int, ...]:
        """Return how many channels every segment's part of a value has, of the candidates that are
        loaded."""
        widths = [width_of(twins[value]) for twins in self.twins]
        return tuple(widths[number] for number in self.candidates)

    @property
    def busy(self) -> tuple[int, ...]:
        """The segments that have work."""
        return tuple(number for number, images in enumerate(self.live) if images)

    @property
    def given(self) -> tuple[int, ...]:
        """The segments of the candidates that are loaded."""
        return tuple(
            number for number in self.segments if self.candidates[number] < len(self.weights)
        )

    def part(self, stored: Stored, value: Value, segment: int) -> Tensor:
        """Return a segment's part of a value, as PyTorch has it; of a buffer it is a view."""
        if isinstance(stored, Loose):
            return stored.tensors[segment]
        channels = self.channels(value)[segment]
        if isinstance(stored, Table):
            return stored.part(segment, channels)
        return stored.part(segment, self.live[segment], channels)

    def launch(self, step: Step) -> None:
        """Add a launch; it reads tables and buffers alone, so it may be recorded."""
        self.steps.append((True, step))

    def load(self, copies: Callable[[], Iterator[Pair]], *cleared: Tensor) -> None:
        """When candidates are loaded, clear buffers, then copy pairs of target and source."""
        self.copies.append(copies)
        self.cleared += cleared

    def weight(self, op: Op, index: int, candidate: int) -> Tensor | None:
        """Return an operand of a loaded candidate that is a weight; None where it is left out."""
        value = self.own(op)[candidate].value(index)
        return None if value is None else self.weights[candidate][value.name]

    def table(
        self,
        sides: Sides,
        columns: Mapping[str, Sequence[int]],
        chosen: Sequence[int] | None = None,
    ) -> Segments:
        """Return the table of a launch over the chosen segments (None: all); ``columns`` are its
        fields but for widths."""
        numbers = list(self.segments if chosen is None else chosen)
        n_in, n_out = (self.channels(value) for value in sides)
        rows = [
            Segment(
                n_in=n_in[number],
                n_out=n_out[number],
                images=self.images[number],
                **{name: starts[number] for name, starts in columns.items()},
            )
            for number in numbers
        ]
        return self.tables.add(
            rows, numbers, [self.candidates[number] for number in numbers], sides
        )

    def make(self, value: Value, size: tuple[int, int] | None = None) -> Activation:
        """Return room for a value, of its own or another size."""
        height, width = size or value.type.shape(1)[2:]
        return Activation.empty(
            self.images,
            self.channels(value),
            (height, width),
            self.backend.dtype,
            self.device,
            self.memory,
        )

    def activation(self, value: Value) -> Activation:
        """Return a value in a kernel's buffer."""
        stored = self.env[value]
        if isinstance(stored, Loose):
            made = self.make(value)
            self._fill(stored, made)
            self.env[value] = stored = made
        assert isinstance(stored, Activation)
        return stored

    def affine(
        self, scale: Value | None, shift: Value | None
    ) -> tuple[Affine | None, tuple[int, ...]]:
        """Return scale and shift as tables, and where the segments' parts of both begin."""
        if scale is None or shift is None:
            return None, (0,) * len(self.candidates)
        first, second = self._as_table(scale), self._as_table(shift)
        return Affine(first.buffer, second.buffer), first.starts

    def _as_table(self, value: Value) -> Table:
        stored = self.env[value]
        if isinstance(stored, Loose):
            made = Table.zeros(self.channels(value), self.backend.sums, self.device)
            self._fill(stored, made)
            self.env[value] = stored = made
        assert isinstance(stored, Table)
        return stored

    def _fill(self, source: Loose, made: Activation | Table) -> None:
        """Copy what PyTorch made to where kernels read it."""

        def run() -> None:
            for segment, tensor in source.tensors.items():
                if isinstance(made, Activation):
                    check_batch(tensor, made, segment)
                made.fill(segment, tensor)
            if not source.fixed:
                source.tensors = {}

        if source.fixed:
            self._kept.add(id(made.buffer))
        self._add(run, source.fixed)

    def _add(self, run: Step, fixed: bool) -> None:
        if fixed:
            self.at_load.append(run)
        else:
            self.steps.append((False, run))

    def parameters(self, op: Op, index: int, default: float, value: Value) -> Table:
        """Return an operand of an op that is a weight `[channels of value]`; the segments of a
        candidate share a part."""
        widths = [width_of(twins[value]) for twins in self.twins]
        table = Table.zeros(widths, self.backend.sums, self.device)
        if op.value(index) is None:
            table.buffer.fill_(default)
        else:

            def copies() -> Iterator[Pair]:
                for number in range(len(self.weights)):
                    source = self.weight(op, index, number)
                    assert source is not None
                    yield table.part(number, len(source)), source

            self.load(copies)
        return Table(table.buffer, tuple(table.starts[number] for number in self.candidates))

    # What runs in PyTorch

    def plain(self, op: Op) -> None:
        """Run an op as PyTorch has it, segment by segment."""
        sources = {value: self.env[value] for value in op.inputs if not value.is_weight}
        fixed = all(
            isinstance(item, Loose) and item.fixed for item in sources.values()
        ) and not _grows(op)
        results = [Loose(fixed=fixed) for _ in op.results]
        dead = [
            item
            for value in self._last.get(op, ())
            if isinstance(item := sources.get(value), Loose)
        ]
        dropped = [item for item in dead if not item.fixed and item is not self.input]
        held = {
            item.buffer.untyped_storage().data_ptr()
            for item in sources.values()
            if not isinstance(item, Loose)
        }

        def run() -> None:
            own = self.own(op)
            for found in results:
                found.tensors = {}
            for segment in self.given if fixed else self.busy:
                made = self._call(op, own[self.candidates[segment]], segment, sources)
                for found, tensor in zip(
                    results, made if isinstance(made, tuple | list) else (made,), strict=True
                ):
                    # A view of a kernel's buffer would change under its readers when that is used
                    # again.
                    shared = tensor.untyped_storage().data_ptr() in held
                    found.tensors[segment] = tensor.clone() if shared else tensor
            for item in dropped:
                item.tensors = {}

        self.env.update(zip(op.results, results, strict=True))
        ends = not any(result.users for result in op.results)
        if not fixed and ends and all(isinstance(item, Table) for item in sources.values()):
            self.after.append(run)  # nothing overwrites a table: it need not stand between launches
        else:
            self._add(run, fixed)

    def _call(self, first: Op, op: Op, segment: int, sources: Mapping[Value, Stored]) -> Any:
        """Return one segment's call; weights take the precision of the activations they meet."""
        weights = self.weights[self.candidates[segment]]
        met = {value: self.part(stored, value, segment) for value, stored in sources.items()}
        dtype = next((tensor.dtype for tensor in met.values() if tensor.is_floating_point()), None)

        def fetched(known: Operand, own: Operand) -> Any:
            if isinstance(known, tuple) and isinstance(own, tuple):
                return [fetched(left, right) for left, right in zip(known, own, strict=True)]
            if not isinstance(known, Value) or not isinstance(own, Value):
                return own
            if not own.is_weight:
                return met[known]
            weight = weights[own.name]
            return weight.to(dtype) if dtype is not None and weight.is_floating_point() else weight

        operands = [
            fetched(known, own) for known, own in zip(first.operands, op.operands, strict=True)
        ]
        images = self.live[segment] if self.live else self.images[segment]
        attrs = {
            name: torch_value(attr, images, False, self.device) for name, attr in op.attrs.items()
        }
        return call(op.target, operands, attrs)


Handler = Callable[[Layout, Op], None]


def _grows(op: Op) -> bool:
    """Return whether the result of an op depends on how many images there are."""
    return any(isinstance(dim, BatchSize) for value in op.results for dim in value.type.dims)


def _producer(value: Value) -> Op:
    assert value.producer is not None
    return value.producer


def check_batch(batch: Tensor, room: Activation, segment: int) -> None:
    """Raises UserError for what is larger than its room, or of images of another size."""
    images, channels, *size = batch.shape
    if (
        size != [room.height, room.width]
        or channels > room.channels[segment]
        or images > room.images[segment]
    ):
        wanted = [room.images[segment], room.channels[segment], room.height, room.width]
        raise UserError(
            f"a batch of shape {list(batch.shape)} does not fit where there is room for {wanted}"
        )
