"""Measuring a latency table: every convolution and linear layer by itself, at a grid of widths, on
this machine.

A layer runs alone on random input, so that what a compiler or a cache would gain from its
neighbours is not seen. Times are medians over repeats, after a warm-up; layers that look alike are
measured once.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.schema import DTYPES, call, torch_value
from pruneopt.ir.types import dim_size
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_table import (
    LatencyTable,
    LayerTimes,
    TimedLayer,
    timed_layers,
)
from pruneopt.progress import Progress, silent

__all__ = [
    "POINTS",
    "Timer",
    "layer_attrs",
    "layer_grid",
    "layer_shapes",
    "measure_table",
    "table_of",
]

POINTS = 4
WARM_UP = 3
SHORTEST = 1e-3
"""Seconds that one timed stretch lasts at least: a shorter call is repeated inside it."""

Timer = Callable[[TimedLayer, int, int], float]


def measure_table(
    cost: CostModel,
    *,
    points: int = POINTS,
    batch: int = 1,
    repeats: int = 10,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Measure the layers of a network.

    Args:
        cost: gives the graph and the range of its widths; free groups go from their minimum to
            their full width.
        points: measured widths on each axis, from the narrowest to the widest.
        batch: how many inputs at once.
        repeats: timed calls; their median counts.
        device: where, such as ``cpu`` or ``cuda:1``.
        threads: CPU threads while measuring; None leaves torch's number.

    Raises:
        UserError: fewer than two points or one repeat, a batch that the graph was not captured for,
            or no layer.
    """
    _check(cost, points, batch, repeats, threads)
    place = torch.device(device)
    known: dict[object, float] = {}

    def timer(layer: TimedLayer, inputs: int, outputs: int) -> float:
        shapes = layer_shapes(layer, inputs, outputs, batch)
        attrs = tuple(
            sorted(
                (name, str(value))
                for name, value in layer_attrs(layer, inputs, batch, place).items()
            )
        )
        key = (layer.op.target, shapes, attrs)
        if key not in known:
            known[key] = _seconds(_calling(layer, shapes, inputs, batch, place), place, repeats)
        return known[key]

    with _threads(threads):
        count = torch.get_num_threads()
        return table_of(
            cost,
            timer,
            points=points,
            batch=batch,
            device=_words(place),
            threads=count,
            progress=progress,
        )


def table_of(
    cost: CostModel,
    timer: Timer,
    *,
    points: int = POINTS,
    batch: int = 1,
    device: str = "",
    threads: int = 1,
    progress: Progress = silent,
) -> LatencyTable:
    """Return the table whose entries are ``timer(layer, input width, output width)``, in
    seconds."""
    layers = timed_layers(cost.graph)
    found = {}
    for done, layer in enumerate(layers):
        progress(layer.name, done, len(layers))
        inputs, outputs = layer_grid(layer, cost, points)
        if outputs is None:
            ratio = (
                layer.output[0].type.shape()[layer.output[1]]
                // layer.input[0].type.shape()[layer.input[1]]
            )
            seconds = np.array([timer(layer, width, width * ratio) for width in inputs.tolist()])
        else:
            seconds = np.array(
                [[timer(layer, x, y) for y in outputs.tolist()] for x in inputs.tolist()]
            )
        found[layer.name] = LayerTimes(inputs, outputs, seconds)
    return LatencyTable(cost.graph.name, batch, device, threads, found)


def layer_grid(
    layer: TimedLayer, cost: CostModel, points: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the widths a layer is measured at: as many as asked, evenly from the narrowest to the
    widest it can have.

    Those of a grouped convolution are multiples of its groups. An axis that never changes has one
    width, and the output of a depthwise layer none of its own (None).
    """
    steps = (cost.full - cost.minimum) // cost.step
    shares = np.linspace(0.0, 1.0, points)[:, None]
    rows = cost.minimum + np.floor(shares * steps + 1e-9).astype(np.int64) * cost.step
    inputs, outputs = (
        np.rint(cost.length(*axis, rows)).astype(np.int64) for axis in (layer.input, layer.output)
    )
    if layer.depthwise:
        return np.unique(inputs), None
    groups = layer.op.attrs.get("groups", 1)
    assert isinstance(groups, int)
    return np.unique(inputs // groups * groups), np.unique(outputs // groups * groups)


# One layer


def layer_shapes(
    layer: TimedLayer, inputs: int, outputs: int, batch: int
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of input and weight at a batch size, and of the bias if there is one."""
    (x, axis), weight = layer.input, layer.layer
    shape, kernel = list(x.type.shape(batch)), list(weight.value.type.shape())
    shape[axis] = inputs
    groups = _groups(layer, inputs)
    # Axis 1 of a weight holds what belongs to one group: of a transposed convolution, outputs.
    kernel[weight.out_axis] = outputs if weight.out_axis == 0 else outputs // groups
    if weight.in_axis is not None:
        kernel[weight.in_axis] = inputs if weight.in_axis == 0 else inputs // groups
    bias = layer.op.value(2)
    return (tuple(shape), tuple(kernel), *([] if bias is None else [(outputs,)]))


def _groups(layer: TimedLayer, inputs: int) -> int:
    groups = layer.op.attrs.get("groups", 1)
    assert isinstance(groups, int)
    return inputs if layer.depthwise else groups


def layer_attrs(layer: TimedLayer, inputs: int, batch: int, place: torch.device) -> dict[str, Any]:
    """Return the layer's attributes as torch takes them, with the groups that an input width
    has."""
    attrs = {name: torch_value(attr, batch, False, place) for name, attr in layer.op.attrs.items()}
    return {**attrs, "groups": _groups(layer, inputs)} if "groups" in attrs else attrs


def _calling(
    layer: TimedLayer,
    shapes: tuple[tuple[int, ...], ...],
    inputs: int,
    batch: int,
    place: torch.device,
) -> Callable[[], object]:
    """Return a call of the layer alone, on random numbers."""
    dtype = DTYPES[layer.input[0].type.dtype]
    generator = torch.Generator(place).manual_seed(0)
    tensors: list[Tensor | None] = [
        torch.randn(s, generator=generator, device=place).to(dtype) for s in shapes
    ]
    operands = [*tensors, *[None] * (len(layer.op.operands) - len(tensors))]
    attrs = layer_attrs(layer, inputs, batch, place)
    return lambda: call(layer.op.target, operands, attrs)


def _seconds(run: Callable[[], object], place: torch.device, repeats: int) -> float:
    """Return the median of several timed stretches, per call."""
    stretch = _on_gpu if place.type == "cuda" else _on_cpu
    with torch.inference_mode():
        for _ in range(WARM_UP):
            first = stretch(run, 1)
        calls = max(1, min(1000, math.ceil(SHORTEST / max(first, 1e-9))))
        return statistics.median(stretch(run, calls) for _ in range(repeats)) / calls


def _on_cpu(run: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - started


def _on_gpu(run: Callable[[], object], calls: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _words(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)


def _check(cost: CostModel, points: int, batch: int, repeats: int, threads: int | None) -> None:
    least = {
        "points": (points, 2),
        "batch": (batch, 1),
        "repeats": (repeats, 1),
        "threads": (threads or 1, 1),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"{name}={value} must be at least {smallest}")
    graph = cost.graph
    if not timed_layers(graph):
        raise UserError(
            f"{graph.name} has no convolution and no linear layer: there is nothing to measure"
        )
    dims = graph.inputs[0].type.dims if graph.inputs else ()
    if dims and not graph.dynamic_batch and dim_size(dims[0]) != batch:
        raise UserError(
            f"{graph.name} was captured at a fixed batch of {dim_size(dims[0])}: measure at that "
            "batch"
        )
