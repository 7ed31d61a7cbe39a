"""Run a lowered graph for several candidates on several batches at once.

A segment is one candidate on one batch. Fused operations take all segments in one launch (`fused_ops`); what no kernel
does runs in PyTorch, segment by segment, on views of the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import InternalError
from pruneopt.ir.execute import last_uses
from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.schema import call, torch_value
from pruneopt.ir.types import Attr
from pruneopt.kernels.operands import Affine
from pruneopt.passes.lowering.backends import Backend
from pruneopt.passes.lowering.storage import Activation, Table
from pruneopt.passes.lowering.work import Work

__all__ = ["Handler", "Run"]

Stored = Activation | Table | list[Tensor]
"""A value of all segments: in a kernel's buffer, or as PyTorch's tensors."""


def _same_program(one: Graph, other: Graph) -> bool:
    """Whether two candidates can run side by side: they make the same calls."""
    return [op.target for op in one.ops] == [op.target for op in other.ops]


class Run:
    """A pass on its way. Values are known by those of the first candidate's graph.

    Args:
        graphs: of each candidate; they differ in widths alone.
        weights: of each candidate, by name, on the device of the batches.
        batches: inputs of networks with one input.
        backend: what runs the fused operations.
        handlers: what runs an op of all candidates, by its base name; ops without one run in PyTorch.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        weights: Sequence[Mapping[str, Tensor]],
        batches: Sequence[Tensor],
        backend: Backend,
        handlers: Mapping[str, Handler],
    ) -> None:
        if not all(_same_program(graphs[0], other) for other in graphs[1:]):
            raise InternalError("candidates with different calls cannot run side by side")
        self.graphs, self.weights, self.batches, self.handlers = graphs, weights, batches, handlers
        self.batch_of = [number for _ in graphs for number in range(len(batches))]
        self.work = Work(
            candidates=tuple(number for number in range(len(graphs)) for _ in batches),
            images=tuple(len(batches[number]) for number in self.batch_of),
            backend=backend,
            device=batches[0].device,
        )
        self.env: dict[Value, Stored] = {}
        self.applied: set[Op] = set()
        """Ops that a handler did along with one before them."""

    def go(self) -> None:
        """Run op by op; the outputs are left in ``env``."""
        first = self.graphs[0]
        self.env[first.inputs[0]] = self._input()
        dead = last_uses(first)
        for ops in zip(*(graph.ops for graph in self.graphs), strict=True):
            if ops[0] not in self.applied:
                self.handlers.get(ops[0].base, Run.plain)(self, ops)
            for value in dead.get(ops[0], ()):
                self.env.pop(value, None)

    def _input(self) -> Stored:
        """The batches, stored once for all candidates."""
        if self.batches[0].dim() != 4:
            return [self.batches[number] for number in self.batch_of]
        _, channels, height, width = self.batches[0].shape
        counts = [len(batch) for batch in self.batches]
        once = Activation.empty(
            counts, [channels] * len(counts), (height, width), self.work.backend.dtype, self.work.device
        )
        for number, batch in enumerate(self.batches):
            once.fill(number, batch)
        starts = tuple(once.starts[number] for number in self.batch_of)
        return Activation(once.buffer, starts, (channels,) * len(starts), tuple(self.work.images), height, width)

    # Values

    def empty(self, images: Sequence[int], channels: Sequence[int], size: tuple[int, int]) -> Activation:
        return Activation.empty(images, channels, size, self.work.backend.dtype, self.work.device)

    def part(self, value: Value, segment: int) -> Tensor:
        """A segment's part of a value, as PyTorch has it."""
        stored = self.env[value]
        return stored[segment] if isinstance(stored, list) else stored.part(segment)

    def activation(self, value: Value) -> Activation:
        """A value in a kernel's buffer."""
        stored = self.env[value]
        if isinstance(stored, list):
            channels = [part.shape[1] for part in stored]
            size = stored[0].shape[2], stored[0].shape[3]
            made = self.empty(self.work.images, channels, size)
            for segment, part in enumerate(stored):
                made.fill(segment, part)
            self.env[value] = stored = made
        assert isinstance(stored, Activation)
        return stored

    def affine(self, scale: Value | None, shift: Value | None) -> tuple[Affine | None, tuple[int, ...]]:
        """Scale and shift as tables, and where the segments' parts of both begin."""
        if scale is None or shift is None:
            return None, (0,) * len(self.work.candidates)
        for value in (scale, shift):
            stored = self.env[value]
            if isinstance(stored, list):
                self.env[value] = Table.of(stored, self.work.backend.sums, self.work.device)
        first, second = self.env[scale], self.env[shift]
        assert isinstance(first, Table)
        assert isinstance(second, Table)
        return Affine(first.buffer, second.buffer), first.starts

    def parameters(self, ops: Sequence[Op], index: int, default: float, channels: Sequence[int]) -> Table:
        """A batch norm's gamma or beta of every candidate; the segments of a candidate share a part."""
        parts = []
        for number, op in enumerate(ops):
            value = op.value(index)
            if value is None:
                parts.append(torch.full((channels[number],), default, device=self.work.device))
            else:
                parts.append(self.weights[number][value.name])
        table = Table.of(parts, self.work.backend.sums, self.work.device)
        starts = tuple(table.starts[number] for number in self.work.candidates)
        return Table(table.buffer, starts, tuple(table.channels[number] for number in self.work.candidates))

    def plain(self, ops: Sequence[Op]) -> None:
        """An op as PyTorch has it, segment by segment."""
        results: list[list[Tensor]] = [[] for _ in ops[0].results]
        for segment in self.work.segments:
            op = ops[self.work.candidates[segment]]
            operands = self._operands(ops[0], op, segment)
            attrs = {name: self._attr(attr, segment) for name, attr in op.attrs.items()}
            made = call(op.target, operands, attrs)
            for found, tensor in zip(results, made if isinstance(made, tuple | list) else (made,), strict=True):
                found.append(tensor)
        self.env.update(zip(ops[0].results, results, strict=True))

    def _attr(self, attr: Attr, segment: int) -> Any:
        return torch_value(attr, self.work.images[segment], False, self.work.device)

    def _operands(self, first: Op, op: Op, segment: int) -> list[Any]:
        """A segment's operands; weights take the precision of the activations that they meet."""
        weights = self.weights[self.work.candidates[segment]]
        met = [self.part(value, segment) for value in first.inputs if not value.is_weight]
        dtype = next((tensor.dtype for tensor in met if tensor.is_floating_point()), None)

        def fetched(known: Operand, own: Operand) -> Any:
            if isinstance(known, tuple) and isinstance(own, tuple):
                return [fetched(left, right) for left, right in zip(known, own, strict=True)]
            if not isinstance(known, Value) or not isinstance(own, Value):
                return own
            if not own.is_weight:
                return self.part(known, segment)
            weight = weights[own.name]
            return weight.to(dtype) if dtype is not None and weight.is_floating_point() else weight

        return [fetched(known, own) for known, own in zip(first.operands, op.operands, strict=True)]


Handler = Callable[[Run, Sequence[Op]], None]
