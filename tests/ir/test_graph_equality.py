"""Graphs are equal if they say the same, and unequal after any one change of what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.any_graph import ATTRS, graphs, structures, types
from hypothesis import given
from hypothesis import strategies as st

from pruneopt.ir.graph import Graph, Operand
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.types import Attr, BatchSize, ChannelGroup, Location, TensorType

Change = Callable[[Graph, st.DrawFn], None]


def rename_graph(graph: Graph, draw: st.DrawFn) -> None:
    graph.name = draw(st.text(max_size=4))


def rename_a_value(graph: Graph, draw: st.DrawFn) -> None:
    value = draw(st.sampled_from([*graph.inputs, *(v for op in graph.ops for v in op.results)]))
    value.name = graph.fresh_name(draw(st.text("abc", min_size=1, max_size=3)))


def retype_a_value(graph: Graph, draw: st.DrawFn) -> None:
    value = draw(st.sampled_from(list(graph.values)))
    graph.set_type(value, draw(types(list(graph.channels))))


def change_an_attribute(graph: Graph, draw: st.DrawFn) -> None:
    op, name = draw(st.sampled_from([(op, name) for op in graph.ops for name in op.attrs]))
    graph.set_attr(op, name, draw(ATTRS))


def change_an_operand(graph: Graph, draw: st.DrawFn) -> None:
    op = draw(st.sampled_from([op for op in graph.ops if op.operands]))
    index = draw(st.integers(0, len(op.operands) - 1))
    operand = op.operands[index]
    if isinstance(operand, tuple):
        graph.set_operand(op, index, (*operand, graph.inputs[0]))
    else:
        graph.set_operand(op, index, draw(st.sampled_from(list(graph.values))))


def move_an_op(graph: Graph, draw: st.DrawFn) -> None:
    order = list(graph.ops)
    order.insert(0, order.pop(draw(st.integers(0, len(order) - 1))))
    graph._ops = dict.fromkeys(order)


def place_an_op_elsewhere(graph: Graph, draw: st.DrawFn) -> None:
    draw(st.sampled_from(graph.ops)).loc = Location("elsewhere", "Block", "net.py", 3)


def change_a_kind(graph: Graph, draw: st.DrawFn) -> None:
    value = draw(st.sampled_from(list(graph.params.values())))
    value.kind = draw(st.sampled_from(["param", "buffer", "constant"]))


def return_something_else(graph: Graph, draw: st.DrawFn) -> None:
    graph.outputs = draw(structures(list(graph.values)))


def alias_a_weight(graph: Graph, draw: st.DrawFn) -> None:
    graph.aliases["another name"] = draw(st.sampled_from(list(graph.params)))


def declare_a_group(graph: Graph, draw: st.DrawFn) -> None:
    graph.declare_groups([*graph.channels, ChannelGroup("one more", draw(st.integers(0, 9)))])


OF_OPS: list[Change] = [move_an_op, place_an_op_elsewhere]
OF_WEIGHTS: list[Change] = [change_a_kind, alias_a_weight]
OF_ALL: list[Change] = [
    *(rename_graph, rename_a_value, retype_a_value, return_something_else, declare_a_group),
]


@st.composite
def changed(draw: st.DrawFn) -> tuple[Graph, Graph]:
    """A graph, and a copy in which one thing was drawn anew: mostly it is another one."""
    graph = draw(graphs())
    other = graph.copy()
    changes = [*OF_ALL, *(OF_OPS if graph.ops else []), *(OF_WEIGHTS if graph.params else [])]
    changes += [change_an_attribute] if any(op.attrs for op in graph.ops) else []
    changes += [change_an_operand] if any(op.operands for op in graph.ops) else []
    draw(st.sampled_from(changes))(other, draw)
    return graph, other


@given(changed())
def test_graphs_are_equal_exactly_where_their_texts_are(pair: tuple[Graph, Graph]) -> None:
    graph, other = pair
    assert (graph == other) == (print_graph(graph) == print_graph(other))
    assert (graph != other) != (graph == other)


def small(number: Attr = 1, operand: Operand = 2, where: str = "block") -> Graph:
    graph = Graph("Small")
    x = graph.add_input("x", TensorType("f32", (BatchSize(), 4)))
    w = graph.add_param("w", TensorType("f32", (4,)))
    attrs: dict[str, Attr] = {"alpha": number}
    add = graph.add_op("aten.add.Tensor", [x, operand], attrs, [("a", x.type)], Location(where))
    mul = graph.add_op("aten.mul.Tensor", [add.result, w], {}, [("m", x.type)], Location(where))
    graph.outputs = (mul.result, [add.result], "%x")
    return graph


CHANGED: dict[str, Callable[[], Graph]] = {
    "a number of another type": lambda: small(1.0),
    "a truth value": lambda: small(True),
    "a text for a number": lambda: small("1"),
    "an operand of another type": lambda: small(operand=2.0),
    "the sign of zero": lambda: small(0.0),
    "a location": lambda: small(where="head"),
    "a name": lambda: parse_graph(print_graph(small()).replace("%m", "%n")),
    "a type": lambda: parse_graph(print_graph(small()).replace("@w: f32[4]", "@w: f32[1]")),
    "a dtype": lambda: parse_graph(print_graph(small()).replace("@w: f32[4]", "@w: f16[4]")),
    "a kind": lambda: parse_graph(print_graph(small()).replace("param @w", "buffer @w")),
    "an op": lambda: parse_graph(print_graph(small()).replace("aten.mul.", "aten.div.")),
    "a list for a tuple": lambda: parse_graph(print_graph(small()).replace("[%a]", "(%a,)")),
    "a text for a value": lambda: parse_graph(print_graph(small()).replace("[%a]", '["%a"]')),
    "a value for a text": lambda: parse_graph(print_graph(small()).replace('"%x"', "%x")),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_graph_with_one_change_is_another(name: str) -> None:
    base = small(-0.0) if name == "the sign of zero" else small()
    assert CHANGED[name]() != base
    assert small() == small()


def test_the_order_of_ops_counts_and_that_of_attributes_does_not() -> None:
    graph, other = small(), small()
    for one in (graph, other):
        one.add_op("aten.relu.default", [one.inputs[0]], {}, [("r", one.inputs[0].type)])
    assert graph == other
    other._ops = dict.fromkeys([other.ops[2], *other.ops[:2]])
    assert graph != other
    x = TensorType("f32", (3,))
    left, right = Graph("g"), Graph("g")
    for one, attrs in ((left, {"a": 1, "b": 2}), (right, {"b": 2, "a": 1})):
        one.add_op("mine.frobnicate.default", [one.add_input("x", x)], attrs, [("y", x)])
    assert left == right


def test_nan_equals_itself() -> None:
    assert small(float("nan")) == small(float("nan"))


def test_neither_weights_nor_notes_are_looked_at() -> None:
    graph, other = small(), small()
    graph.weights, other.weights = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    graph.notes, graph.exported_because = ("a note",), "a reason"
    assert graph == other


def test_a_graph_is_no_key_and_equal_to_graphs_only() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(small())
    assert small() != print_graph(small())
    assert small().ops != small().ops
    assert small().inputs != small().inputs
