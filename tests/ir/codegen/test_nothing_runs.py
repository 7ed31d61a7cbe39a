"""A graph from a stranger runs nothing: what its text says stays data wherever it is written."""

from __future__ import annotations

import ast
import copy
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneopt.errors import PruneoptError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module, generate_source
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.schema import overload
from pruneopt.ir.text.json_form import graph_from_dict, graph_to_dict
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.passes.analysis.ops.custom_ops import elementwise, register_op

ATTACK = "import os; os.environ['PRUNEOPT_ATTACKED'] = 'yes'"
BREAKS = ("\n", "\r", "\f", "\x0b", "\x1c", "\x85", "\u2028", "\u2029")
TEXT = """\
graph @g(%x: f32[N, 4]) {
  param @lin.weight: f32[4, 4]
  %y = aten.linear(%x, @lin.weight): f32[N, 4] loc("lin" Linear "net.py":3)
  %z = aten.relu(%y): f32[N, 4]
  return {"out": %z}
}
"""
IMAGES = """\
graph @g(%x: f32[N, 4, 8, 8], %i: i64[N]) {{
  param @table: f32[9, 4]
  {op}
  return %y
}}
"""


def calls(graph: Graph) -> None:
    """Write the source and run it, on numbers."""
    weights = {name: torch.ones(value.type.shape()) for name, value in graph.params.items()}
    module = build_module(graph, weights)
    module(*(torch.ones(value.type.shape(2)) for value in graph.inputs))


def statements(source: str) -> Counter[str]:
    """Count the kinds of statements of a source."""
    return Counter(
        type(node).__name__ for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)
    )


@pytest.fixture(autouse=True)
def unharmed() -> Any:
    os.environ.pop("PRUNEOPT_ATTACKED", None)
    yield
    assert "PRUNEOPT_ATTACKED" not in os.environ


@pytest.mark.parametrize("end", BREAKS)
@pytest.mark.parametrize("before", ["        ", "", "'''", '"""', "\\"])
def test_location_stays_a_comment(end: str, before: str) -> None:
    place = json.dumps(f"block{end}{before}{ATTACK}{end}.lin")
    graph = parse_graph(TEXT.replace('loc("lin"', f"loc({place}"))
    assert graph.ops[0].loc.module.endswith(f"{ATTACK}{end}.lin")
    plain = generate_source(parse_graph(TEXT))
    assert statements(generate_source(graph)) == statements(plain)
    calls(graph)


@pytest.mark.parametrize("quote", ["'", '"', "\\", '"""', "\n", '")', "']"])
@pytest.mark.parametrize("place", ["@g(", "%x", "%y", "@lin.weight", '"out"'])
def test_names_and_keys_stay_data(quote: str, place: str) -> None:
    name = f"a{quote}; {ATTACK} #{quote}"
    sigil = place[0].replace('"', "")
    end = "(" if place.endswith("(") else ""
    text = TEXT.replace(place, f"{sigil}{json.dumps(name)}{end}")
    graph = parse_graph(text)
    plain = statements(generate_source(parse_graph(TEXT)))
    found = statements(generate_source(graph))
    # A name that is no word is declared by a call in place of an assignment.
    for one in ("Assign", "Expr"):
        plain.pop(one, None), found.pop(one, None)
    assert found == plain
    calls(graph)


@pytest.mark.parametrize(
    "op",
    [
        f'%y = aten.embedding(@table, %i) {{padding_idx = "{ATTACK}"}}: f32[N, 4]',
        f'%y = aten.relu(%x) {{inplace = "{ATTACK}"}}: f32[N, 4, 8, 8]',
        "%y = aten.upsample_bilinear2d.vec(%x) {output_size = [8, 8], "
        f'align_corners = "{ATTACK}"}}: f32[N, 4, 8, 8]',
        f'%y = aten.softmax.int(%x) {{dim = "{ATTACK}"}}: f32[N, 4, 8, 8]',
        f'%y = aten.slice.Tensor(%x) {{dim = 1, start = "{ATTACK}"}}: f32[N, 4, 8, 8]',
        '%y = aten.permute(%x) {dims = [0, 1, 2, "3"]}: f32[N, 4, 8, 8]',
        "%y = aten.softmax.int(%x) {dim = device}: f32[N, 4, 8, 8]",
        "%y = aten.softmax.int(%x) {dim = 1.5}: f32[N, 4, 8, 8]",
        "%y = aten.softmax.int(%x) {dim = [1]}: f32[N, 4, 8, 8]",
    ],
)
def test_attribute_is_of_the_type_that_torch_says(op: str) -> None:
    with pytest.raises(UserError, match=r"is of type \w+, which|has no attribute"):
        parse_graph(IMAGES.format(op=op))


def test_texts_of_ops_are_written_as_texts() -> None:
    op = f'%y = aten.gelu(%x) {{approximate = "none\\"); {ATTACK} #"}}: f32[N, 4, 8, 8]'
    graph = parse_graph(IMAGES.format(op=op).replace(", %i: i64[N]", ""))
    with pytest.raises(Exception, match="approximate"):
        calls(graph)


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file", "aten.save", "aten.warn", "aten.print", "aten.get_gradients",
        "image.read_file", "image.decode_image", "torchvision._cuda_version",
        "profiler._record_function_enter_new", "c10d.barrier", "_c10d_functional.all_reduce",
        "prim.ImplicitTensorToNum", "aten.relu_", "aten.add_.Tensor", "aten.set_.source_Tensor",
        "aten.resize_", "aten._print", "aten._assert_async", "aten.item", "aten.set_data",
        "aten.record_stream", "streams.record_event", "symm_mem.one_shot_all_reduce",
        "inductor.accumulate_grad_", "mkldnn_prepacked.conv2d_run", "aten.relu.out",
        "__class__.__init__.default", "os.system.default", "aten.__class__.default",
    ],
)  # fmt: skip
def test_op_that_is_no_pure_function_is_refused_everywhere(target: str) -> None:
    full = target if target.count(".") > 1 else f"{target}.default"
    with pytest.raises(UserError):
        overload(full)
    text = TEXT.replace("aten.relu", target)
    with pytest.raises(UserError, match=r"<text>:4:8: error: unknown op: the op "):
        parse_graph(text)
    data = graph_to_dict(parse_graph(TEXT))
    data["ops"][1]["target"] = full
    with pytest.raises(UserError, match="the op"):
        graph_from_dict(data)
    graph = parse_graph(TEXT)
    graph.ops[1].target = full
    with pytest.raises(UserError):
        generate_source(graph)
    with pytest.raises(UserError):
        Interpreter(graph).run({"lin.weight": torch.ones(4, 4)}, torch.ones(1, 4))


def test_op_of_another_library_needs_code_of_this_process() -> None:
    @torch.library.custom_op("gatetest::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x * 2

    double.register_fake(lambda x: torch.empty_like(x))
    text = TEXT.replace("aten.relu", "gatetest.double")
    with pytest.raises(UserError, match=r"of another library: .*register_op\('gatetest::double'"):
        parse_graph(text)
    register_op("gatetest::double", elementwise())
    assert parse_graph(text).ops[1].target == "gatetest.double.default"


def test_op_that_the_network_itself_calls_is_admitted() -> None:
    @torch.library.custom_op("gatetest::triple", mutates_args=())
    def triple(x: Tensor) -> Tensor:
        return x * 3

    triple.register_fake(lambda x: torch.empty_like(x))

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.gatetest.triple(x)

    graph = capture(Net(), torch.ones(2, 3))
    assert parse_graph(print_graph(graph)) == graph


def damaged(path: str, value: Any) -> dict[str, Any]:
    """Return the JSON form of a graph with another value in one place."""
    data: Any = json.loads(json.dumps(graph_to_dict(parse_graph(TEXT))))
    *parts, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    at = data
    for part in parts:
        at = at[part]
    at[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("inputs/0/type/dims/0", {"batch": [ATTACK, 0, 1]}),
        ("inputs/0/type/dims/0", {"batch": [1, 0, 0]}),
        ("params/0/type/dims/0", {"axis": [{"group": None, "count": ATTACK}]}),
        ("params/0/type/dims/0", {"split": {"group": "a", "divisor": 1, "size": ATTACK}}),
        ("params/0/type/dims/0", -1), ("params/0/type/dims/0", 2**62),
        ("params/0/type/dims/0", True), ("params/0/type/dtype", ATTACK),
        ("params/0/kind", "input"), ("params/0/name", 3),
        ("aliases", {"a": "nowhere"}), ("aliases", {"lin.weight": "lin.weight"}), ("aliases", [1]),
        ("ops/0/loc", {"module": 3}), ("ops/0/loc", {"line": ATTACK}), ("ops/0/attrs", {"x": 1}),
        ("ops/0/attrs", ["x"]), ("ops/0/results/0/name", None), ("ops/0/operands/0", {"word": 3}),
        ("outputs", {"value": ATTACK}), ("outputs", {"float": ATTACK}), ("name", None),
        ("name", "\ud800"),
    ],
)  # fmt: skip
def test_json_form_is_data_of_the_right_types(path: str, value: Any) -> None:
    with pytest.raises(UserError, match="this data is not a graph"):
        graph_from_dict(damaged(path, value))


def test_json_form_nests_only_so_deep() -> None:
    outputs: Any = 1
    for _ in range(100_000):
        outputs = [outputs]
    with pytest.raises(UserError, match="nests too deep"):
        graph_from_dict(damaged("outputs", outputs))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forward.weight", "torch.nn.Module uses the name 'forward'"),
        ("a.train", "torch.nn.Module uses the name 'train'"),
        ("a..weight", "a part is empty"),
        ("lin.weight.more", "as a weight and as a module"),
    ],
)
def test_weight_that_no_module_can_hold_is_refused(name: str, message: str) -> None:
    text = TEXT.replace("  %y", f"  param @{name}: f32[4, 4]\n  %y")
    with pytest.raises(UserError, match=message):
        generate_source(parse_graph(text))


NAMES = [
    "a'b", 'a"b', "a\\b", "a\nb", "a\tb", "class", "None", "print", "__x", "é", "重み", "½",
    "\u212a", "ﬁ", "fi", "\u2028", "1", "01", "٣", "a b", "#", "{x}", "%s", "self",
    "torch", "nn", "F", "n",
    "FrozenBatchNorm2d", "'''", '"""', "\\", "\\'", "lambda", "\U0001d518",
    "a\0b", "-", "0", "$", "@x",
]  # fmt: skip


class Tree(nn.Module):
    """Layers, parameters and buffers under any names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            holder = nn.Module()
            holder.add_module(name, nn.Linear(3, 3))
            holder.register_parameter(f"{name}p", nn.Parameter(torch.randn(3)))
            holder.register_buffer(f"{name}b", torch.randn(3))
            self.add_module(name, holder)

    def forward(self, x: Tensor) -> Tensor:
        for name, holder in self._modules.items():
            assert holder is not None
            layer = holder._modules[name]
            assert layer is not None
            x = torch.relu(layer(x)) * holder._parameters[f"{name}p"] + holder._buffers[f"{name}b"]
        return x


def check_names(names: list[str]) -> None:
    torch.manual_seed(0)
    module = Tree(names).eval()
    inputs = torch.randn(2, 3)
    graph = capture(module, inputs)
    again = parse_graph(print_graph(graph))
    assert again == graph
    assert graph_from_dict(json.loads(json.dumps(graph_to_dict(graph)))) == graph
    built = build_module(again, graph.weights)
    assert built.state_dict().keys() == module.state_dict().keys()
    assert torch.equal(built(inputs), module(inputs))
    assert torch.equal(copy.deepcopy(built)(inputs), module(inputs))


def test_any_name_works_from_capture_to_the_source() -> None:
    check_names(NAMES)
    for name in NAMES:
        check_names([name])


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


ANY_NAME = st.text(min_size=1, max_size=6).filter(
    lambda name: "." not in name and not hasattr(nn.Module(), name) and _encodable(name)
)


@settings(max_examples=25)
@given(st.lists(ANY_NAME, min_size=1, max_size=3, unique=True))
def test_whatever_torch_takes_as_a_name_works(names: list[str]) -> None:
    check_names(names)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("f32[4, 4]", "f32[" + "9" * 30 + ", 4]", "a whole number beyond 64 bits"),
        ("f32[4, 4]", "f32[-4, 4]", "a size is below 0"),
        ("f32[4, 4]", "f32[99999999, 99999999, 9999]", "a tensor of more than"),
        ("f32[4, 4]", f"f32[{', '.join('1' * 65)}]", "at most 64 dimensions"),
        ("f32[N, 4])", "f32[(N*3)/0, 4])", "divided by 0"),
        ('{"out": %z}', "[" * 5000 + "]" * 5000, "brackets nest deeper than 64 levels"),
        ('{"out": %z}', '{"\\ud800": %z}', "half of a character"),
        ("  %y", "  alias @a = %x\n  %y", "an alias is of a parameter"),
    ],
)
def test_absurd_text_is_refused_where_it_stands(old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"<text>:\d+:\d+: error: .*{message}"):
        parse_graph(TEXT.replace(old, new, 1))


def test_file_of_the_interpreter_is_never_written(tmp_path: Path) -> None:
    target = tmp_path / "made"
    text = TEXT.replace(
        "%z = aten.relu(%y)",
        f'%z = aten.from_file() {{filename = "{target}", shared = true, size = 16}}',
    )
    with pytest.raises(PruneoptError):
        calls(parse_graph(text))
    assert not target.exists()
