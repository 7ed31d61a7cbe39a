"""Capture leaves the model alone, says what it could not keep, and refuses the rest in one line."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.types import MODE, BatchSize
from pruneopt.ir.verifier import verify_graph


class Net(nn.Module):
    """A network with whatever capture could disturb: batch norm, dropout, a frozen part, hooks, a
    buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("offset", torch.ones(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        return self.fc(self.drop(x.mean((2, 3)))) + self.offset


def run(graph: Graph, *inputs: Tensor, training: bool = False) -> Any:
    return Interpreter(graph).run(graph.weights, *inputs, training=training)


def targets(graph: Graph) -> list[str]:
    return [op.base for op in graph.ops]


def check(model: nn.Module, *inputs: Tensor, **options: Any) -> Graph:
    """Capture, verify, and compare with the model in evaluation mode; returns the graph."""
    graph = capture(model, inputs, **options)
    verify_graph(graph)
    model = copy.deepcopy(model).eval()
    torch.testing.assert_close(run(graph, *inputs), model(*inputs), rtol=0, atol=0)
    return graph


# The model stays as it was


def state_of(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: (dict(m._forward_hooks), dict(m._forward_pre_hooks))
            for name, m in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "identity": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "grads": {name: tensor.grad for name, tensor in tensors.items()},
        "devices": {name: tensor.device for name, tensor in tensors.items()},
        "versions": {name: tensor._version for name, tensor in tensors.items()},
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("training", [True, False])
def test_capture_leaves_the_model_as_it_was(training: bool) -> None:
    model = Net().train(training)
    model.bn.eval()
    model.conv.weight.requires_grad_(False)
    model.fc.register_forward_hook(lambda module, args, output: None)
    model.drop.register_forward_pre_hook(lambda module, args: None)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    x = torch.randn(2, 3, 8, 8)
    before = state_of(model)
    capture(model, x)
    after = state_of(model)
    for key in ("values", "grads"):
        assert all(
            x is y or torch.equal(x, y)
            for x, y in zip(before[key].values(), after[key].values(), strict=True)
        )
        del before[key], after[key]
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert after == before


def test_capture_that_fails_leaves_the_mode_as_well() -> None:
    model = Net().train()
    with pytest.raises(UserError):
        capture(model, torch.randn(2, 4, 8, 8))
    assert all(module.training for module in model.modules())


def test_gradients_may_be_switched_off_and_stay_off() -> None:
    with torch.no_grad():
        check(Net(), torch.randn(2, 3, 8, 8))
        assert not torch.is_grad_enabled()


# What the graph holds


def test_flags_follow_the_mode_and_frozen_modules_do_not() -> None:
    model = Net().train()
    model.bn.eval()
    graph = capture(model, torch.randn(2, 3, 8, 8))
    flags = {op.base: op.attrs.get("training", op.attrs.get("train")) for op in graph.ops}
    assert flags["batch_norm"] is False
    assert flags["dropout"] == MODE


def test_a_model_in_evaluation_mode_has_nothing_frozen() -> None:
    graph = capture(Net().eval(), torch.randn(2, 3, 8, 8))
    assert {op.attrs.get("training", MODE) for op in graph.ops} == {MODE}


def test_an_op_knows_its_module_and_the_users_line() -> None:
    graph = capture(Net(), torch.randn(2, 3, 8, 8))
    conv = graph.ops[0]
    assert (conv.loc.module, conv.loc.module_type) == ("conv", "Conv2d")
    assert conv.loc.file.endswith("ir/capture/test_capture.py")
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert "self.conv(x)" in lines[conv.loc.line - 1]


def test_weights_keep_their_names_kinds_and_tensors() -> None:
    model = Net()
    graph = capture(model, torch.randn(2, 3, 8, 8))
    kinds = dict.fromkeys(dict(model.named_parameters()), "param") | dict.fromkeys(
        dict(model.named_buffers()), "buffer"
    )
    assert {name: value.kind for name, value in graph.params.items()} == kinds
    assert all(
        torch.equal(graph.weights[name], tensor) for name, tensor in model.state_dict().items()
    )


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1).mul_(3)
        z = y.clamp_(-1, 1)
        z += x
        return y.relu_() - z


class WriteIntoView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.bn(x))
        y[:, :2] = y[:, 2:] * 2
        left = y[:, 1:]
        left.relu_()
        return torch.cat([y, left], 1)


class ViewBeforeWrite(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        flat = y.flatten(1)
        y.relu_()
        return flat, y


class DropoutInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(4), nn.Hardswish(True), nn.Dropout(0.2, True), nn.ReLU(True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


@pytest.mark.parametrize("model", [InPlace(), WriteIntoView(), ViewBeforeWrite(), DropoutInPlace()])
def test_in_place_ops_become_functional(model: nn.Module) -> None:
    graph = check(model, torch.randn(2, 4, 3, 3))
    assert not any(base.endswith("_") for base in targets(graph))
    assert not any("__" in value.name for value in graph.values)


def test_dropout_in_place_stays_in_the_graph() -> None:
    graph = capture(DropoutInPlace(), torch.randn(2, 4, 3, 3))
    assert targets(graph) == ["batch_norm", "hardswish", "dropout", "relu", "flatten"]
    assert not graph.notes


def test_functionalisation_keeps_batch_norm_and_says_that_dropout_is_lost() -> None:
    graph = capture(WriteIntoView(), torch.randn(2, 4, 3, 3))
    batch_norm = graph.ops[0]
    assert batch_norm.base == "batch_norm"
    assert batch_norm.attrs["training"] == MODE
    assert len(graph.notes) == 1
    assert graph.notes[0].startswith("dropout is left out")


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


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor, scale: Tensor | None = None) -> Tensor:
        return x @ y.transpose(1, 2) if scale is None else x * scale


def test_several_inputs_share_the_batch() -> None:
    graph = check(Pair(), torch.randn(3, 4, 5), torch.randn(3, 6, 5))
    assert [value.type.dims[0] for value in graph.inputs] == [BatchSize(), BatchSize()]
    assert run(graph, torch.randn(7, 4, 5), torch.randn(7, 6, 5)).shape == (7, 4, 6)


class Apart(nn.Module):
    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x * 2 for x in xs)


def test_inputs_that_never_meet_share_the_batch() -> None:
    graph = check(Apart(), torch.randn(3, 4), torch.randn(3, 6))
    assert [value.type.dims[0] for value in graph.inputs] == [BatchSize(), BatchSize()]


# The batch size


@pytest.mark.parametrize("example", [1, 2, 4])
def test_one_graph_runs_at_every_batch_size(example: int) -> None:
    model = Net().eval()
    graph = capture(model, torch.randn(example, 3, 8, 8))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(run(graph, x), model(x), rtol=0, atol=0)


class Strided(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[::2], torch.cat([x, x[1:]])


def test_sizes_computed_from_the_batch_are_expressions() -> None:
    graph = check(Strided(), torch.randn(4, 3))
    assert [value.type.dims[0] for value in graph.output_values] == [
        BatchSize(1, 1, 2),
        BatchSize(2, -1),
    ]
    x = torch.randn(7, 3)
    torch.testing.assert_close(run(graph, x), Strided()(x), rtol=0, atol=0)


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 2, -1).sum(0)


class SmallOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 4 else x + 1


class ReturnsSize(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, x.shape[0]


class OddSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0] // 2, 2, -1).sum(0)


@pytest.mark.parametrize("model", [OneSize(), SmallOnly(), ReturnsSize(), OddSize()])
def test_a_batch_that_cannot_vary_is_fixed_and_noted(model: nn.Module) -> None:
    graph = check(model, torch.randn(4, 3))
    assert not graph.dynamic_batch
    (note,) = graph.notes
    assert note.startswith("the batch size is fixed at 4: ")


def test_a_fixed_batch_of_one_stays_one() -> None:
    graph = check(ReturnsSize(), torch.randn(1, 3))
    assert graph.inputs[0].type.dims == (1, 3)


def test_the_batch_is_fixed_on_request() -> None:
    graph = check(Net(), torch.randn(2, 3, 8, 8), dynamic_batch=False)
    assert graph.inputs[0].type.dims == (2, 3, 8, 8)
    assert not graph.notes


# Notes


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


# Other ways in


def test_a_graph_module_is_a_model() -> None:
    traced = torch.fx.symbolic_trace(Net())
    x = torch.randn(2, 3, 8, 8)
    graph = check(traced, x)
    assert targets(graph) == targets(capture(Net(), x))


def exported() -> torch.export.ExportedProgram:
    x = torch.randn(2, 3, 8, 8)
    return torch.export.export(Net().eval(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))


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
        torch.testing.assert_close(run(capture(given), x), program.module()(x), rtol=0, atol=0)


def test_a_decomposed_program_gets_its_batch_norm_back() -> None:
    program = exported().run_decompositions()
    graph = capture(program)
    verify_graph(graph)
    assert "batch_norm" in targets(graph)
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(run(graph, x), program.module()(x))


# Refusals


class DependsOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@dataclass
class Unknown:
    """No structure of tensors to PyTorch: it was not registered."""

    scores: Tensor


class ReturnsUnknown(nn.Module):
    def forward(self, x: Tensor) -> Unknown:
        return Unknown(x * 2)


class Counts(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def old_ways() -> tuple[Any, Any]:
    """A quantised network, and a TorchScript module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.Linear(3, 2)).eval()
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}), torch.jit.script(
            network
        )


QUANTISED, SCRIPTED = old_ways()


def program_with_free_width() -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    return torch.export.export(
        nn.Conv2d(3, 4, 1), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes
    )


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Net(), None, "needs example inputs"),
        (Net(), (), "example inputs must be tensors"),
        (Net(), ("x",), "example inputs must be tensors"),
        (
            Net(),
            (torch.randn(2, 4, 8, 8),),
            r"Net does not run on example inputs of shape \(2, 4, 8, 8\): ",
        ),
        (Net(), (torch.randn(2, 3, 8, 8),) * 2, "Net does not run on example inputs"),
        (
            DependsOnData(),
            (torch.randn(2, 3),),
            r"it reads the value of a tensor in Python at .*test_capture\.py:\d",
        ),
        (Counts(), (torch.randn(2, 3),), "changes a buffer or an input"),
        (
            ReturnsUnknown(),
            (torch.randn(2, 3),),
            r"Unknown, whose .* call .*register_dataclass\(Unknown\)",
        ),
        (SCRIPTED, (torch.randn(2, 3),), "it is a TorchScript module; capture the Python module"),
        (QUANTISED, (torch.randn(2, 3),), "it is quantised, .* prune first, quantise the result"),
        (Path("nowhere.pt2"), None, "nowhere.pt2: no such file"),
        (
            program_with_free_width(),
            None,
            "this exported program cannot be captured: sizes depend on more than",
        ),
    ],
)
def test_refusal_is_one_sentence(
    model: Any, inputs: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        capture(model, inputs)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("not a program")
    with pytest.raises(
        UserError, match=r"net\.pt2 is not an exported program that this torch can load"
    ):
        capture(path)


class ReadsBeside(nn.Module):
    """A tensor that is read beside its dropout, which in evaluation mode returns that very
    tensor."""

    def __init__(self, dropout: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 6), dropout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return self.dropout(y, self.training), y * 2


@pytest.mark.parametrize(
    "dropout",
    [
        lambda y, training: nn.functional.dropout(y, 0.5, training),
        lambda y, training: torch.dropout(y, 0.5, training),
        lambda y, training: nn.functional.alpha_dropout(y, 0.5, training),
        lambda y, training: nn.functional.dropout2d(y[:, :, None, None], 0.5, training),
    ],
)
def test_what_is_read_beside_its_dropout_is_not_dropped(
    dropout: Callable[[Tensor, bool], Tensor],
) -> None:
    model, x = ReadsBeside(dropout), torch.randn(3, 4)
    graph = check(model, x)
    torch.manual_seed(0)
    dropped, whole = run(graph, x, training=True)
    assert torch.equal(whole, 2 * model.layer(x))
    torch.manual_seed(0)
    assert torch.equal(dropped, model.train()(x)[0])


def test_what_is_dropped_in_place_is_dropped_for_every_reader() -> None:
    model = ReadsBeside(lambda y, training: nn.functional.dropout(y, 0.5, training, inplace=True))
    graph = check(model, x := torch.randn(3, 4))
    dropped, read = run(graph, x, training=True)
    assert torch.equal(read, 2 * dropped)


class Region(nn.Module):
    """A part in full precision, as attention of some libraries has it."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.one, self.two, self.enabled = nn.Linear(4, 6), nn.Linear(6, 3), enabled

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            y = self.two(y.float())
        return y * 2


def test_a_region_without_autocast_is_read_as_it_is() -> None:
    assert targets(check(Region(enabled=False), torch.randn(2, 4))).count("linear") == 2


def test_a_region_with_autocast_is_refused() -> None:
    with pytest.raises(UserError, match=r"autocast to bfloat16 on cpu"):
        capture(Region(enabled=True), torch.randn(2, 4))


class TwoInputs(nn.Module):
    """A size that is a quotient of the first sizes of two inputs, both of which are the batch."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.reshape(b.shape[0], -1) + b


def test_the_first_sizes_of_two_inputs_are_one_batch() -> None:
    graph = check(TwoInputs(), torch.randn(2, 2, 3), torch.randn(2, 6))
    assert graph.dynamic_batch, graph.notes
    a, b = torch.randn(5, 2, 3), torch.randn(5, 6)
    assert torch.equal(run(graph, a, b), TwoInputs()(a, b))
