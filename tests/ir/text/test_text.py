"""Text and JSON forms: whatever graph there is, reading back what was written gives the same
graph."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.any_graph import graphs
from hypothesis import given
from nets import tiny_vit
from torch import nn
from torchvision import models

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.text.json_form import graph_from_dict, graph_to_dict
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import dim_text, print_graph, type_text
from pruneopt.ir.types import (
    Axis,
    BatchSize,
    Dim,
    IndexedAxis,
    Location,
    Part,
    SplitAxis,
    TensorType,
)
from pruneopt.ir.verifier import Verifier
from pruneopt.models.source import load_model
from pruneopt.passes.analysis.channels.annotate import annotate
from pruneopt.passes.analysis.couple import couple


@given(graphs())
def test_what_is_read_back_and_what_is_copied_is_equal(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert print_graph(again) == text
    written = json.dumps(graph_to_dict(graph), allow_nan=False)
    assert graph_from_dict(json.loads(written)) == graph
    assert graph.copy() == graph


def check_both_forms(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert print_graph(again) == text
    assert graph_from_dict(json.loads(json.dumps(graph_to_dict(graph)))) == graph
    verifier = Verifier(graph)
    verifier.run()
    assert not verifier.skipped


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
    assert parse_graph(spaced) == small_graph()


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
