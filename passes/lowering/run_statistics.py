"""Run the lowered statistics pass of several candidates on all their batches at once.

A segment is one candidate on one batch. Every fused operation is one launch over all segments; what no kernel does runs
in PyTorch, segment by segment, on views of the same buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import InternalError
from pruneopt.ir.execute import last_uses
from pruneopt.ir.graph import Op, Operand, Value
from pruneopt.ir.schema import call, torch_value
from pruneopt.ir.types import Attr
from pruneopt.kernels.operands import Affine, Prologue
from pruneopt.passes.lowering.backends import Backend
from pruneopt.passes.lowering.convolutions import Convolution, norm_of, window_of, writes_input
from pruneopt.passes.lowering.statistics import LoweredStatistics
from pruneopt.passes.lowering.storage import Activation, Table
from pruneopt.passes.lowering.work import Work

__all__ = ["BatchStatistics", "run_statistics"]

Stored = Activation | Table | list[Tensor]
"""A value of all segments: in a kernel's buffer, or as PyTorch's tensors."""


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """What one batch gave at one batch norm: mean and biased variance `[C]`, of ``count`` values per channel each."""

    name: str
    mean: Tensor
    variance: Tensor
    count: int


def run_statistics(
    lowered: Sequence[LoweredStatistics],
    weights: Sequence[Mapping[str, Tensor]],
    batches: Sequence[Tensor],
    backend: Backend,
) -> list[list[list[BatchStatistics]]]:
    """The statistics of every candidate on every batch, at every batch norm in graph order.

    Args:
        lowered: of each candidate; they differ in widths alone.
        weights: of each candidate, by name, on the device of the batches.
        batches: inputs `[images, channels, height, width]` of networks with one input.
        backend: what runs the fused operations.

    Returns:
        ``result[candidate][batch][norm]``.
    """
    with torch.no_grad():
        return _Run(lowered, weights, batches, backend).result()


def same_program(one: LoweredStatistics, other: LoweredStatistics) -> bool:
    """Whether two candidates can run side by side: they make the same calls."""
    return [op.target for op in one.graph.ops] == [op.target for op in other.graph.ops]


class _Run:
    """A pass on its way. Values are known by those of the first candidate's graph."""

    def __init__(
        self,
        lowered: Sequence[LoweredStatistics],
        weights: Sequence[Mapping[str, Tensor]],
        batches: Sequence[Tensor],
        backend: Backend,
    ) -> None:
        if not all(same_program(lowered[0], other) for other in lowered[1:]):
            raise InternalError("candidates with different calls cannot run side by side")
        self.lowered, self.weights, self.batches = lowered, weights, batches
        self.graphs = [item.graph for item in lowered]
        self.batch_of = [number for _ in lowered for number in range(len(batches))]
        self.work = Work(
            candidates=tuple(number for number in range(len(lowered)) for _ in batches),
            images=tuple(len(batches[number]) for number in self.batch_of),
            backend=backend,
            device=batches[0].device,
        )
        self.env: dict[Value, Stored] = {}
        self.applied: set[Op] = set()
        """Batch norms whose scale and shift came with their statistics."""

    def result(self) -> list[list[list[BatchStatistics]]]:
        first = self.graphs[0]
        self.env[first.inputs[0]] = self._input()
        dead = last_uses(first)
        for ops in zip(*(graph.ops for graph in self.graphs), strict=True):
            self._step(ops)
            for value in dead.get(ops[0], ()):
                self.env.pop(value, None)
        found: list[list[list[BatchStatistics]]] = [[[] for _ in self.batches] for _ in self.lowered]
        outputs = first.output_values
        for number, (mean, variance) in enumerate(zip(outputs[::2], outputs[1::2], strict=True)):
            for segment in self.work.segments:
                candidate, batch = self.work.candidates[segment], self.batch_of[segment]
                norm = self.lowered[candidate].norms[number]
                pixels = torch.Size(norm.source.type.plain().dims[2:]).numel()  # type: ignore[arg-type]
                one, other = (self._part(value, segment).clone() for value in (mean, variance))
                count = self.work.images[segment] * pixels
                found[candidate][batch].append(BatchStatistics(norm.mean.name, one, other, count))
        return found

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

    def _step(self, ops: Sequence[Op]) -> None:
        """One op of every candidate."""
        steps = {
            "pruneopt.conv_statistics": self._conv,
            "pruneopt.add_act": self._add_act,
            "pruneopt.mean_pixels": self._mean_pixels,
        }
        if ops[0] not in self.applied:
            steps.get(ops[0].base, self._plain)(ops)

    # Values

    def _empty(self, images: Sequence[int], channels: Sequence[int], size: tuple[int, int]) -> Activation:
        return Activation.empty(images, channels, size, self.work.backend.dtype, self.work.device)

    def _part(self, value: Value, segment: int) -> Tensor:
        """A segment's part of a value, as PyTorch has it."""
        stored = self.env[value]
        return stored[segment] if isinstance(stored, list) else stored.part(segment)

    def _activation(self, value: Value) -> Activation:
        """A value in a kernel's buffer."""
        stored = self.env[value]
        if isinstance(stored, list):
            channels = [part.shape[1] for part in stored]
            size = stored[0].shape[2], stored[0].shape[3]
            made = self._empty(self.work.images, channels, size)
            for segment, part in enumerate(stored):
                made.fill(segment, part)
            self.env[value] = stored = made
        assert isinstance(stored, Activation)
        return stored

    def _affine(self, scale: Value | None, shift: Value | None) -> tuple[Affine | None, tuple[int, ...]]:
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

    def _parameters(self, ops: Sequence[Op], index: int, default: float, channels: Sequence[int]) -> Table:
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

    # Ops

    def _plain(self, ops: Sequence[Op]) -> None:
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
        """A segment's operands; weights take the precision of what they meet."""
        weights = self.weights[self.work.candidates[segment]]
        met = [self._part(value, segment) for value in first.inputs if not value.is_weight]
        dtype = next((tensor.dtype for tensor in met if tensor.is_floating_point()), self.work.backend.dtype)

        def fetched(known: Operand, own: Operand) -> Any:
            if isinstance(known, tuple) and isinstance(own, tuple):
                return [fetched(left, right) for left, right in zip(known, own, strict=True)]
            if not isinstance(known, Value) or not isinstance(own, Value):
                return own
            if not own.is_weight:
                return self._part(known, segment)
            weight = weights[own.name]
            return weight.to(dtype) if weight.is_floating_point() else weight

        return [fetched(known, own) for known, own in zip(first.operands, op.operands, strict=True)]

    def _prologue(self, op: Op, finished: Activation | None) -> tuple[Activation, Prologue, dict[str, tuple[int, ...]]]:
        """What is loaded and how it is finished; with the table's columns for it."""
        raw = self._activation(op.needed(0))
        affine, in_table = self._affine(op.value(1), op.value(2))
        beside = op.value(3)
        residual = None if beside is None else self._activation(beside)
        residual_affine, residual_table = self._affine(op.value(4), op.value(5))
        activation: Any = op.attrs["activation"]
        prologue = Prologue(
            affine,
            activation,
            None if residual is None else residual.buffer,
            residual_affine,
            None if finished is None else finished.buffer,
        )
        columns = {"x": raw.starts, "in_table": in_table, "residual_table": residual_table}
        if residual is not None:
            columns["residual"] = residual.starts
        if finished is not None:
            columns["materialised"] = finished.starts
        return raw, prologue, columns

    def _like(self, raw: Activation) -> Activation:
        return self._empty(raw.images, raw.channels, (raw.height, raw.width))

    def _add_act(self, ops: Sequence[Op]) -> None:
        """A finished activation, written out."""
        self.env[ops[0].result] = self._finished(ops[0])

    def _finished(self, op: Op) -> Activation:
        made = self._like(self._activation(op.needed(0)))
        raw, prologue, columns = self._prologue(op, made)
        self.work.backend.add_act(
            raw.buffer, self.work.table(raw.channels, raw.channels, columns), raw.pixels, prologue
        )
        return made

    def _mean_pixels(self, ops: Sequence[Op]) -> None:
        """The mean over an image's pixels."""
        raw, prologue, columns = self._prologue(ops[0], None)
        made = self._empty(raw.images, raw.channels, (1, 1))
        columns["y"] = made.starts
        segments = self.work.table(raw.channels, raw.channels, columns)
        self.work.backend.mean_pixels(raw.buffer, made.buffer, segments, raw.pixels, prologue=prologue)
        self.env[ops[0].result] = made

    # Convolutions

    def _conv(self, ops: Sequence[Op]) -> None:
        """A convolution with the statistics of what it gives, and its batch norm's scale and shift."""
        first = ops[0]
        out, mean, variance, finished = first.results
        raw, prologue, columns, kept = self._loaded(first, finished if finished.users else None)
        kernels = [self.weights[number][op.needed(6).name] for number, op in enumerate(ops)]
        window = window_of(raw, kernels[0], first)
        channels = [len(kernels[number]) for number in self.work.candidates]
        size = window.out_height, window.out_width
        made = self._empty(self.work.images, channels, size)
        tables = [Table.zeros(channels, self.work.backend.sums, self.work.device) for _ in range(4)]
        norm = norm_of(first)
        known = [] if norm is None else [norm_of(op) or norm for op in ops]
        every = [len(kernel) for kernel in kernels]
        gamma = self._parameters(known, 2, 1.0, every) if known else None
        beta = self._parameters(known, 3, 0.0, every) if known else None
        columns |= {"y": made.starts, "out_table": tables[0].starts}
        if gamma is not None:
            columns["params"] = gamma.starts
        convolution = Convolution(self.work, raw, prologue, columns, kernels, window, made, tables, gamma, beta)
        for groups, chosen in self._alike(ops, raw, kernels):
            convolution.launch(groups, chosen, float(norm.attrs["eps"]) if norm is not None else 0.0)  # type: ignore[arg-type]
        self.env |= {out: made, mean: tables[0], variance: tables[1]}
        if kept is not None:
            self.env[finished] = kept
        if norm is not None:
            self.env |= dict(zip(norm.results, tables[2:], strict=True))
            self.applied.add(norm)

    def _loaded(
        self, op: Op, finished: Value | None
    ) -> tuple[Activation, Prologue, dict[str, Sequence[int]], Activation | None]:
        """How a convolution reads its input, and where it writes what it has finished, if others want it."""
        if finished is None:
            return *self._prologue(op, None), None  # type: ignore[return-value]
        if writes_input(op):
            made = self._like(self._activation(op.needed(0)))
            return *self._prologue(op, made), made  # type: ignore[return-value]
        made = self._finished(op)  # a grouped convolution cannot write its input
        return made, Prologue(), {"x": made.starts}, made

    def _alike(self, ops: Sequence[Op], raw: Activation, kernels: Sequence[Tensor]) -> Iterator[tuple[int, list[int]]]:
        """The segments of one launch, by their number of groups; 0 for depthwise."""
        found: dict[int, list[int]] = {}
        for segment in self.work.segments:
            number = self.work.candidates[segment]
            groups, n_in, kernel = ops[number].attrs["groups"], raw.channels[segment], kernels[number]
            assert isinstance(groups, int)
            depthwise = groups == n_in == len(kernel) and n_in > 1
            found.setdefault(0 if depthwise else groups, []).append(segment)
        yield from found.items()
