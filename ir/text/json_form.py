"""A graph as plain data (`--json`), with the content of the text form.

Values are written as in the text, ``%name`` and ``@name``. What JSON cannot tell apart is tagged: a
size in the batch is ``{"batch": [scale, offset, divisor]}``, a bare word ``{"word": "mode"}``, a
float without a JSON spelling ``{"float": "inf"}``; in what the network returns, a value is
``{"value": "%x"}``, a tuple ``{"tuple": [...]}`` and a dictionary ``{"dict": {...}}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pruneopt.errors import PruneoptError, UserError
from pruneopt.ir.graph import Graph, Operand, Structure, Value
from pruneopt.ir.types import (
    Attr,
    Axis,
    BatchSize,
    ChannelGroup,
    Dim,
    IndexedAxis,
    Keyword,
    Location,
    Part,
    SplitAxis,
    TensorType,
)

__all__ = ["graph_from_dict", "graph_to_dict"]

Data = Any
"""Anything that json.loads returns."""


def graph_to_dict(graph: Graph) -> dict[str, Data]:
    """Return the graph as data that JSON can hold; as in the text, without notes and tensors."""
    return {
        "name": graph.name,
        "inputs": [_value_data(value) for value in graph.inputs],
        "channels": [asdict(group) for group in graph.channels],
        "params": [{**_value_data(value), "kind": value.kind} for value in graph.params.values()],
        "aliases": dict(graph.aliases),
        "ops": [
            {
                "target": op.target,
                "operands": [_operand_data(operand) for operand in op.operands],
                "attrs": {name: _attr_data(value) for name, value in op.attrs.items()},
                "results": [_value_data(value) for value in op.results],
                "loc": asdict(op.loc),
            }
            for op in graph.ops
        ],
        "outputs": _structure_data(graph.outputs),
    }


def graph_from_dict(data: Mapping[str, Data]) -> Graph:
    """Return the graph that `graph_to_dict` wrote.

    Raises `UserError` if the data is something else.
    """
    try:
        return _read_graph(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"this data is not a graph that pruneopt wrote: {reason}") from error
    except PruneoptError as error:
        raise UserError(f"this data is not a graph that pruneopt wrote: {error}") from error


def _read_graph(data: Mapping[str, Data]) -> Graph:
    graph = Graph(data["name"])
    graph.declare_groups(_group(item) for item in data["channels"])
    values: dict[str, Value] = {}

    def define(value: Value) -> None:
        values[str(value)] = value

    for item in data["inputs"]:
        define(graph.add_input(item["name"], _type(item["type"])))
    for item in data["params"]:
        define(graph.add_param(item["name"], _type(item["type"]), item["kind"]))
    graph.aliases = dict(data["aliases"])
    for item in data["ops"]:
        operands = [_operand(operand, values) for operand in item["operands"]]
        attrs = {name: _attr(value) for name, value in item["attrs"].items()}
        results = [(result["name"], _type(result["type"])) for result in item["results"]]
        op = graph.add_op(item["target"], operands, attrs, results, Location(**item["loc"]))
        for value in op.results:
            define(value)
    graph.outputs = _structure(data["outputs"], values)
    return graph


# Types


def _value_data(value: Value) -> dict[str, Data]:
    dims = [_dim_data(dim) for dim in value.type.dims]
    return {"name": value.name, "type": {"dtype": value.type.dtype, "dims": dims}}


def _dim_data(dim: Dim) -> Data:
    if isinstance(dim, int):
        return dim
    if isinstance(dim, BatchSize):
        return {"batch": [dim.scale, dim.offset, dim.divisor]}
    if isinstance(dim, Axis):
        return {"axis": [asdict(part) for part in dim.parts]}
    return {"split" if isinstance(dim, SplitAxis) else "indexed": asdict(dim)}


def _type(data: Data) -> TensorType:
    return TensorType(data["dtype"], tuple(_dim(dim) for dim in data["dims"]))


def _dim(data: Data) -> Dim:
    if isinstance(data, int):
        return data
    ((kind, content),) = data.items()
    if kind == "batch":
        return BatchSize(*content)
    if kind == "axis":
        return Axis(tuple(Part(**part) for part in content))
    if kind == "split":
        return SplitAxis(**content)
    if kind == "indexed":
        return IndexedAxis(content["size"], tuple(content["groups"]), content["digest"])
    raise ValueError(f"{kind!r} is no kind of dimension")


def _group(data: Data) -> ChannelGroup:
    keep = data["keep"]
    ranges = None if keep is None else tuple((start, stop) for start, stop in keep)
    return ChannelGroup(data["name"], data["width"], data["frozen"], data["blocks"], ranges)


# Operands and attributes


def _operand_data(operand: Operand) -> Data:
    if isinstance(operand, Value):
        return str(operand)
    if isinstance(operand, tuple):
        return [None if value is None else str(value) for value in operand]
    return _attr_data(operand)


def _operand(data: Data, values: Mapping[str, Value]) -> Operand:
    if isinstance(data, str):
        return values[data]
    if isinstance(data, list):
        return tuple(None if name is None else values[name] for name in data)
    attr = _attr(data)
    if attr is None or isinstance(attr, bool | int | float):
        return attr
    raise ValueError(f"{data!r} is no operand")


def _attr_data(attr: Attr) -> Data:
    if isinstance(attr, float) and not math.isfinite(attr):
        return {"float": repr(attr)}
    if isinstance(attr, BatchSize):
        return {"batch": [attr.scale, attr.offset, attr.divisor]}
    if isinstance(attr, Keyword):
        return {"word": attr.name}
    if isinstance(attr, tuple):
        return [_attr_data(item) for item in attr]
    return attr


def _attr(data: Data) -> Attr:
    if isinstance(data, list):
        return tuple(_attr(item) for item in data)
    if data is None or isinstance(data, bool | int | float | str):
        return data
    ((kind, content),) = data.items()
    if kind == "float":
        return float(content)
    if kind == "batch":
        return BatchSize(*content)
    if kind == "word":
        return Keyword(content)
    raise ValueError(f"{kind!r} is no kind of attribute")


# What the network returns


def _structure_data(structure: Structure) -> Data:
    if isinstance(structure, Value):
        return {"value": str(structure)}
    if isinstance(structure, tuple):
        return {"tuple": [_structure_data(item) for item in structure]}
    if isinstance(structure, list):
        return [_structure_data(item) for item in structure]
    if isinstance(structure, dict):
        return {"dict": {key: _structure_data(item) for key, item in structure.items()}}
    return _attr_data(structure)


def _structure(data: Data, values: Mapping[str, Value]) -> Structure:
    if isinstance(data, list):
        return [_structure(item, values) for item in data]
    if data is None or isinstance(data, bool | int | float | str):
        return data
    ((kind, content),) = data.items()
    if kind == "value":
        return values[content]
    if kind == "tuple":
        return tuple(_structure(item, values) for item in content)
    if kind == "dict":
        return {key: _structure(item, values) for key, item in content.items()}
    if kind == "float":
        return float(content)
    raise ValueError(f"{kind!r} is no kind of output")
