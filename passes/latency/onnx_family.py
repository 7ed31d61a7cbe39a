"""The ONNX files of one network at any widths, without exporting each.

An export takes seconds, a measurement tenths of one. So the network is exported at a few random
width vectors, and what differs between the files is learned: the sizes of weights, and whole
numbers in attributes and constants (the groups of a depthwise convolution, the sizes of a reshape).
Each must follow one axis of the graph, whose length is known at all widths; it is found by
comparing lengths, with more exports until only one is left. A file at other widths is then the
first one with those numbers replaced, and with the weights of the first one repeated or cut to
size: times do not depend on what is in them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.graph_rewrites.slice import slice_graph

__all__ = ["OnnxFamily", "leading_plan", "named_by_place"]

FEWEST, MOST = 2, 6
"""Exports to learn from."""
SMALL = 64
"""Constants of whole numbers with so many elements at most may hold sizes."""

Writer = Callable[[Graph, Path], None]
"""Writes the file of a cut graph."""


def leading_plan(cost: CostModel, widths: np.ndarray) -> dict[str, np.ndarray]:
    """Return the plan of widths `[G]` that keeps the first units of every block."""
    plan = {}
    for name, width in zip(cost.groups, widths.tolist(), strict=True):
        group = cost.coupling.group(name)
        plan[name] = np.sort(
            np.concatenate([block[: width // group.step] for block in group.blocks])
        ).astype(np.int64)
    return plan


class OnnxFamily:
    """The files of a network; `at` gives one as bytes.

    Args:
        cost: of the network, whose graph has its weights.
        write: the target's export.
        seed: for the widths that are exported.

    Raises:
        UserError: exports at different widths are not alike, so that none can be made from another.
    """

    def __init__(self, cost: CostModel, write: Writer, seed: int = 0) -> None:
        self.cost = cost
        self._forms = _length_forms(cost)
        rng = np.random.default_rng(seed)
        rows: list[np.ndarray] = []
        models: list[Any] = []
        places: dict[_Place, np.ndarray] = {}
        while len(models) < FEWEST or (
            len(models) < MOST and any(len(left) > 1 for left in places.values())
        ):
            rows.append(_random_widths(cost, rng, lower=len(rows) % 2 == 1))
            models.append(_exported(cost, rows[-1], write))
            places = self._places(models, np.array(rows)) if len(models) >= FEWEST else {}
        self.model = models[0]
        self._sizes = {
            place: self._forms[forms[0]] for place, forms in places.items() if len(forms)
        }
        self._sizes |= self._paddings(
            [place for place, forms in places.items() if not len(forms)], models, rows
        )

    def _places(self, models: list[Any], rows: np.ndarray) -> dict[_Place, np.ndarray]:
        """Return every number that is not the same in all models, and the forms that are as long as
        it is in each."""
        numbers = [dict(_numbers(model)) for model in models]
        shared = set(numbers[0]).intersection(*numbers)
        # A constant of one element may have an axis of one or none, depending on what the exporter
        # took it for.
        if any(found[place] != 1 for found in numbers for place in found.keys() - shared):
            raise UserError(
                f"the ONNX files of {self.cost.graph.name} at different widths are not alike"
            )
        lengths = np.rint(self._forms[:, :-1] @ rows.T + self._forms[:, -1:])
        places = {}
        for place in sorted(shared):
            values = np.array([found[place] for found in numbers])
            if (values != values[0]).any():
                places[place] = np.flatnonzero((lengths == values).all(axis=1))
        return places

    def _paddings(
        self, left: list[_Place], models: list[Any], rows: list[np.ndarray]
    ) -> dict[_Place, np.ndarray]:
        """Find paddings: two numbers of one constant that follow no axis may be the width of a
        group together. Zeros are padded on both sides of the channels (shortcuts without weights),
        and the units of one group lie on both. Times depend on the sum alone; the first number gets
        it all."""
        found: dict[_Place, np.ndarray] = {}
        for name in dict.fromkeys(place[1] for place in left):
            places = [place for place in left if place[1] == name]
            sums = np.array(
                [
                    sum(size for place, size in _numbers(model) if place in places)
                    for model in models
                ]
            )
            groups = np.flatnonzero((sums == np.array(rows).T).all(axis=1))
            if len(places) != 2 or not len(groups):
                raise UserError(
                    f"the size {places[0]} of the ONNX file of {self.cost.graph.name} follows no "
                    "axis"
                )
            forms = np.eye(1, len(self.cost.groups) + 1, groups[0])[0]
            found |= {places[0]: forms, places[1]: np.zeros_like(forms)}
        return found

    def at(self, widths: np.ndarray) -> bytes:
        """Return the file at widths `[G]`."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        row = np.append(np.asarray(widths, dtype=np.float64), 1.0)
        sizes = {place: round(float(form @ row)) for place, form in self._sizes.items()}
        dims: dict[str, dict[int, int]] = {}
        items: dict[str, dict[int, int]] = {}
        attributes: dict[tuple[str, str], dict[int, int]] = {}
        for (kind, name, which, index), size in sizes.items():
            if kind == "dim":
                dims.setdefault(name, {})[index] = size
            elif kind == "item":
                items.setdefault(name, {})[index] = size
            else:
                attributes.setdefault((name, which), {})[index] = size
        for name, tensor in _tensors(model):
            if name in dims or name in items:
                tensor.CopyFrom(_resized(tensor, dims.get(name, {}), items.get(name, {})))
        for node in model.graph.node:
            for attribute in node.attribute:
                for index, size in attributes.get((node.name, attribute.name), {}).items():
                    if index < 0:
                        attribute.i = size
                    else:
                        attribute.ints[index] = size
        return bytes(model.SerializeToString())


_Place = tuple[str, str, str, int]
"""The place of a number: ``dim``, ``item`` or ``attribute``; the tensor or node; the attribute; the
index."""


def _random_widths(cost: CostModel, rng: np.random.Generator, *, lower: bool) -> np.ndarray:
    """Return widths `[G]`, all in the lower or all in the upper half: every length differs between
    two that follow."""
    full, least = cost.full // cost.step, cost.minimum // cost.step
    middle = (full + least) // 2
    low, high = (least, middle) if lower else (np.minimum(middle + 1, full), full)
    widths: np.ndarray = rng.integers(low, high + 1) * cost.step
    return widths


def _exported(cost: CostModel, widths: np.ndarray, write: Writer) -> Any:
    graph = slice_graph(cost.graph, cost.coupling, leading_plan(cost, widths))
    with tempfile.TemporaryDirectory(prefix="pruneopt-") as folder:
        path = Path(folder) / "model.onnx"
        graph.weights = _told_apart(graph.weights)
        write(graph, path)
        return named_by_place(path)


def named_by_place(path: Path) -> Any:
    """Return the model of a file, with nodes, values and constants named by where they stand.

    An exporter numbers them, and makes equal constants one: at some widths, and not at others.
    """
    model = onnx.load(str(path))
    _name_by_place(model)
    return model


def _told_apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of which no two are equal: an exporter would make them one, at some widths and
    not at others."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in weights.items():
        noise = (
            torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else None
        )
        found[name] = tensor if noise is None else tensor + 0.1 * noise.to(tensor)
    return found


def _name_by_place(model: Any) -> None:
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = {item.name: item.name for item in (*graph.input, *graph.output)}
    kept: dict[str, Any] = {}
    for number, node in enumerate(graph.node):
        node.name = f"node_{number}"
        for index, name in enumerate(node.input):
            if name in tensors:
                tensor = tensors[name]
                own = (
                    f"{node.name}.{index}"
                    if len(tensor.dims) < 2
                    else names.setdefault(name, f"{node.name}.{index}")
                )
                if own not in kept:
                    kept[own] = onnx.TensorProto()
                    kept[own].CopyFrom(tensor)
                    kept[own].name = own
                node.input[index] = own
            elif name:
                node.input[index] = names[name]
        for index, name in enumerate(node.output):
            if name:
                node.output[index] = names.setdefault(name, f"value_{number}_{index}")
    del graph.initializer[:]
    graph.initializer.extend(kept.values())
    del graph.value_info[:]


def _length_forms(cost: CostModel) -> np.ndarray:
    """Return every different length that varies, `[N, G + 1]`."""
    forms = {}
    for value in cost.graph.values:
        for axis in range(value.type.rank):
            form = cost.length_form(value, axis)
            if form[:-1].any():
                forms[form.tobytes()] = form
    return np.stack(list(forms.values())) if forms else np.zeros((0, len(cost.groups) + 1))


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the constants of a model, by name."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _numbers(model: Any) -> Iterator[tuple[_Place, int]]:
    """Yield every whole number of a model that can be a size."""
    for name, tensor in _tensors(model):
        for axis, size in enumerate(tensor.dims):
            yield ("dim", name, "", axis), size
        if tensor.data_type == onnx.TensorProto.INT64 and np.prod(tensor.dims) <= SMALL:
            for index, item in enumerate(numpy_helper.to_array(tensor).reshape(-1).tolist()):
                yield ("item", name, "", index), item
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.INT:
                yield ("attribute", node.name, attribute.name, -1), attribute.i
            for index, item in enumerate(attribute.ints):
                yield ("attribute", node.name, attribute.name, index), item


def _resized(tensor: Any, dims: dict[int, int], items: dict[int, int]) -> Any:
    array = numpy_helper.to_array(tensor)
    shape = [dims.get(axis, size) for axis, size in enumerate(array.shape)]
    array = np.resize(array, shape)
    for index, item in items.items():
        array.reshape(-1)[index] = item
    return numpy_helper.from_array(array, tensor.name)
