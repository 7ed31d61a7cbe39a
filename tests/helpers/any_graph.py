"""Any graph that can be built, for hypothesis."""

from __future__ import annotations

import math
import string

from hypothesis import strategies as st

from pruneopt.ir.graph import Graph, Operand, Structure, Value
from pruneopt.ir.schema import DTYPES, Argument, signature
from pruneopt.ir.text.sizes import type_problem
from pruneopt.ir.types import (
    DEVICE,
    MODE,
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

__all__ = ["ATTRS", "graphs", "structures", "types"]

# Ops with every kind of operand and attribute, and how many results a call of each may have.
TARGETS = {
    "aten.relu.default": (1, 1),
    "aten.add.Tensor": (1, 1),
    "aten.conv2d.default": (1, 1),
    "aten.batch_norm.default": (1, 1),
    "aten.cat.default": (1, 1),
    "aten.index.Tensor": (1, 1),
    "aten.full.default": (1, 1),
    "aten.to.dtype": (1, 1),
    "aten.gelu.default": (1, 1),
    "aten.clamp.default": (1, 1),
    "aten.max_pool2d_with_indices.default": (2, 2),
    "aten.split_with_sizes.default": (0, 3),
    "aten.scaled_dot_product_attention.default": (1, 1),
}
NAMES = st.text(string.ascii_letters + string.digits + "_.", min_size=1, max_size=8) | st.text(
    max_size=4
)
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1.0, 1e-05, 1e16, math.inf, -math.inf, math.nan])
INTEGERS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.booleans() | INTEGERS | FLOATS
BATCHES = st.builds(
    BatchSize, st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 1, 2, -3, 8])
)
WORDS = st.sampled_from([MODE, DEVICE, Keyword("f32"), Keyword("bool"), Keyword("channels_last")])
ATTRS = st.recursive(
    st.none() | NUMBERS | st.text() | BATCHES | WORDS,
    lambda items: st.lists(items, max_size=3).map(tuple),
    max_leaves=5,
)
LOCATIONS = st.builds(
    Location, NAMES, st.sampled_from(["", "Conv2d", "odd type"]), NAMES, st.integers(0, 999)
)


@st.composite
def channel_groups(draw: st.DrawFn) -> ChannelGroup:
    width = draw(st.integers(0, 64))
    ends = sorted(draw(st.sets(st.integers(0, width), max_size=4)))
    ranges = tuple(zip(ends[::2], ends[1::2], strict=False))
    frozen, blocks = draw(st.none() | st.text(max_size=5)), draw(st.integers(1, 4))
    return ChannelGroup(draw(NAMES), width, frozen, blocks, draw(st.none() | st.just(ranges)))


@st.composite
def dims(draw: st.DrawFn, groups: list[ChannelGroup]) -> Dim:
    plain = st.integers(0, 4096) | BATCHES
    kinds = ["plain", "axis", *(["split", "indexed"] if groups else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "plain":
        return draw(plain)
    if kind == "axis":
        return Axis(tuple(draw(st.lists(parts(groups), max_size=3))))
    if kind == "indexed":
        names = draw(st.lists(st.sampled_from([group.name for group in groups]), max_size=2))
        return IndexedAxis(draw(st.integers(0, 99)), tuple(names), draw(NAMES))
    group = draw(st.sampled_from(groups))
    divisor = draw(st.integers(1, 4))
    return SplitAxis(group.name, divisor, draw(st.sampled_from([group.width // divisor, 5])))


@st.composite
def parts(draw: st.DrawFn, groups: list[ChannelGroup]) -> Part:
    group = draw(st.sampled_from([None, *groups]))
    width = 20 if group is None else group.width
    start = draw(st.sampled_from([0, 0, width // 2]))
    count = draw(st.sampled_from([width - start, (width - start) // 2]))
    return Part(group.name if group else None, count, start, draw(st.sampled_from([1, 1, 49])))


def types(groups: list[ChannelGroup]) -> st.SearchStrategy[TensorType]:
    dtypes = st.sampled_from([*DTYPES, "none"])
    found = st.builds(TensorType, dtypes, st.lists(dims(groups), max_size=4).map(tuple))
    return found.filter(lambda type: type_problem(type) is None)


def attrs(argument: Argument) -> st.SearchStrategy[Attr]:
    """Any value of the type that an argument has."""
    whole = INTEGERS | BATCHES
    kinds: dict[str, st.SearchStrategy[Attr]] = {
        "int": whole | st.sampled_from([Keyword("f32"), Keyword("channels_last")]),
        "float": whole | FLOATS,
        "bool": st.booleans() | st.just(MODE),
        "number": st.booleans() | whole | FLOATS,
        "str": st.text(),
        "Device": st.just(DEVICE),
    }
    listed = "List[" in argument.type
    one = kinds[argument.type.replace("Optional[", "").replace("List[", "").rstrip("]")]
    return st.none() | (st.lists(one, max_size=3).map(tuple) if listed else one)


def operands(argument: Argument, values: list[Value]) -> st.SearchStrategy[Operand]:
    value = st.sampled_from(values)
    if "List[" in argument.type:
        item = value | st.none() if "Optional" in argument.type else value
        return st.lists(item, max_size=3).map(tuple)
    return value | NUMBERS if not argument.has_default else value | st.none()


def structures(values: list[Value]) -> st.SearchStrategy[Structure]:
    leaves = st.sampled_from(values) | st.none() | NUMBERS | st.text(max_size=5)
    return st.recursive(
        leaves,
        lambda items: (
            st.lists(items, max_size=3)
            | st.lists(items, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=5), items, max_size=3)
        ),
        max_leaves=6,
    )


def add_ops(draw: st.DrawFn, graph: Graph, groups: list[ChannelGroup]) -> None:
    for target in draw(st.lists(st.sampled_from(list(TARGETS)), max_size=6)):
        sig, values = signature(target), list(graph.values)
        chosen: dict[str, Attr] = {
            argument.name: draw(
                st.just(argument.default) | attrs(argument)
                if argument.has_default
                else attrs(argument)
            )
            for argument in sig.attrs
        }
        low, high = TARGETS[target]
        names = draw(st.lists(NAMES, min_size=low, max_size=high, unique=True))
        results = [(graph.fresh_name(name), draw(types(groups))) for name in names]
        if len({name for name, _ in results}) == len(results):
            graph.add_op(
                target,
                [draw(operands(a, values)) for a in sig.operands],
                chosen,
                results,
                draw(LOCATIONS),
            )


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph that the methods of `Graph` can build; its types need not make sense."""
    graph = Graph(draw(NAMES))
    groups = draw(st.lists(channel_groups(), max_size=3, unique_by=lambda group: group.name))
    graph.declare_groups(groups)
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        graph.add_input(name, draw(types(groups)))
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        graph.add_param(
            name, draw(types(groups)), draw(st.sampled_from(["param", "buffer", "constant"]))
        )
    if graph.params:
        for alias in draw(
            st.lists(NAMES.filter(lambda name: name not in graph.params), max_size=2, unique=True)
        ):
            graph.aliases[alias] = draw(st.sampled_from(list(graph.params)))
    add_ops(draw, graph, groups)
    graph.outputs = draw(structures(list(graph.values)))
    return graph
