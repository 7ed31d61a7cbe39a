"""`Result.apply_` in the middle of a training: gradients and the state of optimizers are cut as the
weights are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.applied import assert_same, batch, equal, net, pruned, snapshot
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.types import TensorType


def test_a_loss_of_earlier_may_still_be_there() -> None:
    """Autograd keeps the nodes that collect gradients, with the old sizes, as long as a loss
    does."""
    model, x = net(), batch(2, 3, 8, 8)
    result = pruned(model, x)
    loss = model(x).sum()
    loss.backward()
    full = model.expand.weight.grad
    assert full is not None
    result.apply_(model)
    rows, columns = (result.plan or {})["expand"], (result.plan or {})["stem"]
    assert model.expand.weight.grad is not None
    assert torch.equal(model.expand.weight.grad, full[rows][:, columns])
    model(x).sum().backward()
    assert model.expand.weight.grad.shape == model.expand.weight.shape
    assert loss.grad_fn is not None


class Chain(nn.Module):
    """Every group is made by one layer and read by the next, so that the masked original is quickly
    written down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.b = nn.Conv2d(10, 12, 3, padding=1)
        self.c = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.bn(self.a(x))))).mean((2, 3)))


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(
        groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, amsgrad=True, weight_decay=0.05),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
}


def groups_of(model: Chain) -> list[dict[str, Any]]:
    return [
        {"params": [model.c.bias, model.a.weight], "lr": 0.02},
        {"params": [model.bn.weight, model.bn.bias]},
        {"params": [model.a.bias, model.b.weight, model.b.bias, model.c.weight]},
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, target = (
        torch.randn(6, 3, 8, 8, generator=generator).double(),
        torch.randint(0, 4, (6,), generator=generator),
    )
    optimizer.zero_grad()
    F.cross_entropy(model.train()(x), target).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_that_of_the_masked_original(kind: str) -> None:
    """The kept weights move as those of the original of which the removed channels are read as
    zeros."""
    torch.manual_seed(0)
    model = Chain().double()
    optimizer = OPTIMIZERS[kind](groups_of(model))
    for seed in range(3):
        step(model, optimizer, seed)
    result = pruned(model.eval(), batch(2, 3, 8, 8).double())
    keep_a, keep_b = ((result.plan or {})[name] for name in ("a", "b"))
    masked = copy.deepcopy(model)
    other = OPTIMIZERS[kind](groups_of(masked))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    result.apply_(model, optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 4]
    for seed in range(3, 6):
        with torch.no_grad():
            masked.b.weight[:, [i for i in range(10) if i not in keep_a]] = 0
            masked.c.weight[:, [i for i in range(12) if i not in keep_b]] = 0
        step(model, optimizer, seed)
        step(masked, other, seed)
    assert 0 < len(keep_a) < 10
    pairs = [
        (model.a.weight, masked.a.weight[keep_a]),
        (model.bn.weight, masked.bn.weight[keep_a]),
        (model.bn.running_var, masked.bn.running_var[keep_a]),
        (model.b.weight, masked.b.weight[keep_b][:, keep_a]),
        (model.b.bias, masked.b.bias[keep_b]),
        (model.c.weight, masked.c.weight[:, keep_b]),
        (model.c.bias, masked.c.bias),
    ]
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-11)


def test_a_bias_that_a_repair_added_is_trained_too() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    groups: list[dict[str, Any]] = [
        {"params": [model.head.weight]},
        {"params": [model.stem.weight], "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    result = pruned(model, x)
    (conv,) = (op for op in result.graph.ops if op.loc.module == "stem")
    bias = result.graph.add_param(
        "stem.bias", TensorType("f32", (conv.results[0].type.shape()[1],)), "param"
    )
    result.graph.set_operand(conv, 2, bias)
    result.graph.weights["stem.bias"] = torch.rand(bias.type.shape())
    result.apply_(model, optimizer)
    assert model.stem.bias is not None
    assert optimizer.param_groups[1]["params"] == [model.stem.weight, model.stem.bias]
    assert_same(model, result, x)
    odd = pruned(net(), x)
    odd.graph.weights["odd"] = torch.rand(
        odd.graph.add_param("odd", TensorType("f32", (3,)), "param").type.shape()
    )
    with pytest.raises(UserError, match="the pruned network has odd, for which Net has no place"):
        odd.apply_(net())


def test_an_optimizer_that_cannot_be_cut() -> None:
    model, x = net(), batch(2, 3, 8, 8)
    result = pruned(model, x)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    before = snapshot(model, optimizer)
    with pytest.raises(
        UserError, match=r"Adafactor remembers row_var .*: call apply_ without the optimizer"
    ):
        result.apply_(model, [optimizer])
    assert equal(snapshot(model, optimizer), before)
    with pytest.raises(UserError, match="SGD trains no parameter of the module"):
        result.apply_(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
