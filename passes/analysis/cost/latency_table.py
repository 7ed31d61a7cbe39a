"""How long a network takes, as a sum over its layers: a table of seconds by (layer, input width,
output width).

MetaPruning (ICCV 2019, arXiv 1903.10258) searches under a latency constraint with such a table: the
time of every layer is measured once for each choice of its widths, and a network's time is the sum
of its layers' entries.

Here each layer is measured at a grid of widths, and between them interpolated linearly (bilinearly
in input and output width; a depthwise layer has one width). Searches rely on costs that grow with
the widths, and measured times do not always: running maxima along both axes make them, so that a
wider layer is never cheaper than a narrower one. The file holds the times as measured. Only
convolutions and linear layers count; everything between them is free in this sum.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruneopt.errors import UserError
from pruneopt.files import write_json
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.passes.analysis.channels.layer_weight import LayerWeight
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import definition_of
from pruneopt.reading import read_record

__all__ = [
    "FORMAT",
    "LatencyTable",
    "LayerTimes",
    "TimedLayer",
    "load_table",
    "monotone",
    "timed_layers",
]

FORMAT = "pruneopt-latency"
VERSION = 1
TIMED = {Trait.CONVOLUTION, Trait.LINEAR}
AGAIN = "measure it with `pruneopt profile`"


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """A layer that the table knows, and the axes that are its widths.

    ``depthwise``: one filter per input channel, so that the output width follows the input width.
    """

    name: str
    op: Op
    layer: LayerWeight
    input: tuple[Value, int]
    output: tuple[Value, int]
    depthwise: bool


def timed_layers(graph: Graph) -> list[TimedLayer]:
    """Return the convolutions and linear layers of a graph, in its order, under their modules'
    names.

    A second layer of the same module is called ``name#2``, and so on.
    """
    found: list[TimedLayer] = []
    count: dict[str, int] = {}
    for op in graph.ops:
        known = definition_of(op)
        if not known.traits & TIMED:
            continue
        for layer in known.layers(op):
            met = layer.contraction
            if met is None:
                continue
            x = op.needed(met.operand)
            groups = op.attrs.get("groups", 1)
            deep = isinstance(groups, int) and 1 < groups == x.type.shape()[met.axis]
            base = op.loc.module or op.result.name
            count[base] = count.get(base, 0) + 1
            name = base if count[base] == 1 else f"{base}#{count[base]}"
            ends = (x, met.axis), (op.result, met.result_axis)
            found.append(TimedLayer(name, op, layer, *ends, deep))
    return found


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Seconds of one layer: ``seconds[i, j]`` at input width ``inputs[i]`` and output width
    ``outputs[j]``.

    The widths ascend. ``outputs`` is None for a depthwise layer, whose ``seconds`` are `[i]`.
    """

    inputs: np.ndarray
    outputs: np.ndarray | None
    seconds: np.ndarray


def monotone(seconds: np.ndarray) -> np.ndarray:
    """Return running maxima along every axis: the smallest table above the measured one that never
    falls."""
    for axis in range(seconds.ndim):
        seconds = np.maximum.accumulate(seconds, axis=axis)
    return seconds


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """The times of all layers of a network.

    Attributes:
        network: the graph's name, for messages.
        batch: how many inputs a time is for.
        device: what it was measured on, in words.
        threads: how many CPU threads worked.
        layers: times by the layers' names.
    """

    network: str
    batch: int
    device: str
    threads: int
    layers: Mapping[str, LayerTimes]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, whole or not at all; `UserError` where that fails."""
        write_json(path, self.data())

    def data(self) -> dict[str, Any]:
        """Return the table as JSON holds it."""
        layers = {
            name: {
                "inputs": times.inputs.tolist(),
                "outputs": None if times.outputs is None else times.outputs.tolist(),
                "seconds": times.seconds.tolist(),
            }
            for name, times in self.layers.items()
        }
        head = {"format": FORMAT, "version": VERSION, "network": self.network, "batch": self.batch}
        return {**head, "device": self.device, "threads": self.threads, "layers": layers}

    def predictor(self, cost: CostModel) -> Callable[[np.ndarray], np.ndarray]:
        """Return the nanoseconds of width vectors, `[P, G]` -> `[P]`, for the network of a cost
        model.

        Raises:
            UserError: the table is of another network, or was measured at fewer widths than it can
                have.
        """
        layers = timed_layers(cost.graph)
        self._check_names([layer.name for layer in layers], cost.graph.name)
        for layer in layers:
            self._check_range(layer, cost)
        return _Sum([self.layers[layer.name] for layer in layers], *_forms(layers, cost))

    def _check_names(self, names: Sequence[str], network: str) -> None:
        """Refuse a network with other layers."""
        missing = [name for name in names if name not in self.layers]
        unknown = [name for name in self.layers if name not in names]
        if missing or unknown:
            what = (
                f"has no times of {missing[0]}"
                if missing
                else f"names {unknown[0]}, which is no layer"
            )
            raise UserError(
                f"the latency table {what} of {network}: it is of another network, {AGAIN} again"
            )

    def _check_range(self, layer: TimedLayer, cost: CostModel) -> None:
        """Refuse a network whose widths leave the measured ones."""
        times = self.layers[layer.name]
        if (times.outputs is None) != layer.depthwise:
            raise UserError(
                f"the latency table holds another kind of layer {layer.name}: {AGAIN} again"
            )
        ends = np.stack([cost.minimum, cost.full])
        for what, axis, widths in (
            ("input", layer.input, times.inputs),
            ("output", layer.output, times.outputs),
        ):
            low, high = (round(float(size)) for size in cost.length(*axis, ends))
            if widths is not None and (widths[0] > low or widths[-1] < high):
                raise UserError(
                    f"the latency table has times of {layer.name} for {what} widths from "
                    f"{widths[0]} to {widths[-1]}, "
                    f"but here they are {low} to {high}: {AGAIN} with the same --ignore"
                )


def _forms(layers: Sequence[TimedLayer], cost: CostModel) -> tuple[np.ndarray, np.ndarray]:
    """Return input and output widths as linear forms in the width vector, each `[G + 1, L]`."""
    inputs = [cost.length_form(*layer.input) for layer in layers]
    outputs = [cost.length_form(*layer.output) for layer in layers]
    empty = np.zeros((len(cost.groups) + 1, 0))
    return np.stack(inputs, axis=1) if inputs else empty, np.stack(
        outputs, axis=1
    ) if outputs else empty


class _Sum:
    """All layers at once: their grids are padded to one size, with infinite widths that are never
    reached."""

    def __init__(
        self, times: Sequence[LayerTimes], inputs: np.ndarray, outputs: np.ndarray
    ) -> None:
        self.forms = (inputs, outputs)
        grids = [
            (item.inputs, np.zeros(1) if item.outputs is None else item.outputs) for item in times
        ]
        rows = max([2, *(len(grid[0]) for grid in grids)])
        columns = max([2, *(len(grid[1]) for grid in grids)])
        self.grids = (np.full((len(times), rows), np.inf), np.full((len(times), columns), np.inf))
        self.nanoseconds = np.zeros((len(times), rows, columns))
        for number, (item, grid) in enumerate(zip(times, grids, strict=True)):
            for axis in (0, 1):
                self.grids[axis][number, : len(grid[axis])] = grid[axis]
            table = monotone(item.seconds).reshape(len(grid[0]), len(grid[1]))
            self.nanoseconds[number, : len(grid[0]), : len(grid[1])] = 1e9 * table

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the times of width vectors, `[P, G]` -> `[P]`."""
        (i, s), (j, t) = (self._place(rows, axis) for axis in (0, 1))
        layer = np.arange(len(self.nanoseconds))
        corners = self.nanoseconds
        low = (1 - t) * corners[layer, i, j] + t * corners[layer, i, j + 1]
        high = (1 - t) * corners[layer, i + 1, j] + t * corners[layer, i + 1, j + 1]
        total: np.ndarray = ((1 - s) * low + s * high).sum(axis=1)
        return total

    def _place(self, rows: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Return in which interval of the grid every layer's width lies, and how far into it (0 to
        1); each `[P, L]`."""
        grid, form = self.grids[axis], self.forms[axis]
        widths = rows @ form[:-1] + form[-1]
        index = np.clip((widths[:, :, None] >= grid).sum(axis=2) - 1, 0, grid.shape[1] - 2)
        layer = np.arange(len(grid))
        start, stop = grid[layer, index], grid[layer, index + 1]
        return index, np.clip((widths - start) / (stop - start), 0.0, 1.0)


# Files


def load_table(path: str | os.PathLike[str]) -> LatencyTable:
    """Read the table in a file.

    Raises:
        UserError: no such file, no latency table, or one that is damaged.
    """
    try:
        data = read_record(path, "latency table", Any)
    except UserError as error:
        raise UserError(f"{error}; measure it with `pruneopt profile`") from error
    if (
        not isinstance(data, dict)
        or data.get("format") != FORMAT
        or not isinstance(data.get("layers"), dict)
    ):
        raise UserError(
            f'{path} is no latency table: it lacks "format": "{FORMAT}" or its layers; {AGAIN}'
        )
    if data.get("version") != VERSION:
        raise UserError(
            f"{path} is a latency table of version {data.get('version')}; this pruneopt reads "
            f"version {VERSION}"
        )
    for key, kind in (("network", str), ("batch", int), ("device", str), ("threads", int)):
        if not isinstance(data.get(key), kind):
            raise UserError(f"{path} is no latency table: it does not say its {key}")
    layers = {
        name: _times(f"{path}: layer {name}", entry) for name, entry in data["layers"].items()
    }
    return LatencyTable(data["network"], data["batch"], data["device"], data["threads"], layers)


def _times(where: str, entry: Any) -> LayerTimes:
    try:
        inputs = _widths(entry["inputs"])
        outputs = None if entry["outputs"] is None else _widths(entry["outputs"])
        seconds = np.array(entry["seconds"], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where} must hold ascending widths as inputs and outputs, and seconds for each"
        ) from error
    wanted = (len(inputs),) if outputs is None else (len(inputs), len(outputs))
    if seconds.shape != wanted or not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise UserError(f"{where} must hold {' x '.join(map(str, wanted))} seconds above 0")
    return LayerTimes(inputs, outputs, seconds)


def _widths(entry: Any) -> np.ndarray:
    """Return widths of a file, checked: whole, at least 1, ascending; `ValueError` for others."""
    widths = np.array(entry, dtype=np.int64)
    if widths.ndim != 1 or len(widths) == 0 or widths[0] < 1 or (np.diff(widths) <= 0).any():
        raise ValueError("not ascending")
    if any(isinstance(item, float) and not math.isclose(item, round(item)) for item in entry):
        raise ValueError("not whole")
    return widths
