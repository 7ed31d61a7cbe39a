"""The text form of a graph: one line for every group, parameter and op.

The same graph gives the same bytes.

The grammar stands in `pruneopt.ir.text.parser`, which reads the text back. Notes and weights are no
part of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Operand, Structure, Value
from pruneopt.ir.types import (
    Attr,
    Axis,
    BatchSize,
    ChannelGroup,
    Dim,
    Keyword,
    Location,
    Part,
    SplitAxis,
    TensorType,
)

__all__ = [
    "attr_text",
    "dim_text",
    "group_text",
    "name_text",
    "op_text",
    "print_graph",
    "quoted",
    "type_text",
    "value_text",
]

_PLAIN = re.compile(r"[A-Za-z0-9_.]+")
Widths = Mapping[str, int]


def print_graph(graph: Graph, *, locations: bool = True) -> str:
    """Return the graph as text that `ir.text.parser.parse_graph` reads back to an equal graph.

    Without ``locations`` the ops lose where they came from, which keeps snapshots stable when a
    model's file is edited.
    """
    widths = {group.name: group.width for group in graph.channels}
    inputs = ", ".join(
        f"{value_text(value)}: {type_text(value.type, widths)}" for value in graph.inputs
    )
    header = [f"channels {group_text(group)}" for group in graph.channels]
    weights = [
        f"{v.kind} {value_text(v)}: {type_text(v.type, widths)}" for v in graph.params.values()
    ]
    weights += [
        f"alias {name_text('@', alias)} = {name_text('@', name)}"
        for alias, name in graph.aliases.items()
    ]
    body = [op_text(op, widths, locations=locations) for op in graph.ops]
    body.append(f"return {_structure_text(graph.outputs)}")
    sections = [
        "".join(f"  {line}\n" for line in section) for section in (header, weights, body) if section
    ]
    return f"graph {name_text('@', graph.name)}({inputs}) {{\n" + "\n".join(sections) + "}\n"


def quoted(text: str) -> str:
    """Return a string literal: double quotes, ASCII, the escapes of JSON."""
    return json.dumps(text)


def name_text(sigil: str, name: str) -> str:
    """Return a name behind its sigil.

    It is quoted if it has characters beyond letters, digits, dots and underscores.
    """
    return sigil + (name if _PLAIN.fullmatch(name) else quoted(name))


def value_text(value: Value) -> str:
    """Return ``@name`` for a parameter, buffer or constant, ``%name`` for any other value."""
    return name_text("@" if value.is_weight else "%", value.name)


# Types


def type_text(type: TensorType, widths: Widths | None = None) -> str:
    """Return ``f32[N, $conv1, 32, 32]``; ``widths`` are the declared widths of the groups."""
    return f"{type.dtype}[{', '.join(dim_text(dim, widths) for dim in type.dims)}]"


def dim_text(dim: Dim, widths: Widths | None = None) -> str:
    """Return one dimension as text.

    A part that covers its whole group (by ``widths``) prints without a range.
    """
    widths = widths or {}
    if isinstance(dim, int | BatchSize):
        return str(dim)
    if isinstance(dim, Axis):
        text = " ++ ".join(_part_text(part, widths) for part in dim.parts)
        # Without a group or a `++` the text would read as a plain size.
        return f"({text})" if len(dim.parts) < 2 and not dim.groups else text
    if isinstance(dim, SplitAxis):
        size = "" if widths.get(dim.group) == dim.divisor * dim.size else f" = {dim.size}"
        return f"{name_text('$', dim.group)} / {dim.divisor}{size}"
    groups = ", ".join(name_text("$", group) for group in dim.groups)
    return f"{dim.size}~({groups}){name_text('#', dim.digest)}"


def _part_text(part: Part, widths: Widths) -> str:
    units = f"[{part.start}:{part.start + part.count}]"
    if part.group is None:
        text = f"_{units}" if part.start else str(part.count)
    else:
        whole = part.start == 0 and widths.get(part.group) == part.count
        text = name_text("$", part.group) + ("" if whole else units)
    return text if part.repeat == 1 else f"{text} * {part.repeat}"


def group_text(group: ChannelGroup) -> str:
    """Return ``$conv2 = 128 frozen("why") blocks 32 keep [0:8, 12:16]``, with what applies."""
    text = f"{name_text('$', group.name)} = {group.width}"
    if group.frozen is not None:
        text += f" frozen({quoted(group.frozen)})"
    if group.blocks != 1:
        text += f" blocks {group.blocks}"
    if group.keep is not None:
        text += f" keep [{', '.join(f'{start}:{stop}' for start, stop in group.keep)}]"
    return text


# Ops


def op_text(op: Op, widths: Widths | None = None, *, locations: bool = True) -> str:
    """Return one op on one line."""
    results = ", ".join(value_text(value) for value in op.results)
    types = ", ".join(type_text(value.type, widths) for value in op.results)
    attrs = ", ".join(f"{name} = {attr_text(value)}" for name, value in _printed_attrs(op))
    text = f"{results} = " if results else ""
    text += f"{op.target.removesuffix('.default')}({_operands_text(op.operands)})"
    text += f" {{{attrs}}}" if attrs else ""
    text += f": {types}" if types else ""
    return text + (_location_text(op.loc) if locations else "")


def _operands_text(operands: tuple[Operand, ...]) -> str:
    count = len(operands)
    while count and operands[count - 1] is None:
        count -= 1
    return ", ".join(_operand_text(operand) for operand in operands[:count])


def _operand_text(operand: Operand) -> str:
    if isinstance(operand, Value):
        return value_text(operand)
    if isinstance(operand, tuple):
        return f"[{', '.join('none' if value is None else value_text(value) for value in operand)}]"
    return attr_text(operand)


def _printed_attrs(op: Op) -> Iterable[tuple[str, Attr]]:
    """Return the attributes that differ from the schema's default, in its order.

    All of them if torch does not know the op.

    Attributes that the schema lacks come last: a wrong graph prints too, so that the verifier can
    show it.
    """
    from pruneopt.ir.schema import signature  # starts torch, which importing the printer must not

    try:
        arguments = signature(op.target).attrs
    except UserError:
        return op.attrs.items()
    known = {argument.name for argument in arguments}
    printed = [
        (argument.name, op.attrs[argument.name])
        for argument in arguments
        if argument.name in op.attrs
        and not (
            argument.has_default
            and attr_text(op.attrs[argument.name]) == attr_text(argument.default)
        )
    ]
    return [*printed, *((name, value) for name, value in op.attrs.items() if name not in known)]


def attr_text(attr: Attr) -> str:
    """Return an attribute's text; a number reads back to the identical value and type."""
    if attr is None:
        return "none"
    if isinstance(attr, bool):
        return "true" if attr else "false"
    if isinstance(attr, float):
        return "nan" if math.isnan(attr) else repr(attr)
    if isinstance(attr, str):
        return quoted(attr)
    if isinstance(attr, tuple):
        return f"[{', '.join(attr_text(item) for item in attr)}]"
    return str(attr) if isinstance(attr, int | BatchSize | Keyword) else repr(attr)


def _location_text(loc: Location) -> str:
    parts = []
    if loc.module or loc.module_type:
        parts.append(quoted(loc.module))
    if loc.module_type:
        plain = re.fullmatch(r"[A-Za-z_]\w*", loc.module_type, re.ASCII)
        parts.append(loc.module_type if plain else quoted(loc.module_type))
    if loc.file or loc.line:
        parts.append(f"{quoted(loc.file)}:{loc.line}")
    return f" loc({' '.join(parts)})" if parts else ""


def _structure_text(structure: Structure) -> str:
    """Return the outputs as text: Python's brackets, ``none``, ``true`` and ``false``."""
    if isinstance(structure, Value):
        return value_text(structure)
    if isinstance(structure, dict):
        items = [f"{quoted(key)}: {_structure_text(item)}" for key, item in structure.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(structure, list):
        return f"[{', '.join(map(_structure_text, structure))}]"
    if isinstance(structure, tuple):
        comma = "," if len(structure) == 1 else ""
        return f"({', '.join(map(_structure_text, structure))}{comma})"
    return attr_text(structure)
