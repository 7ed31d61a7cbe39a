"""A graph holds all of its network, however it is captured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import captured
from helpers.captured import Network, check, run, targets
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.types import MODE
from pruneopt.ir.verifier import verify_graph


def test_flags_follow_the_mode_and_frozen_modules_do_not() -> None:
    model = Network().train()
    model.bn.eval()
    graph = capture(model, torch.randn(2, 3, 8, 8))
    flags = {op.base: op.attrs.get("training", op.attrs.get("train")) for op in graph.ops}
    assert flags["batch_norm"] is False
    assert flags["dropout"] == MODE


def test_a_model_in_evaluation_mode_has_nothing_frozen() -> None:
    graph = capture(Network().eval(), torch.randn(2, 3, 8, 8))
    assert {op.attrs.get("training", MODE) for op in graph.ops} == {MODE}


def test_an_op_knows_its_module_and_the_users_line() -> None:
    graph = capture(Network(), torch.randn(2, 3, 8, 8))
    conv = graph.ops[0]
    assert (conv.loc.module, conv.loc.module_type) == ("conv", "Conv2d")
    assert conv.loc.file.endswith("tests/helpers/captured.py")
    lines = Path(str(captured.__file__)).read_text(encoding="utf-8").splitlines()
    assert "self.conv(x)" in lines[conv.loc.line - 1]


def test_weights_keep_their_names_kinds_and_tensors() -> None:
    model = Network()
    graph = capture(model, torch.randn(2, 3, 8, 8))
    kinds = dict.fromkeys(dict(model.named_parameters()), "param") | dict.fromkeys(
        dict(model.named_buffers()), "buffer"
    )
    assert {name: value.kind for name, value in graph.params.items()} == kinds
    assert all(
        torch.equal(graph.weights[name], tensor) for name, tensor in model.state_dict().items()
    )


class NoGradBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = self.a(x).relu_()
        return self.b(x) * frozen


def test_a_branch_without_gradients_is_detached() -> None:
    model, x = NoGradBranch(), torch.randn(2, 4)
    graph = check(model, x)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in graph.weights.items()}
    Interpreter(graph).run(weights, x).sum().backward()
    model(x).sum().backward()
    assert weights["a.weight"].grad is None
    torch.testing.assert_close(weights["b.weight"].grad, model.b.weight.grad, rtol=0, atol=0)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6, bias=False)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight
        self.twice = nn.BatchNorm1d(6)
        self.same = self.twice

    def forward(self, x: Tensor) -> Tensor:
        return self.same(self.twice(self.embed(x) + self.out(x)))


def test_tied_weights_are_one_parameter_with_an_alias() -> None:
    graph = check(Tied(), torch.randn(3, 4))
    assert "out.weight" not in graph.params
    assert graph.aliases["out.weight"] == "embed.weight"
    assert len(graph.params["embed.weight"].users) == 2
    assert len(graph.params["twice.weight"].users) == 2


class Structured(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x + 1, x * 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: {"out": a, "aux": b},
        lambda a, b: OrderedDict(out=a),
        lambda a, b: (a, b),
        lambda a, b: [a, [b, a]],
        lambda a, b: {"list": [a, (b,)], "none": None, "number": 3},
        lambda a, b: (a, a),
        lambda a, b: (),
    ],
)
def test_outputs_keep_their_structure(make: Callable[[Tensor, Tensor], Any]) -> None:
    x = torch.randn(2, 3)
    graph = capture(Structured(make), x)
    verify_graph(graph)
    found, wanted = run(graph, x), make(x + 1, x * 2)
    assert isinstance(wanted, type(found))
    torch.testing.assert_close(found, type(found)(wanted), rtol=0, atol=0)


class WithAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.spare = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def test_what_is_left_out_is_noted() -> None:
    graph = capture(WithAttention(), torch.randn(2, 5, 8))
    assert graph.notes == (
        "attention dropout is left out (1 modules, first attention)",
        "2 parameters play no part in evaluation and are left out (first spare.weight)",
    )


def test_a_graph_module_is_a_model() -> None:
    traced = torch.fx.symbolic_trace(Network())
    x = torch.randn(2, 3, 8, 8)
    graph = check(traced, x)
    assert targets(graph) == targets(capture(Network(), x))


def exported() -> torch.export.ExportedProgram:
    x = torch.randn(2, 3, 8, 8)
    return torch.export.export(Network().eval(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))


def test_an_exported_program_needs_no_inputs() -> None:
    program = exported()
    graph = capture(program)
    verify_graph(graph)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(run(graph, x), program.module()(x), rtol=0, atol=0)


def test_a_pt2_file_is_an_exported_program(tmp_path: Path) -> None:
    program, path = exported(), tmp_path / "net.pt2"
    torch.export.save(program, path)
    x = torch.randn(5, 3, 8, 8)
    for given in (path, str(path)):
        with pytest.raises(UserError, match="may run code when PyTorch loads it"):
            capture(given)
        torch.testing.assert_close(
            run(capture(given, trusted=True), x), program.module()(x), rtol=0, atol=0
        )


def test_a_decomposed_program_gets_its_batch_norm_back() -> None:
    program = exported().run_decompositions()
    graph = capture(program)
    verify_graph(graph)
    assert "batch_norm" in targets(graph)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(run(graph, x), program.module()(x))
