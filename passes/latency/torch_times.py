"""In-situ times by PyTorch on the processor: the network as it is deployed, op by op, with a clock
between the ops.

Every op is prepared as one call of its overload, as the deployed module makes it, and reads what
the op before it has left in the caches. The clock is read between ops, which costs less than a
tenth of a microsecond. The whole is timed by the deployed module itself; what its Python adds is
the calibration's to find.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.interpreter import last_uses
from pruneopt.ir.schema import call, torch_value
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.latency.regions import region_numbers
from pruneopt.passes.latency.sample import NodeTime, Sample, undisturbed
from pruneopt.passes.targets.session import FLOATS, fixed_inputs, in_precision
from pruneopt.passes.targets.torch_targets import TorchCPU

__all__ = ["run_eager"]

WARM_UP = 2
LEAST, MOST = 6, 200
"""Runs op by op, and as many of the whole."""


def run_eager(
    target: TorchCPU, graph: Graph, weights: Mapping[str, Tensor], seconds: float
) -> Sample:
    """Run a network op by op and as a whole, each for about so many seconds."""
    session = target.load(graph, weights)
    first = min(_timed(session.run) for _ in range(WARM_UP))
    runs = int(np.clip(seconds / max(first, 1e-6), LEAST, MOST))
    whole = [_timed(session.run) for _ in range(runs)]
    session.close()
    steps = _Steps(target, graph, weights)
    before = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    try:
        with torch.inference_mode():
            times = np.array([steps.times() for _ in range(runs + WARM_UP)])[WARM_UP:]
    finally:
        torch.set_num_threads(before)
    return Sample(float(np.median(whole)), tuple(steps.nodes(undisturbed(times))))


def _timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class _Steps:
    """The ops of a folded network, each ready to be called."""

    def __init__(self, target: TorchCPU, graph: Graph, weights: Mapping[str, Tensor]) -> None:
        folded = fold_batch_norms(graph)
        self.graph, self.batch = folded.graph, target.batch
        dtype = FLOATS[target.dtype]
        last = target.format == "channels-last"
        self.env: dict[Value, Any] = {}
        tensors = in_precision(
            folded.weights({name: tensor.detach() for name, tensor in weights.items()}), dtype
        )
        for name, value in self.graph.params.items():
            self.env[value] = _laid_out(tensors[name], last)
        inputs = [
            x.to(dtype) if x.is_floating_point() else x for x in fixed_inputs(graph, target.batch)
        ]
        for value, x in zip(self.graph.inputs, inputs, strict=True):
            self.env[value] = _laid_out(x, last)
        dead = last_uses(self.graph)
        given = set(self.env)
        self._plan = [
            (
                op.target,
                op.operands,
                _attrs(op, target.batch),
                op.results,
                [v for v in dead.get(op, ()) if v not in given],
            )
            for op in self.graph.ops
        ]

    def times(self) -> list[float]:
        """Run all ops once, and return the seconds of each."""
        env, clock, found = self.env, time.perf_counter, []
        for target, operands, attrs, results, dead in self._plan:
            read = [_fetch(operand, env) for operand in operands]
            started = clock()
            result = call(target, read, attrs)
            found.append(clock() - started)
            made: Sequence[Any] = result if isinstance(result, tuple | list) else (result,)
            env.update(zip(results, made, strict=True))
            del read, result, made
            for value in dead:
                env.pop(value, None)
        return found

    def nodes(self, seconds: np.ndarray) -> Iterator[NodeTime]:
        """Yield the ops with their times `[ops]`."""
        regions = region_numbers(self.graph)
        for op, time_ in zip(self.graph.ops, seconds, strict=True):
            values = [*op.inputs, *op.results]
            shapes = tuple(value.type.shape(self.batch) for value in values)
            size = sum(int(np.prod(shape)) for shape in shapes) * 4
            yield NodeTime(
                op.result.name if len(op.results) == 1 else op.base,
                op.base,
                regions[op],
                float(time_),
                shapes,
                size,
            )


def _laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    return (
        tensor.contiguous(memory_format=torch.channels_last)
        if channels_last and tensor.dim() == 4
        else tensor
    )


def _attrs(op: Op, batch: int) -> dict[str, Any]:
    attrs = {
        name: torch_value(attr, batch, False, torch.device("cpu"))
        for name, attr in op.attrs.items()
    }
    if "momentum" in attrs and attrs["momentum"] is None:
        attrs["momentum"] = 0.0  # not read where running statistics are not updated
    return attrs


def _fetch(operand: Operand, env: Mapping[Value, Any]) -> Any:
    if isinstance(operand, Value):
        return env[operand]
    if isinstance(operand, tuple):
        return [None if value is None else env[value] for value in operand]
    return operand
