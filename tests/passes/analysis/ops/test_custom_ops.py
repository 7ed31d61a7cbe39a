"""Ops of a user's library: without a rule they freeze what they touch, with one they are pruned
through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nets import Net
from torch import Tensor, nn

from pruneopt.errors import UserError, VerificationError
from pruneopt.extend import elementwise, like, moves, per_channel, register_op
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import ROLES
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.ops import table
from pruneopt.passes.analysis.ops.resize import SIZES
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned

IMAGE = (2, 3, 6, 6)


def define(name: str, function: Callable[..., Tensor]) -> Any:
    """A custom op whose shape is that of its Python function."""
    op = torch.library.custom_op(f"prunetest::{name}", function, mutates_args=())
    op.register_fake(function)
    return op


# Named like ops of PyTorch, on purpose: the rules of those must not be taken for theirs.


def _swish(x: Tensor, beta: Tensor) -> Tensor:
    return x * torch.sigmoid(beta * x)


def _conv2d(x: Tensor, scale: Tensor, shift: Tensor, channels: int) -> Tensor:
    """An affine map of every channel, which checks its sizes as a kernel would."""
    if x.shape[1] != channels:
        raise RuntimeError(f"{x.shape[1]} channels where {channels} were declared")
    return x * scale[:, None, None] + shift[:, None, None]


def _relu(x: Tensor, dim: int) -> Tensor:
    return x.flip(dim)


def _dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, weight) + bias


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _picky(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise RuntimeError("float64 is not supported")
    return x.sigmoid()


OPS = {
    function.__name__[1:]: define(function.__name__[1:], function)
    for function in (_swish, _conv2d, _relu, _dense, _norm, _picky)
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for known in (table.OPS, SIZES, ROLES):
        for name in [name for name in known if name.startswith("prunetest.")]:
            del known[name]


def swishing() -> nn.Module:
    return Net(
        lambda s, x: s.out(OPS["swish"](s.a(x), s.beta)),
        a=nn.Conv2d(3, 8, 3),
        beta=torch.rand(8, 1, 1),
        out=nn.Conv2d(8, 5, 1),
    )


def affine() -> nn.Module:
    return Net(
        lambda s, x: s.out(OPS["conv2d"](s.a(x), s.scale, s.shift, 8)),
        a=nn.Conv2d(3, 8, 3),
        scale=torch.rand(8),
        shift=torch.rand(8),
        out=nn.Conv2d(8, 5, 1),
    )


def flipping() -> nn.Module:
    return Net(
        lambda s, x: s.out(torch.cat([OPS["relu"](s.a(x), 1), s.b(x)], 1)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(3, 4, 3),
        out=nn.Conv2d(12, 5, 1),
    )


def dense() -> nn.Module:
    return Net(
        lambda s, x: s.out(OPS["norm"](OPS["dense"](s.a(x).relu(), s.w, s.b).relu(), s.g, 1e-5)),
        a=nn.Linear(6, 8),
        w=torch.rand(7, 8),
        b=torch.rand(7),
        g=torch.rand(7),
        out=nn.Linear(7, 5),
    )


def register_dense() -> None:
    register_op("prunetest::dense", like("linear"))
    register_op("prunetest::norm", per_channel(-1, ["weight"], statistic=True))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], None], dict[str, int]]] = {
    "swish": (swishing, lambda: register_op("prunetest::swish", elementwise()), {"a": 8}),
    "conv2d": (
        affine,
        lambda: register_op(
            "prunetest::conv2d", per_channel(1, ["scale", "shift"]), sizes={"channels": ("x", 1)}
        ),
        {"a": 8},
    ),
    "relu": (flipping, lambda: register_op("prunetest::relu", moves()), {"a": 8, "b": 4}),
    "relu by a function": (
        flipping,
        lambda: register_op("prunetest.relu", moves(lambda x, dim: x.flip(dim))),
        {"a": 8, "b": 4},
    ),
    "dense": (
        dense,
        register_dense,
        {"a": 8, "w": 7},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_rule_lets_channels_pass(name: str, prove: Callable[..., Any]) -> None:
    make, register, free = NETS[name]
    register()
    torch.manual_seed(0)
    coupling = prove(make(), torch.randn(IMAGE))
    assert {group.name: group.width for group in coupling.free} == free
    assert len(coupling.notes) == (name == "dense")


@pytest.mark.parametrize("make", [swishing, affine, flipping, dense])
def test_without_a_rule_nothing_is_pruned(make: Callable[[], nn.Module]) -> None:
    """Not even where PyTorch has an op of that name."""
    coupling = couple(capture(make().eval(), (torch.randn(IMAGE),)))
    assert {group.name for group in coupling.free} <= {"b"}
    assert {unknown.why for unknown in coupling.unknown} == {"no rule"}


def test_a_layer_has_a_cost() -> None:
    register_op("prunetest::dense", like("linear"))
    graph = capture(dense().eval(), (torch.randn(2, 6),))
    cost = CostModel(graph, couple(graph))
    assert cost.measure("flops", cost.full) == 6 * 8 + 8 * 7 + 7 * 5


def test_a_rule_that_does_not_hold_is_found() -> None:
    """Flipped channels are not those of the same place."""
    register_op("prunetest::relu", elementwise())
    graph = capture(flipping().eval(), (torch.randn(IMAGE),))
    coupling = couple(graph)
    plan = {"a": np.array([0, 1, 5])}
    with pytest.raises(VerificationError, match=r"prunetest\.relu"):
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan))


def test_an_op_that_the_proof_cannot_run() -> None:
    net = Net(
        lambda s, x: s.out(OPS["picky"](s.a(x))), a=nn.Conv2d(3, 8, 3), out=nn.Conv2d(8, 5, 1)
    )
    register_op("prunetest::picky", elementwise())
    graph = capture(net.eval(), (torch.randn(IMAGE),))
    coupling = couple(graph)
    plan = {"a": np.array([0, 1, 5])}
    with pytest.raises(UserError, match=r"prunetest\.picky .* does not run on the CPU in float64"):
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "prunetest::nothing", "rule": elementwise()}, "after importing the library"),
        ({"name": "swish", "rule": elementwise()}, "give it as mylib::op"),
        ({"name": "aten::relu", "rule": elementwise()}, "has a rule already"),
        ({"name": "prunetest::swish", "rule": like("mean")}, "only like conv1d"),
        ({"name": "prunetest::dense", "rule": like("conv2d")}, "no argument 'groups'"),
        (
            {"name": "prunetest::dense", "rule": like("embedding")},
            "whose tensors are weight, indices",
        ),
        (
            {"name": "prunetest::conv2d", "rule": elementwise(), "sizes": {"width": ("x", 1)}},
            "no argument 'width'",
        ),
        (
            {"name": "prunetest::conv2d", "rule": elementwise(), "sizes": {"channels": ("y", 1)}},
            "no tensor 'y'",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        register_op(**arguments)


@pytest.mark.parametrize(
    ("rule", "make", "message"),
    [
        (per_channel(1, ["gain"]), affine, "no tensor 'gain'"),
        (moves(lambda x, dim: x.float()), flipping, "does not move integers"),
        (moves(lambda x: x), flipping, "cannot be run on integers"),
    ],
)
def test_a_rule_that_does_not_fit_its_op_is_refused(
    rule: Any, make: Callable[[], nn.Module], message: str
) -> None:
    register_op(f"prunetest::{'conv2d' if make is affine else 'relu'}", rule)
    graph = capture(make().eval(), (torch.randn(IMAGE),))
    with pytest.raises(UserError, match=message):
        couple(graph)


@pytest.mark.parametrize(
    ("rule", "why"),
    [(per_channel(2, ["scale"]), "other than the 4 channels"), (per_channel(7), "no axis 7")],
)
def test_what_a_rule_does_not_cover_stays(rule: Any, why: str) -> None:
    register_op("prunetest::conv2d", rule)
    coupling = couple(capture(affine().eval(), (torch.randn(IMAGE),)))
    assert not coupling.free
    assert why in coupling.unknown[0].why


def test_an_op_that_lacks_what_its_rule_needs_keeps_its_channels() -> None:
    """Optional tensors of a user's op may be missing where PyTorch's op always has them."""
    torch.manual_seed(0)
    graph = capture(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)), torch.zeros(2, 4)
    )
    middle = graph.ops[1]
    graph.set_operand(middle, 1, None)
    coupling = couple(graph)
    assert [(item.op.role, item.why) for item in coupling.unknown] == [
        ("linear", "operands are missing")
    ]
    assert not coupling.free
