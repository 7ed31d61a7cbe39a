"""Run a graph op by op over a dictionary of weights, in training or evaluation mode.

The same graph runs with full, sliced, masked or generated weights. In training mode batch norm
normalises by the batch and updates its running statistics in the dictionary, and dropout drops,
exactly as torch's modules do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.graph import Graph, Op, Operand, Value, map_structure
from pruneopt.ir.schema import call, torch_value
from pruneopt.ir.types import MODE, BatchSize, dim_size

__all__ = ["Frame", "Interpreter", "batch_of", "last_uses"]


def batch_of(graph: Graph, inputs: Sequence[Tensor]) -> int:
    """Return the batch size ``N`` of concrete inputs.

    Raises `UserError` when their shapes do not fit the graph's.
    """
    if len(inputs) != len(graph.inputs):
        raise UserError(f"{graph.name} takes {len(graph.inputs)} inputs, {len(inputs)} were given")
    sizes = (
        (size * dim.divisor - dim.offset) // dim.scale
        for value, tensor in zip(graph.inputs, inputs, strict=True)
        for dim, size in zip(value.type.dims, tensor.shape, strict=False)
        if isinstance(dim, BatchSize)
    )
    batch = next(sizes, 1)
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        if tuple(tensor.shape) != value.type.shape(batch):
            wanted = ", ".join(
                str(d) if isinstance(d, BatchSize) else str(dim_size(d)) for d in value.type.dims
            )
            at = f" with N = {batch}" if graph.dynamic_batch else ""
            raise UserError(
                f"input {value.name} has shape {tuple(tensor.shape)}, {graph.name} takes "
                f"[{wanted}]{at}"
            )
    return batch


@dataclass(slots=True)
class Frame:
    """A run on its way: the values that are still needed, and what it runs with.

    Attributes:
        env: tensors by value; weights and inputs too.
        weights: what the run reads parameters from, by name.
        batch: the batch size ``N``.
        training: the module's mode.
        device: where the inputs lie.
    """

    env: dict[Value, Any]
    weights: Mapping[str, Tensor]
    batch: int
    training: bool
    device: torch.device


def last_uses(graph: Graph) -> dict[Op, list[Value]]:
    """Return for each op the values that nobody reads after it.

    Weights and outputs are none of them.
    """
    # Results count as read by their own op: one that nobody reads is dropped at once.
    last: dict[Value, Op] = {}
    for op in graph.ops:
        for value in (*op.inputs, *op.results):
            last[value] = op
    for value in graph.output_values:
        last.pop(value, None)
    dead: dict[Op, list[Value]] = {}
    for value, op in last.items():
        if not value.is_weight:
            dead.setdefault(op, []).append(value)
    return dead


class Interpreter:
    """Executes a graph.

    ``override`` may compute an op's results in the interpreter's place (or return None).
    """

    def __init__(
        self,
        graph: Graph,
        override: Callable[[Op, list[Any], Callable[[], Any]], Any] | None = None,
    ) -> None:
        self.graph = graph
        self.override = override
        self._dead_after = last_uses(graph)

    def run(self, weights: Mapping[str, Tensor], *inputs: Tensor, training: bool = False) -> Any:
        """Return the outputs, in the structure the model returns them.

        ``weights`` maps every parameter, buffer and constant of the graph to its tensor; in
        training mode the running statistics in it are updated in place.
        """
        steps = self.steps(weights, *inputs, training=training)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def steps(
        self, weights: Mapping[str, Tensor], *inputs: Tensor, training: bool = False
    ) -> Generator[tuple[Op, Sequence[Any]], None, Any]:
        """Run op by op: yields each op with its results, and returns the outputs."""
        frame = self.frame(weights, *inputs, training=training)
        for op in self.graph.ops:
            yield op, self.step(frame, op)
        return self.outputs(frame)

    def frame(
        self, weights: Mapping[str, Tensor], *inputs: Tensor, training: bool = False
    ) -> Frame:
        """Return a run that has not begun.

        `step` takes it forward by one op, in the graph's order.
        """
        batch = batch_of(self.graph, inputs)
        env: dict[Value, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        for name, value in self.graph.params.items():
            if name not in weights:
                raise UserError(f"the weights lack {name}, which {self.graph.name} needs")
            env[value] = weights[name]
        device = inputs[0].device if inputs else torch.device("cpu")
        return Frame(env, weights, batch, training, device)

    def outputs(self, frame: Frame) -> Any:
        """Return the outputs of a run that is through, in the structure the model returns them."""
        return map_structure(lambda value: frame.env[value], self.graph.outputs)

    def step(self, frame: Frame, op: Op) -> Sequence[Any]:
        """Run one op; its results."""
        operands = [self._fetch(operand, frame.env) for operand in op.operands]

        def compute() -> Any:
            attrs = {
                name: torch_value(attr, frame.batch, frame.training, frame.device)
                for name, attr in op.attrs.items()
            }
            if op.attrs.get("training") == MODE and frame.training:
                _count_batch(op, attrs, frame.weights)
            if "momentum" in attrs and attrs["momentum"] is None:
                attrs["momentum"] = 0.0  # not read where running statistics are not updated
            return call(op.target, operands, attrs)

        result = self.override(op, operands, compute) if self.override else None
        if result is None:
            result = compute()
        results = result if isinstance(result, tuple | list) else (result,)
        if len(results) != len(op.results):
            raise InternalError(
                f"{op} gave {len(results)} results, {len(op.results)} were declared"
            )
        frame.env.update(zip(op.results, results, strict=True))
        for value in self._dead_after.get(op, ()):
            frame.env.pop(value, None)
        return results

    @staticmethod
    def _fetch(operand: Operand, env: Mapping[Value, Any]) -> Any:
        if isinstance(operand, Value):
            return env[operand]
        if isinstance(operand, tuple):
            return [None if value is None else env[value] for value in operand]
        return operand


def _count_batch(op: Op, attrs: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Count the batch, as nn.BatchNorm does in training beside normalising.

    A momentum of None averages cumulatively.
    """
    running_mean = op.value(3)
    if running_mean is None:
        return
    name = running_mean.name.removesuffix("running_mean") + "num_batches_tracked"
    count = weights.get(name)
    if count is not None:
        count.add_(1)
    if attrs.get("momentum") is None and "momentum" in attrs:
        attrs["momentum"] = 1.0 / float(count) if count is not None else 0.0
