"""A graph as plain data (`--json`), with the content of the text form.

Values are written as in the text, ``%name`` and ``@name``. What JSON cannot tell apart is tagged: a
size in the batch is ``{"batch": [scale, offset, divisor]}``, a bare word ``{"word": "mode"}``, a
float without a JSON spelling ``{"float": "inf"}``; in what the network returns, a value is
``{"value": "%x"}``, a tuple ``{"tuple": [...]}`` and a dictionary ``{"dict": {...}}``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from msgspec import convert

from pruneopt.errors import PruneoptError, UserError
from pruneopt.ir.graph import Graph, Op, Operand, Structure, Value
from pruneopt.ir.schema import DTYPES, attr_problem, signature
from pruneopt.ir.text.sizes import type_problem
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

WeightKind = Literal["param", "buffer", "constant"]
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
    except RecursionError as error:
        raise UserError(
            "this data is not a graph that pruneopt wrote: it nests too deep"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"this data is not a graph that pruneopt wrote: {reason}") from error
    except PruneoptError as error:
        raise UserError(f"this data is not a graph that pruneopt wrote: {error}") from error


def _read_graph(data: Mapping[str, Data]) -> Graph:
    json.dumps(data, ensure_ascii=False).encode()  # half a character can be written nowhere
    graph = Graph(convert(data["name"], str))
    graph.declare_groups(convert(item, ChannelGroup) for item in data["channels"])
    _refuse_repeats([group.name for group in graph.channels])
    values: dict[str, Value] = {}

    def define(value: Value) -> None:
        values[str(value)] = value

    for item in data["inputs"]:
        define(graph.add_input(convert(item["name"], str), _type(item["type"])))
    for item in data["params"]:
        name, kind = convert(item["name"], str), convert(item["kind"], WeightKind)
        define(graph.add_param(name, _type(item["type"]), kind))
    graph.aliases = convert(data["aliases"], dict[str, str])
    _refuse_repeats([*graph.params, *graph.aliases])
    unknown = set(graph.aliases.values()) - graph.params.keys()
    if unknown:
        raise ValueError(f"there is no parameter {min(unknown)!r} for an alias")
    for item in data["ops"]:
        op = _add_op(graph, item, values)
        for value in op.results:
            define(value)
    graph.outputs = _structure(data["outputs"], values)
    return graph


def _refuse_repeats(names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is defined twice")


def _add_op(graph: Graph, item: Data, values: Mapping[str, Value]) -> Op:
    target = convert(item["target"], str)
    known = {argument.name: argument for argument in signature(target).attrs}
    operands = [_operand(operand, values) for operand in item["operands"]]
    attrs = {name: _attr(value) for name, value in convert(item["attrs"], dict[str, Any]).items()}
    for name, attr in attrs.items():
        if name not in known:
            raise ValueError(f"{target} has no attribute {name!r}")
        problem = attr_problem(known[name], attr)
        if problem is not None:
            raise ValueError(f"{target}: {problem}")
    results = [(convert(result["name"], str), _type(result["type"])) for result in item["results"]]
    return graph.add_op(target, operands, attrs, results, convert(item["loc"], Location))


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
    dtype = convert(data["dtype"], str)
    if dtype not in DTYPES and dtype != "none":
        raise ValueError(f"{dtype!r} is no type of numbers")
    found = TensorType(dtype, tuple(_dim(dim) for dim in data["dims"]))
    problem = type_problem(found)
    if problem is not None:
        raise ValueError(problem)
    return found


def _dim(data: Data) -> Dim:
    if not isinstance(data, dict):
        return convert(data, int)
    ((kind, content),) = data.items()
    if kind == "batch":
        return _batch(content)
    if kind == "axis":
        return Axis(convert(content, tuple[Part, ...]))
    if kind == "split":
        return convert(content, SplitAxis)
    if kind == "indexed":
        return convert(content, IndexedAxis)
    raise ValueError(f"{kind!r} is no kind of dimension")


def _batch(data: Data) -> BatchSize:
    found = BatchSize(*convert(data, tuple[int, int, int]))
    if found.divisor == 0:
        raise ValueError("the batch size is divided by 0")
    return found


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
        return _special(content)
    if kind == "batch":
        return _batch(content)
    if kind == "word":
        return Keyword(convert(content, str))
    raise ValueError(f"{kind!r} is no kind of attribute")


def _special(data: Data) -> float:
    return float(convert(data, Literal["inf", "-inf", "nan"]))


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
        return _special(content)
    raise ValueError(f"{kind!r} is no kind of output")
