"""Text and JSON forms: whatever graph there is, reading back what was written gives the same
graph."""

import json
import math
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision import models

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph, Operand, Structure, Value, same_graph
from pruneopt.ir.schema import DTYPES, Argument, signature
from pruneopt.ir.text.json_form import graph_from_dict, graph_to_dict
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import dim_text, print_graph, type_text
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
from pruneopt.ir.verifier import Verifier
from pruneopt.models.source import load_model
from pruneopt.passes.analysis.channels.annotate import annotate
from pruneopt.passes.analysis.couple import couple

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
NUMBERS = st.booleans() | st.integers() | FLOATS
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
    return st.builds(TensorType, dtypes, st.lists(dims(groups), max_size=4).map(tuple))


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
        attrs: dict[str, Attr] = {
            argument.name: draw(
                st.just(argument.default) | ATTRS if argument.has_default else ATTRS
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
                attrs,
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


@given(graphs())
def test_the_text_form_reads_back(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert same_graph(again, graph)
    assert print_graph(again) == text


@given(graphs())
def test_the_json_form_reads_back(graph: Graph) -> None:
    written = json.dumps(graph_to_dict(graph), allow_nan=False)
    assert same_graph(graph_from_dict(json.loads(written)), graph)


@given(graphs())
def test_a_copy_is_the_same_graph(graph: Graph) -> None:
    assert same_graph(graph.copy(), graph)


def check_both_forms(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert same_graph(again, graph)
    assert print_graph(again) == text
    assert same_graph(graph_from_dict(json.loads(json.dumps(graph_to_dict(graph)))), graph)
    verifier = Verifier(graph)
    verifier.run()
    assert not verifier.skipped


def tiny_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=5,
    )


SMALL: list[Callable[[], nn.Module]] = [
    models.resnet18,
    models.mobilenet_v2,
    models.shufflenet_v2_x1_0,
    tiny_vit,
]


@pytest.mark.parametrize("build", SMALL)
def test_captured_network_reads_back(build: Callable[[], nn.Module]) -> None:
    check_both_forms(capture(build(), torch.randn(2, 3, 32, 32)))


NETWORKS = (
    (Path(__file__).parents[3] / "benchmarks" / "networks" / "quick.txt")
    .read_text(encoding="utf-8")
    .split()
)


@pytest.mark.slow
@pytest.mark.parametrize("spec", NETWORKS)
def test_network_reads_back(spec: str) -> None:
    """Each network of the documentation, as captured and with its channel groups named."""
    loaded = load_model(spec)
    graph = capture(loaded.module, loaded.example_inputs)
    check_both_forms(graph)
    check_both_forms(annotate(couple(graph)))


# Details of the form


GROUPS = {"a": 16, "b": 24, "odd name": 8}


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (7, "7"),
        (BatchSize(), "N"),
        (BatchSize(64), "N*64"),
        (BatchSize(2, -1, 2), "(N*2-1)/2"),
        (Axis((Part("a", 16),)), "$a"),
        (Axis((Part("a", 12, 4),)), "$a[4:16]"),
        (Axis((Part("a", 16, 0, 49),)), "$a * 49"),
        (Axis((Part("a", 3, 0, 2), Part("b", 24), Part(None, 5))), "$a[0:3] * 2 ++ $b ++ 5"),
        (Axis((Part(None, 5),)), "(5)"),
        (Axis((Part(None, 5, 2), Part("a", 16))), "_[2:7] ++ $a"),
        (Axis(()), "()"),
        (Axis((Part("odd name", 8),)), '$"odd name"'),
        (SplitAxis("b", 12, 2), "$b / 12"),
        (SplitAxis("b", 12, 3), "$b / 12 = 3"),
        (IndexedAxis(40, ("a", "b"), "1f3c9a2b"), "40~($a, $b)#1f3c9a2b"),
    ],
)
def test_how_a_dimension_prints(dim: Dim, text: str) -> None:
    assert dim_text(dim, GROUPS) == text


def test_a_dimension_without_known_widths_prints_its_range() -> None:
    assert type_text(TensorType("f32", (BatchSize(), Axis((Part("a", 16),))))) == "f32[N, $a[0:16]]"


def small_graph() -> Graph:
    graph = Graph("Small")
    x = graph.add_input("x", TensorType("f32", (BatchSize(), 4)))
    attrs = {"alpha": 1.0}
    where = Location("block", "Block", "model.py", 7)
    graph.add_op("aten.add.Tensor", [x, 2], attrs, [("add", x.type)], where)
    graph.outputs = {"out": next(reversed(list(graph.values)))}
    return graph


def test_an_attribute_equal_to_its_default_but_of_another_type_prints() -> None:
    assert print_graph(small_graph()) == (
        "graph @Small(%x: f32[N, 4]) {\n"
        '  %add = aten.add.Tensor(%x, 2) {alpha = 1.0}: f32[N, 4] loc("block" Block "model.py":7)\n'
        '  return {"out": %add}\n'
        "}\n"
    )


def test_locations_can_be_left_out() -> None:
    assert "loc(" not in print_graph(small_graph(), locations=False)


def test_an_op_that_torch_lacks_prints_all_its_attributes() -> None:
    graph = small_graph()
    graph.add_op("mine.frobnicate.default", [graph.inputs[0]], {"b": 1, "a": "x"}, [])
    assert '  mine.frobnicate(%x) {b = 1, a = "x"}\n' in print_graph(graph)


def test_comments_and_spacing_do_not_matter() -> None:
    text = print_graph(small_graph())
    spaced = "// a comment\n" + text.replace(", ", " ,\n\t").replace("{\n", "{ // and another\n\n")
    assert same_graph(parse_graph(spaced), small_graph())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("ops"), "'ops' is missing"),
        (lambda data: data["ops"][0]["operands"].append("%nowhere"), "'%nowhere' is missing"),
        (
            lambda data: data["inputs"][0]["type"]["dims"].append({"strange": 1}),
            "'strange' is no kind of dimension",
        ),
        (lambda data: data["inputs"].append(data["inputs"][0]), "the name x is defined twice"),
        (lambda data: data.update(inputs=3), "not iterable"),
    ],
)
def test_data_that_is_no_graph_is_refused(
    change: Callable[[dict[str, object]], object], message: str
) -> None:
    data = graph_to_dict(small_graph())
    change(data)
    with pytest.raises(
        UserError, match="this data is not a graph that pruneopt wrote: .*" + message
    ):
        graph_from_dict(data)
