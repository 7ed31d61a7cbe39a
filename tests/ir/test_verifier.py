"""The verifier finds each kind of corruption and shows where it is; edits through `Graph` keep a
graph valid."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneopt.errors import InternalError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.types import (
    Axis,
    BatchSize,
    ChannelGroup,
    Dim,
    IndexedAxis,
    Keyword,
    Part,
    SplitAxis,
    TensorType,
)
from pruneopt.ir.verifier import IRError, Verifier, verify_graph

TEXT = """\
graph @g(%x: f32[N, 3, 8, 8]) {
  channels $a = 4 blocks 2
  channels $b = 6 frozen("model output")

  param @w: f32[$a, 3, 3, 3]
  buffer @scale: f32[]
  alias @tied = @w

  %conv = aten.conv2d(%x, @w) {padding = [1, 1]}: f32[N, $a, 8, 8] loc("conv" Conv2d "net.py":3)
  %mul = aten.mul.Tensor(%conv, @scale): f32[N, $a, 8, 8] loc("" Net "net.py":4)
  %s, %t = aten.split_with_sizes(%mul) {split_sizes = [2, 2], dim = 1}\
: f32[N, $a[0:2], 8, 8], f32[N, $a[2:4], 8, 8]
  %cat = aten.cat([%t, %s, %s]) {dim = 1}: f32[N, $b, 8, 8]
  return {"out": %cat}
}
"""


@pytest.fixture
def graph() -> Graph:
    graph = parse_graph(TEXT)
    graph.weights = {"w": torch.zeros(4, 3, 3, 3), "scale": torch.ones(())}
    verify_graph(graph)
    return graph


def op_named(graph: Graph, base: str) -> Op:
    return next(op for op in graph.ops if op.base == base)


def value_named(graph: Graph, name: str) -> Value:
    return next(value for value in graph.values if value.name == name)


def swap_groups(graph: Graph, **changes: Any) -> None:
    graph.channels = (replace(graph.channels[0], **changes), *graph.channels[1:])


def set_dim(graph: Graph, name: str, index: int, dim: Dim) -> None:
    value = value_named(graph, name)
    value.type = TensorType(
        value.type.dtype, (*value.type.dims[:index], dim, *value.type.dims[index + 1 :])
    )


def reverse_ops(graph: Graph) -> None:
    graph._ops = dict.fromkeys(reversed(graph.ops))


def rename_result(graph: Graph) -> None:
    value_named(graph, "mul").name = "conv"


def read_foreign_value(graph: Graph) -> None:
    graph.set_operand(
        op_named(graph, "mul"), 0, Value("conv", value_named(graph, "conv").type, "result")
    )


def forget_use(graph: Graph) -> None:
    value_named(graph, "s")._uses.clear()


def invent_use(graph: Graph) -> None:
    value_named(graph, "x")._uses[op_named(graph, "cat")] = 1


def add_attribute(graph: Graph) -> None:
    op = graph.ops[0]
    op.attrs = {**op.attrs, "colour": 1}


def drop_attribute(graph: Graph) -> None:
    op = op_named(graph, "conv2d")
    op.attrs = {name: value for name, value in op.attrs.items() if name != "groups"}


def shrink_weight(graph: Graph) -> None:
    graph.weights["w"] = torch.zeros(3, 3, 3, 3)


def add_unread_weight(graph: Graph) -> None:
    graph.add_param("extra", TensorType("f32", (2,)))
    graph.weights["extra"] = torch.zeros(2)


def set_target(graph: Graph) -> None:
    op_named(graph, "mul").target = "aten.multiply_twice.default"


CORRUPTIONS: list[tuple[Callable[[Graph], object], str]] = [
    # Channel groups
    (
        lambda g: setattr(g, "channels", (*g.channels, ChannelGroup("a", 4))),
        r"the channel group \$a is declared twice",
    ),
    (
        lambda g: swap_groups(g, name="c"),
        r"@w has the dimension \$a\[0:4\]: the channel group \$a is not declared",
    ),
    (
        lambda g: swap_groups(g, width=3, blocks=1),
        r"has the dimension \$a\[0:4\]: \$a has 3 channels",
    ),
    (lambda g: swap_groups(g, blocks=3), r"\$a = 4 blocks 3 does not split into 3 equal blocks"),
    (
        lambda g: swap_groups(g, keep=((0, 5),)),
        r"keeps 0:5, which is out of order or not among its 4 channels",
    ),
    (lambda g: swap_groups(g, keep=((2, 3), (1, 2))), r"keeps 1:2, which is out of order"),
    (
        lambda g: swap_groups(g, keep=((0, 1),)),
        r"does not keep the same number of channels in every block",
    ),
    (lambda g: g.decide({"b": ((0, 3),)}), r"is frozen, and yet loses channels"),
    (lambda g: set_dim(g, "conv", 1, SplitAxis("a", 2, 3)), r"\$a has 4 channels, not 2 times 3"),
    (
        lambda g: set_dim(g, "conv", 1, Axis((Part("a", 2, -1),))),
        r"a part has a negative size or start",
    ),
    (
        lambda g: set_dim(g, "conv", 1, IndexedAxis(4, ("c",), "0")),
        r"the channel group \$c is not declared",
    ),
    (lambda g: set_dim(g, "conv", 1, -4), r"a size is not negative"),
    (lambda g: set_dim(g, "x", 0, 2), r"no input has the batch size N"),
    # Names, definitions and uses
    (rename_result, r"%conv is defined twice"),
    (
        lambda g: g.aliases.update(other="nothing"),
        r"the alias other of nothing does not lead to a parameter",
    ),
    (lambda g: setattr(g.params["w"], "name", "v"), r"the parameter w is held under the name v"),
    (reverse_ops, r"it reads %t, which is not defined before it"),
    (read_foreign_value, r"it reads %conv, which is not defined before it"),
    (
        lambda g: setattr(g, "outputs", Value("y", TensorType("f32", ()), "result")),
        r"it returns %y",
    ),
    (
        lambda g: setattr(value_named(g, "mul"), "producer", None),
        r"its result %mul names another producer",
    ),
    (
        lambda g: setattr(g.inputs[0], "producer", g.ops[0]),
        r"%x is an input or a weight, and yet has a producer",
    ),
    (forget_use, r"%s counts 0 readings by aten.cat.default, not 2"),
    (invent_use, r"%x counts 1 readings by aten.cat.default, not 0"),
    (add_unread_weight, r"@extra is declared, and no op reads it"),
    # Schemas
    (set_target, r"the op aten.multiply_twice.default does not exist"),
    (drop_attribute, r"it lacks the attribute 'groups'"),
    (add_attribute, r"it has an unknown attribute 'colour'"),
    (
        lambda g: g.set_attr(g.ops[0], "padding", (1, Keyword("wide"))),
        r"the word 'wide' has no meaning",
    ),
    (
        lambda g: setattr(g.ops[0], "operands", g.ops[0].operands[:2]),
        r"it has 2 operands, its schema has 3",
    ),
    (
        lambda g: g.set_operand(op_named(g, "cat"), 0, value_named(g, "s")),
        r"'tensors' must be a list of tensors",
    ),
    (lambda g: g.set_operand(op_named(g, "mul"), 0, None), r"its operand 'self' is missing"),
    # Weights
    (lambda g: g.weights.pop("scale"), r"the weights lack @scale"),
    (shrink_weight, r"@w is declared as f32\[\$a, 3, 3, 3\], its tensor is f32\[3, 3, 3, 3\]"),
    (lambda g: g.weights.update(scale=torch.ones((), dtype=torch.int64)), r"its tensor is i64\[\]"),
    # Types
    (
        lambda g: set_dim(g, "conv", 2, 7),
        r"it declares f32\[N, \$a, 7, 8\], which is .* computes f32\[2, 4, 8, 8\]",
    ),
    (
        lambda g: set_dim(g, "conv", 0, 2),
        r"which is f32\[2, 4, 8, 8\] at batch size 3, and computes f32\[3, 4, 8, 8\]",
    ),
    (
        lambda g: set_dim(g, "conv", 0, BatchSize(2, -2)),
        r"declares f32\[N\*2-2, .* at batch size 3",
    ),
    (
        lambda g: setattr(value_named(g, "mul"), "type", TensorType("i64", ())),
        r"declares i64\[\].* computes f32",
    ),
    (
        lambda g: setattr(g.inputs[0], "type", TensorType("f23", ())),
        r"%x has the unknown dtype f23",
    ),
    (lambda g: g.set_attr(g.ops[0], "groups", 2), r"torch refuses it at batch size 2: "),
    (
        lambda g: g.set_attr(op_named(g, "split_with_sizes"), "split_sizes", (4,)),
        r"declares 2 results and computes 1",
    ),
]


@pytest.mark.parametrize(("corrupt", "message"), CORRUPTIONS)
def test_corruption_is_found(
    graph: Graph, corrupt: Callable[[Graph], object], message: str
) -> None:
    corrupt(graph)
    with pytest.raises(IRError, match=message):
        verify_graph(graph)


def test_the_message_shows_the_op_its_source_line_and_its_neighbours(graph: Graph) -> None:
    set_dim(graph, "mul", 3, 9)
    with pytest.raises(IRError) as caught:
        verify_graph(graph)
    assert str(caught.value).splitlines() == [
        "aten.mul.Tensor (net.py:4): it declares f32[N, $a, 8, 9], which is f32[2, 4, 8, 9] at "
        "batch size 2, "
        "and computes f32[2, 4, 8, 8]",
        '    %conv = aten.conv2d(%x, @w) {padding = [1, 1]}: f32[N, $a, 8, 8] loc("conv" Conv2d '
        '"net.py":3)',
        '  > %mul = aten.mul.Tensor(%conv, @scale): f32[N, $a, 8, 9] loc("" Net "net.py":4)',
        "    %s, %t = aten.split_with_sizes(%mul) {split_sizes = [2, 2], dim = 1}: "
        "f32[N, $a[0:2], 8, 8], f32[N, $a[2:4], 8, 8]",
        "    %cat = aten.cat([%t, %s, %s]) {dim = 1}: f32[N, $b, 8, 8]",
    ]


def test_a_broken_graph_is_our_fault() -> None:
    assert issubclass(IRError, InternalError)


def test_ops_that_need_data_are_skipped_and_counted() -> None:
    verifier = Verifier(
        parse_graph("graph @g(%x: f32[N]) { %a = aten.nonzero(%x): i64[3, 1] return %a }"),
    )
    verifier.run()
    assert verifier.skipped == {"aten.nonzero.default": 1}


def test_verifying_leaves_the_random_state() -> None:
    graph = parse_graph("graph @g(%x: f32[N]) { %a = aten.rand() {size = [3]}: f32[3] return %a }")
    before = torch.get_rng_state()
    verify_graph(graph)
    assert torch.equal(torch.get_rng_state(), before)


# Editing


Edit = tuple[str, int, int, int]
EDITS: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["add", "insert", "operand", "replace", "erase", "dead", "copy"]),
        *[st.integers(0, 99)] * 3,
    ),
    max_size=25,
)
VECTOR = TensorType("f32", (BatchSize(), 4))


def chain() -> Graph:
    graph = Graph("chain")
    graph.add_input("x", VECTOR)
    graph.add_param("bias", TensorType("f32", (4,)))
    graph.add_op(
        "aten.add.Tensor", [graph.inputs[0], graph.params["bias"]], {"alpha": 1}, [("y", VECTOR)]
    )
    graph.outputs = [graph.ops[0].result, {"again": graph.ops[0].result}]
    return graph


def apply(graph: Graph, edit: Edit) -> Graph:
    kind, first, second, third = edit
    ops = graph.ops
    if kind == "copy":
        return graph.copy()
    if kind == "dead":
        graph.erase_dead()
    elif kind == "add" or not ops:
        add_vector(graph, first, second, None)
    elif kind == "insert":
        add_vector(graph, first, second, ops[third % len(ops)])
    else:
        op = ops[third % len(ops)]
        vectors = [v for v in before_op(graph, op) if v.type == VECTOR]
        change(graph, kind, op, vectors[first % len(vectors)])
    return graph


def add_vector(graph: Graph, first: int, second: int, before: Op | None) -> None:
    known = [value for value in before_op(graph, before) if value.type == VECTOR]
    a, b = known[first % len(known)], known[second % len(known)]
    name = graph.fresh_name("v")
    if second % 3 == 0:
        wide = TensorType("f32", (BatchSize(), 3, 4))
        graph.add_op("aten.stack.default", [(a, b, a)], {"dim": 1}, [(name, wide)], before=before)
    else:
        graph.add_op("aten.sub.Tensor", [a, b], {"alpha": 1}, [(name, VECTOR)], before=before)


def before_op(graph: Graph, op: Op | None) -> list[Value]:
    """The inputs and results that an op (or the end of the graph) may read."""
    known = list(graph.inputs)
    for other in graph.ops:
        if other is op:
            break
        known.extend(other.results)
    return known


def change(graph: Graph, kind: str, op: Op, value: Value) -> None:
    if kind == "operand":
        graph.set_operand(op, 0, (value,) * 3 if isinstance(op.operands[0], tuple) else value)
    elif kind == "replace" and op.result.type == VECTOR:
        graph.replace_uses(op.result, value)
    elif kind == "erase" and not op.result.users and op.result not in graph.output_values:
        graph.erase(op)


@given(EDITS)
def test_edits_keep_uses_right(edits: list[Edit]) -> None:
    graph = chain()
    for edit in edits:
        graph = apply(graph, edit)
    if not graph.params.get("bias") or not graph.params["bias"].users:
        # Replacing what reads it leaves it unread until dead code is erased.
        graph.params.pop("bias", None)
    verify_graph(graph)


def test_a_value_that_is_still_read_cannot_be_erased(graph: Graph) -> None:
    with pytest.raises(InternalError, match=r"cannot erase .*: its result %conv is still used"):
        graph.erase(graph.ops[0])


def test_uses_can_be_replaced_for_some_readers_only(graph: Graph) -> None:
    conv, x = value_named(graph, "conv"), graph.inputs[0]
    graph.replace_uses(conv, x, where=lambda op: op.base == "split_with_sizes")
    assert op_named(graph, "mul").operands[0] is conv
