"""The interpreter does what the module does: outputs, running statistics and gradients, in both
modes."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from nets import tiny_vit
from torch import Tensor, nn
from torchvision import models

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph, Op
from pruneopt.ir.interpreter import Interpreter, batch_of
from pruneopt.ir.text.parser import parse_graph


class Block(nn.Module):
    """Residual, grouped and shared layers under batch norms of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8, momentum=0.3)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.cumulative = nn.BatchNorm2d(8, momentum=None)
        self.stateless = nn.BatchNorm2d(8, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu_()
        x = x + self.cumulative(self.grouped(x))
        x = self.plain(self.instance(self.stateless(x)))
        return self.fc(x.mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3), nn.Softmax(-1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dropout(0.5), nn.Dropout2d(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 2)


def images(batch: int = 4, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


CASES: list[tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = [
    (Block, images),
    (Mlp, lambda: torch.randn(5, 6, dtype=torch.float64)),
    (lambda: models.resnet18(num_classes=7), lambda: images(2, 32)),
    (lambda: models.shufflenet_v2_x0_5(num_classes=7), lambda: images(2, 32)),
    (tiny_vit, lambda: images(2, 32)),
]


def twins(
    build: Callable[[], nn.Module], inputs: Callable[[], Tensor]
) -> tuple[nn.Module, Graph, dict[str, Tensor]]:
    """A float64 model, its graph, and weights of its own that gradients can reach."""
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if (
            isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d)
            and module.running_mean is not None
        ):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    graph = capture(model, inputs())
    weights = {name: tensor.clone() for name, tensor in graph.weights.items()}
    for name, value in graph.params.items():
        weights[name].requires_grad_(value.kind == "param")
    return model, graph, weights


def assert_same_state(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(
            weights[name].detach(), tensor, rtol=0, atol=0, msg=f"{{}} of {name}".format
        )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("build", "inputs"), CASES)
def test_outputs_statistics_and_gradients_are_the_modules(
    build: Callable[[], nn.Module], inputs: Callable[[], Tensor], training: bool
) -> None:
    model, graph, weights = twins(build, inputs)
    model.train(training)
    for _ in range(3):
        x = inputs()
        wanted, found = model(x), Interpreter(graph).run(weights, x, training=training)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert_same_state(model, weights)
    wanted.square().sum().backward()
    found.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad, rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_drops_the_same_with_the_same_seed(training: bool) -> None:
    model, x = Dropping().train(training), torch.randn(4, 6, 5, 5)
    graph = capture(model, x)
    torch.manual_seed(3)
    wanted = model(x)
    torch.manual_seed(3)
    found = Interpreter(graph).run(graph.weights, x, training=training)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_frozen_batch_norm_stays_frozen_in_a_training_network() -> None:
    def build() -> nn.Module:
        model = Block()
        model.bn.eval()
        model.cumulative.eval()
        return model

    model, graph, weights = twins(build, images)
    for _ in range(2):
        x = images()
        torch.testing.assert_close(
            Interpreter(graph).run(weights, x, training=True), model(x), rtol=0, atol=0
        )
    assert_same_state(model, weights)
    assert int(weights["bn.num_batches_tracked"]) == 0
    assert int(weights["plain.num_batches_tracked"]) == 2


def test_evaluation_changes_no_weights() -> None:
    _, graph, weights = twins(Block, images)
    before = copy.deepcopy(weights)
    Interpreter(graph).run(weights, images())
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_double_backward_through_the_interpreter() -> None:
    _, graph, weights = twins(Mlp, lambda: torch.randn(5, 6, dtype=torch.float64))
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Interpreter(graph).run(weights, x), (x,))


# What is run, and with what


def test_an_override_stands_in_for_single_ops() -> None:
    _, graph, weights = twins(Mlp, lambda: torch.randn(5, 6, dtype=torch.float64))
    seen = []

    def override(op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        seen.append(op.base)
        return torch.zeros_like(compute()) if op.base == "softmax" else None

    out = Interpreter(graph, override).run(weights, torch.randn(5, 6, dtype=torch.float64))
    assert seen == [op.base for op in graph.ops]
    assert not out.any()


def test_values_are_dropped_after_their_last_use() -> None:
    """A long chain must not hold every activation: the peak matters on large inputs."""
    _, graph, _ = twins(Mlp, lambda: torch.randn(5, 6, dtype=torch.float64))
    dead = [value for values in Interpreter(graph)._dead_after.values() for value in values]
    kept = {value for value in graph.values if not value.is_weight} - set(graph.output_values)
    assert sorted(v.name for v in dead) == sorted(v.name for v in kept)


TEXT = """\
graph @g(%x: f32[N, 4], %y: f32[N*2-1, 3]) {
  param @w: f32[4]
  %a = aten.add.Tensor(%x, @w): f32[N, 4]
  return %a
}
"""


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 4)], "g takes 2 inputs, 1 were given"),
        ([(2, 5), (3, 3)], r"input x has shape \(2, 5\), g takes \[N, 4\]"),
        ([(2, 4), (4, 3)], r"input y has shape \(4, 3\), g takes \[N\*2-1, 3\]"),
        ([(2, 4), (5, 3)], r"input y has shape \(5, 3\), g takes \[N\*2-1, 3\] with N = 2"),
        ([(2, 4, 1), (3, 3)], r"input x has shape \(2, 4, 1\)"),
    ],
)
def test_inputs_of_another_shape_are_refused(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        batch_of(parse_graph(TEXT), [torch.zeros(shape) for shape in shapes])


def test_the_batch_size_is_read_from_the_inputs() -> None:
    assert batch_of(parse_graph(TEXT), [torch.zeros(3, 4), torch.zeros(5, 3)]) == 3


def test_missing_weights_are_named() -> None:
    with pytest.raises(UserError, match="the weights lack w, which g needs"):
        Interpreter(parse_graph(TEXT)).run({}, torch.zeros(3, 4), torch.zeros(5, 3))


def test_a_wrong_number_of_results_is_our_fault() -> None:
    graph = parse_graph(
        TEXT.replace("%a = ", "%a, %b = ").replace("%x, @w): ", "%x, @w): f32[N, 4], ")
    )
    with pytest.raises(
        InternalError, match=r"aten\.add\.Tensor .* gave 1 results, 2 were declared"
    ):
        Interpreter(graph).run({"w": torch.zeros(4)}, torch.zeros(3, 4), torch.zeros(5, 3))
