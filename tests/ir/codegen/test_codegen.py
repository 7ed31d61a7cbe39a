"""The generated source computes what the graph computes, in evaluation and in training, under the
original's names."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.codegen_cases import CASES, Cumulative, network
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module, generate_source
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.types import BatchSize, TensorType


def assert_same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    leaves_a, spec_a = pytree.tree_flatten(a)
    leaves_b, spec_b = pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance, equal_nan=True)
        else:
            assert x == y


def plain(outputs: Any) -> Any:
    """Outputs with ordered dictionaries as plain ones, as a graph returns them."""
    if isinstance(outputs, Mapping):
        return {key: plain(value) for key, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        return type(outputs)(plain(item) for item in outputs)
    return outputs


def imported(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def trained(graph: Graph) -> dict[str, Tensor]:
    """A copy of the graph's weights that gradients flow into."""
    return {
        n: t.clone().requires_grad_(graph.params[n].kind == "param")
        for n, t in graph.weights.items()
    }


def gradients(outputs: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    total = sum(
        (leaf.float() ** 2).mean() for leaf in pytree.tree_leaves(outputs) if leaf.requires_grad
    )
    names = [name for name, tensor in tensors.items() if tensor.requires_grad]
    found = torch.autograd.grad(total, [tensors[name] for name in names], allow_unused=True)
    return {
        name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None
    }


def check_evaluation(model: nn.Module, graph: Graph, inputs: tuple[Tensor, ...]) -> nn.Module:
    module = build_module(graph, graph.weights)
    with torch.no_grad():
        expected = plain(model.eval()(*inputs))
        assert_same(module(*inputs), expected)
        assert_same(module(*inputs), Interpreter(graph).run(graph.weights, *inputs))
    return module


def check_training(
    model: nn.Module, graph: Graph, inputs: tuple[Tensor, ...], steps: int = 2
) -> None:
    """Outputs, gradients and running statistics of the original, the generated module and the
    interpreter agree."""
    model, module, weights = (
        copy.deepcopy(model).train(),
        build_module(graph, graph.weights).train(),
        trained(graph),
    )
    own, given = dict(module.named_parameters()), dict(model.named_parameters())
    for step in range(steps):
        torch.manual_seed(step)
        expected = plain(model(*inputs))
        torch.manual_seed(step)
        outputs = module(*inputs)
        torch.manual_seed(step)
        interpreted = Interpreter(graph).run(weights, *inputs, training=True)
        assert_same(outputs, expected)
        assert_same(outputs, interpreted)
        wanted, found = gradients(expected, given), gradients(outputs, own)
        assert_same(found, {name: wanted[name] for name in found}, 1e-4)
        assert_same(found, gradients(interpreted, weights), 1e-4)
    buffers = dict(model.named_buffers())
    for name, value in module.named_buffers():
        if name in buffers:
            assert_same(value, buffers[name])
        assert_same(value, weights[name])


def check_names(model: nn.Module, graph: Graph, module: nn.Module) -> None:
    assert set(module.state_dict()) == {*graph.params, *graph.aliases}
    state = {
        name: tensor for name, tensor in model.state_dict().items() if name in module.state_dict()
    }
    extra = {
        name for name, value in graph.params.items() if name not in state and value.kind != "param"
    }
    module.load_state_dict(state | {name: graph.weights[name] for name in extra})
    assert [name for name, _ in module.named_parameters()] or not any(
        v.kind == "param" for v in graph.params.values()
    )


def check_source(graph: Graph, inputs: tuple[Tensor, ...], module: nn.Module) -> None:
    source = generate_source(graph)
    assert imported(source) == {"torch"}
    assert source == generate_source(graph.copy())
    assert max(map(len, source.splitlines())) <= 140
    again = capture(module, inputs)
    types = {name: value.type for name, value in graph.params.items()}
    assert {name: value.type for name, value in again.params.items()} == types
    assert {n: v.kind for n, v in again.params.items() if v.kind == "param"} == {
        n: v.kind for n, v in graph.params.items() if v.kind == "param"
    }
    assert again.aliases == graph.aliases
    compile(generate_source(again), "again", "exec")


@pytest.mark.parametrize("name", CASES)
def test_network(name: str) -> None:
    model, inputs = network(name)
    graph = capture(model, inputs)
    module = check_evaluation(model, graph, inputs)
    check_names(model, graph, module)
    check_training(model, graph, inputs)
    check_source(graph, inputs, module)


@pytest.mark.parametrize("name", CASES)
def test_other_batch_sizes(name: str) -> None:
    model, inputs = network(name)
    graph = capture(model, inputs)
    assert graph.dynamic_batch, graph.notes
    larger = tuple(torch.cat([x, x, x])[: x.shape[0] + 3] for x in inputs)
    check_evaluation(model, graph, larger)


def test_cumulative_momentum() -> None:
    torch.manual_seed(0)
    model, x = Cumulative(), torch.randn(6, 5)
    single = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None))
    graph = capture(single, x)
    assert (
        "super().__init__([nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None)])"
        in generate_source(graph)
    )
    check_evaluation(single, graph, (x,))
    check_training(single, graph, (x,), steps=3)
    # The same through the functional form: the graph alone says what happens there.
    graph = capture(model, x)
    assert "F.batch_norm(" in generate_source(graph)
    module, weights = build_module(graph, graph.weights).train(), trained(graph)
    for _ in range(3):
        assert_same(module(x), Interpreter(graph).run(weights, x, training=True))
    for name, value in module.named_buffers():
        assert_same(value, weights[name])


@pytest.mark.parametrize("in_training", [True, False])
def test_frozen_batch_norm_stays_frozen(in_training: bool) -> None:
    model, x = network("residual")[0].train(), CASES["residual"][1]
    model.bn.eval()
    graph = capture(model, x)
    source = generate_source(graph)
    assert "class FrozenBatchNorm2d(nn.BatchNorm2d)" in source
    module = build_module(graph, graph.weights).train()
    expected = model(*x)
    assert_same(module(*x), expected)
    state = model.state_dict()
    assert_same(dict(module.state_dict()), {name: state[name] for name in module.state_dict()})
    # Pruned once more, in either mode, it is frozen still.
    again = capture(module.train(in_training), x)
    assert generate_source(again).count("FrozenBatchNorm2d(8") == 1


def test_source_is_plain_pytorch() -> None:
    model, x = network("residual")
    source = generate_source(capture(model, x), class_name="Small")
    assert "class Small(nn.Module):" in source
    assert (
        "self.stem = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)])"
        in source
    )
    assert "self.bn = nn.BatchNorm2d(8, eps=0.001, momentum=0.3)" in source
    assert "= self.stem[0](x)" in source
    assert "torch.ops" not in source
    assert "n = x.shape[0]" not in source, "the batch size is read only where it is needed"


def test_shared_and_tied_weights_stay_one() -> None:
    tied = [(name, "words.weight", "decoder.weight") for name in ("tied", "tied_whole")]
    for name, first, second in (*tied, ("shared", "many.0.weight", "many.2.weight")):
        model, inputs = network(name)
        graph = capture(model, inputs)
        parameters = dict(
            build_module(graph, graph.weights).named_parameters(remove_duplicate=False)
        )
        assert parameters[first] is parameters[second]


def test_numbered_children_with_gaps() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    graph = capture(model, torch.randn(2, 4))
    assert "class Sequential(nn.ModuleDict):" in generate_source(graph)
    check_evaluation(model, graph, (torch.randn(3, 4),))
    wrapped = nn.Sequential(model)
    graph = capture(wrapped, torch.randn(2, 4))
    assert (
        'super().__init__([nn.ModuleDict({"1": nn.Linear(4, 4), "3": nn.Linear(4, 2)})])'
        in generate_source(graph)
    )
    check_evaluation(wrapped, graph, (torch.randn(3, 4),))


def test_shape_scaled_input() -> None:
    """An input whose size is a multiple of the batch size: the source solves for it."""
    graph = Graph("Folded")
    x = graph.add_input("x", TensorType("f32", (BatchSize(4), 3)))
    size = (BatchSize(), BatchSize(6, 0, 1), 2)
    op = graph.add_op(
        "aten.reshape.default",
        [x],
        {"shape": size},
        [("y", TensorType("f32", (BatchSize(), 6, 2)))],
    )
    graph.set_attr(op, "shape", (BatchSize(), 6, 2))
    graph.outputs = (op.result,)
    source = generate_source(graph)
    assert "n = (x.shape[0]) // 4" in source
    assert build_module(graph, {})(torch.randn(8, 3))[0].shape == (2, 6, 2)


OPS: dict[str, Callable[[Tensor], Any]] = {
    "add_alpha": lambda x: (
        torch.add(x, x * 2, alpha=3) - torch.sub(x, 1, alpha=2) + torch.rsub(x, 2.0)
    ),
    "pow": lambda x: (x.abs() + 1) ** x + 2.0**x + x**-2 + x**3,
    "compare": lambda x: (
        ((x > 0) & (x <= 1) | ~(x != 0.5)).to(torch.float32) + torch.eq(x, x).float()
    ),
    "floor": lambda x: (x // 0.3) + (x % 0.7) + torch.div(x, 0.2, rounding_mode="trunc"),
    "clamp": lambda x: x.clamp(min=-1) + x.clamp(max=0.5) + torch.clamp(x, -0.1, 0.1),
    "infinite": lambda x: x.masked_fill(x < 0, float("-inf")).softmax(-1),
    "var": lambda x: x.var(dim=1, keepdim=True) + x.std((2, 3), correction=0, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, dim=(1, 2)),
    "norm": lambda x: (
        F.normalize(x, dim=1)
        + torch.linalg.vector_norm(x, dim=1, keepdim=True)
        + x.norm(p=2, dim=1)[:, None]
    ),
    "topk": lambda x: (
        x.topk(2, dim=-1) + tuple(x.max(dim=1)) + tuple(x.sort(dim=2, descending=True))
    ),
    "one_chunk": lambda x: x.split(100, dim=1)[0] + x.chunk(1)[0],
    "fft": lambda x: torch.fft.rfft2(x, norm="ortho").real + 0.0,
    "flip_roll": lambda x: torch.roll(torch.flip(x, (2,)), (1, -1), (2, 3)),
    "unfold": lambda x: (
        F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1) + x.unfold(2, 2, 2).sum(-1).sum()
    ),
    "gather": lambda x: (
        x.gather(1, torch.zeros_like(x, dtype=torch.int64))
        + x.index_select(1, torch.tensor([1, 0, 3, 2]))
    ),
    "index": lambda x: x[:, torch.tensor([0, 2])] + x[:, [1, 3]] + x[:, 1:3, ...] + x[:, -1:, ::1],
    "ellipsis": lambda x: x[..., None, 0] + x[..., -2:].sum(-1, keepdim=True),
    "pooling": lambda x: (
        F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) + F.max_pool2d(x, (2, 2), ceil_mode=True)
    ),
    "adaptive": lambda x: (
        F.adaptive_max_pool2d(x, (3, 2))
        + F.adaptive_avg_pool2d(x, (3, None)).mean(-1, keepdim=True)
    ),
    "with_indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "activations": lambda x: (
        F.elu(x, 0.5)
        + F.selu(x)
        + F.celu(x, 2.0)
        + F.softplus(x, 2)
        + F.mish(x)
        + F.glu(x, 1).sum()
    ),
    "more_activations": lambda x: (
        F.leaky_relu(x, 0.2) + F.relu6(x) + F.hardsigmoid(x) + F.logsigmoid(x) + F.hardtanh(x)
    ),
    "still_more": lambda x: (
        F.softshrink(x, 0.1)
        + F.tanhshrink(x)
        + F.softsign(x)
        + F.threshold(x, 0.1, 2.0)
        + F.silu(x)
    ),
    "log_softmax": lambda x: (
        F.log_softmax(x, 1) + F.softmin(x, 2) + torch.logsumexp(x, 3, keepdim=True)
    ),
    "local_response": lambda x: F.local_response_norm(x, 2),
    "pad": lambda x: (
        F.pad(x, (1, 0, 0, 2), value=3.0)[:, :, 2:, 1:]
        + F.pad(x, (1, 1, 0, 0), mode="replicate")[..., 2:]
    ),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=True),
    "antialias": lambda x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True),
    "nearest_exact": lambda x: F.interpolate(x, (8, 9), mode="nearest-exact"),
    "grid_sample": lambda x: F.grid_sample(
        x, torch.zeros(1, 2, 2, 2).expand(x.shape[0], -1, -1, -1), align_corners=False
    ),
    "shuffle": lambda x: F.pixel_shuffle(x, 2) + F.channel_shuffle(x, 2).sum(),
    "products": lambda x: (
        torch.bmm(x[:, 0], x[:, 1])
        + torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=2)
        + x[:, 0] @ x[:, 1]
    ),
    "einsum": lambda x: torch.einsum("nchw,ncwk,kj->nhj", x, x, x[0, 0]),
    "create": lambda x: (
        x + torch.arange(0, 6, 1, dtype=x.dtype) + torch.full((6, 1), 0.5) + torch.linspace(0, 1, 6)
    ),
    "create_like": lambda x: (
        torch.ones_like(x) + x.new_full((6,), 2.0) + torch.eye(6) + torch.empty_like(x).fill_(1)
    ),
    "batch_create": lambda x: (
        torch.ones(x.shape[0] * 2, 1).view(2, x.shape[0], 1).sum(0) + x.sum((1, 2, 3))[:, None]
    ),
    "cast": lambda x: (x.half().float() + x.double() + x.to(torch.bfloat16)).type_as(x),
    "triangle": lambda x: x.tril(-1) + torch.triu(x, 1) + x.cumsum(1) + x.cumprod(dim=2),
    "where": lambda x: (
        torch.where(x > 0, x, 0.0)
        + torch.where(x > 0, 1.0, x)
        + torch.maximum(x, -x)
        + torch.lerp(x, -x, 0.3)
    ),
    "repeat": lambda x: (
        x.repeat(1, 2, 1, 1)[:, :4] + x.repeat_interleave(2, 1)[:, ::2] + x.expand(-1, 4, 6, 6)
    ),
    "movedim": lambda x: (
        x.movedim(1, -1)
        .contiguous()
        .swapaxes(1, 3)
        .unflatten(1, (2, 2))
        .flatten(1, 2)
        .squeeze()
        .clone()
    ),
    "one_hot": lambda x: F.one_hot(x[:, 0, 0].abs().long().clamp(max=4), 5),
    "in_place": lambda x: x.clone().mul_(2).add_(1).clamp_(min=0).sub_(x),
    "slice_assign": lambda x: torch.cat([x.clone().index_fill_(1, torch.tensor([1]), 2.0), x]),
    "loss": lambda x: (
        F.mse_loss(x, x + 1, reduction="none")
        + F.smooth_l1_loss(x, -x)
        + F.l1_loss(x, 2 * x, reduction="sum")
    ),
    "detach": lambda x: x * x.detach(),
    "nested": lambda x: {"a": [x, (x + 1,)], "b": None, "c": {"d": (x * 2, 3)}},
}


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", OPS)
def test_op(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6)
    graph = capture(Call(OPS[name]), x)
    check_evaluation(Call(OPS[name]), graph, (x,))
    module, larger = build_module(graph, graph.weights), torch.randn(5, 4, 6, 6)
    if graph.dynamic_batch:
        assert_same(module(larger), plain(Call(OPS[name])(larger)))


def test_weights_must_fit() -> None:
    graph = capture(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(UserError, match="the weights lack bias"):
        build_module(graph, {"weight": graph.weights["weight"]})
    with pytest.raises(UserError, match=r"weight has shape \(2, 4\)"):
        build_module(graph, {**graph.weights, "weight": torch.zeros(2, 4)})
    with pytest.raises(UserError, match="name of a class"):
        generate_source(graph, class_name="not a name")


HOSTILE = 'w", None); raise SystemExit("ran")\n#'


@pytest.mark.parametrize(
    "names", [(HOSTILE, "b"), (f"layer.{HOSTILE}", f"{HOSTILE}.b"), ("0.w", f"1.{HOSTILE}")]
)
def test_names_are_never_code(names: tuple[str, str]) -> None:
    """Build a graph whose weights, values and outputs have names that end a string and go on."""
    first, second, other = (json.dumps(name) for name in (*names, HOSTILE))
    graph = parse_graph(
        f"""graph @{other}(%input: f32[N, 3]) {{
          param @{first}: f32[3]
          buffer @{second}: f32[3]
          %{other} = aten.add.Tensor(%input, @{first}): f32[N, 3]
          %total = aten.add.Tensor(%{other}, @{second}): f32[N, 3]
          return {{{other}: %total}}
        }}"""
    )
    weights = {name: torch.full((3,), 1.0 + number) for number, name in enumerate(names)}
    module = build_module(graph, weights)
    assert set(module.state_dict()) == set(names)
    (result,) = module(torch.zeros(2, 3)).values()
    assert torch.equal(result, torch.full((2, 3), 3.0))


def test_building_leaves_weights_and_random_state_alone() -> None:
    model, inputs = network("residual")
    graph = capture(model, inputs)
    state, before = torch.random.get_rng_state(), {n: t.clone() for n, t in graph.weights.items()}
    build_module(graph, graph.weights).train()(*inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(dict(graph.weights), before)


def torchvision_network(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    if name.startswith("deeplab"):
        net: nn.Module = getattr(torchvision.models.segmentation, name)(
            weights=None, weights_backbone=None
        )
        return net
    options = {"init_weights": True} if name == "googlenet" else {}
    made: nn.Module = getattr(torchvision.models, name)(weights=None, **options)
    return made


def without_stochastic_depth(model: nn.Module) -> nn.Module:
    """Stochastic depth and auxiliary heads act in training only; a graph leaves them out, with a
    note."""
    for module in model.modules():
        if type(module).__name__ == "StochasticDepth":
            setattr(module, "p", 0.0)  # noqa: B010
    for name in ("aux1", "aux2"):
        if hasattr(model, name):
            setattr(model, name, None)
    if hasattr(model, "aux_logits"):
        setattr(model, "aux_logits", False)  # noqa: B010
    return model


FAST = ["resnet18", "mobilenet_v2", "shufflenet_v2_x1_0"]
SLOW = [
    "vit_b_16",
    "swin_t",
    "deeplabv3_resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "googlenet",
    "densenet121",
]


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_torchvision(name: str) -> None:
    model = without_stochastic_depth(torchvision_network(name))
    size = 224 if name in ("vit_b_16", "swin_t") else 96
    inputs = (torch.randn(2, 3, size, size),)
    graph = capture(model, inputs)
    module = check_evaluation(model, graph, inputs)
    check_names(model, graph, module)
    check_source(graph, inputs, module)
    model.train()
    module.train()
    torch.manual_seed(1)
    expected = plain(model(*inputs))
    torch.manual_seed(1)
    assert_same(module(*inputs), expected, 1e-4)
    buffers = dict(model.named_buffers())
    for key, value in module.named_buffers():
        if key in buffers:
            assert_same(value, buffers[key], 1e-4)


def test_a_network_of_one_batch_size_refuses_others() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + torch.arange(6.0).view(2, 3)

    x = torch.randn(2, 4)
    graph = capture(model := Fixed(), x)
    assert not graph.dynamic_batch
    module = build_module(graph, graph.weights)
    assert torch.equal(module(x), model(x))
    with pytest.raises(ValueError, match="takes a batch of 2, not 1"):
        module(x[:1])
