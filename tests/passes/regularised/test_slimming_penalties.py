"""The regularisers gamma-l1 and group-norm, against loops and gradients written out in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.workloads import images as drawn
from helpers.workloads import workload_of
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.models.workload import Workload, seeded
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.regularised.gamma import GammaL1
from pruneopt.passes.regularised.group_norm import GroupNorm
from pruneopt.passes.regularised.regularised import (
    Decision,
    Regulariser,
    RegulariserHook,
    RegulariserTask,
)
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train


def task(model: nn.Module, *shape: int) -> RegulariserTask:
    graph = capture(model.eval(), (torch.randn(2, *shape, dtype=next(model.parameters()).dtype),))
    coupling = couple(graph)
    return RegulariserTask(
        State(graph, graph), coupling, CostModel(graph, coupling), lambda weights: Decision({})
    )


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two convolutions and a linear layer with batch norms; one scale is exactly 0, some are
    negative."""
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 3, 1),
            nn.BatchNorm2d(3),
            nn.Flatten(),
            nn.Linear(48, 3),
        )
        model.append(nn.BatchNorm1d(3)).append(nn.Linear(3, 2))
        for index in (1, 3, 6):
            nn.init.normal_(model.get_parameter(f"{index}.weight"))
        model.get_parameter("1.weight").data[2] = 0.0
    return model.to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Workload:
    x = drawn(48, 2, 6, seed=1).to(dtype)
    return workload_of(x, (x.mean((1, 2, 3)) > 0).long(), 2)


class Watch(Hook):
    """The gradients, and the weights, as they are when this hook is asked."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def before_step(self, run: TrainingRun) -> None:
        named = dict(run.module.named_parameters())
        self.gradients.append(
            {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        )
        self.weights.append({name: p.detach().clone() for name, p in named.items()})


@pytest.mark.parametrize("parts", [1, 3])
def test_sparse_training_is_a_loop_written_out(parts: int) -> None:
    """Momentum SGD with weight decay on the mean loss plus ``scale * sign(gamma)``; scales only."""
    model, reference, workload = net(torch.float64), net(torch.float64), images(torch.float64)
    recipe = SGD(
        epochs=3, batch_size=12, lr=0.05, weight_decay=0.01, schedule="constant", accumulate=parts
    )
    train(
        model,
        workload,
        recipe,
        hooks=[GammaL1(scale=0.03).hook(task(net(torch.float64), 2, 6, 6))],
        seed=2,
    )
    scales = {"1.weight", "3.weight", "6.weight"}
    momentum = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    reference.train()
    for epoch in range(3):
        for x, y in workload.train.batches(12, seed=2 * 100_003 + epoch + 1, drop_last=True):
            total = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
            for part_x, part_y in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
                reference.zero_grad()
                nn.functional.cross_entropy(reference(part_x), part_y).backward()
                for name, p in reference.named_parameters():
                    assert p.grad is not None
                    total[name] += p.grad * len(part_x) / len(x)
            with torch.no_grad():
                for name, p in reference.named_parameters():
                    gradient = total[name] + 0.01 * p
                    if name in scales:
                        gradient = gradient + 0.03 * torch.sign(p)
                    momentum[name] = 0.9 * momentum[name] + gradient
                    p.sub_(0.05 * momentum[name])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, reference.get_parameter(name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_penalty_is_on_whole_unscaled_gradients(precision: str, parts: int) -> None:
    before, after, model = Watch(), Watch(), net()
    hook = GammaL1(scale=0.5).hook(task(net(), 2, 6, 6))
    recipe = SGD(epochs=2, batch_size=16, precision=precision, accumulate=parts)  # type: ignore[arg-type]
    train(model, images(), recipe, hooks=[before, hook, after])
    assert len(after.gradients) == 6
    for old, new, weights in zip(before.gradients, after.gradients, after.weights, strict=True):
        for name in old:
            penalty = (
                0.5 * torch.sign(weights[name])
                if name in ("1.weight", "3.weight", "6.weight")
                else 0.0
            )
            assert torch.equal(new[name], old[name] + penalty)
    assert before.weights[0]["1.weight"][2] == 0
    assert torch.equal(after.gradients[0]["1.weight"][2], before.gradients[0]["1.weight"][2])


def step(
    model: nn.Module, regulariser: Regulariser, *shape: int
) -> tuple[RegulariserHook, dict[str, Tensor]]:
    """Return the hook, and what it adds to zero gradients of a model in one step."""
    hook = regulariser.hook(task(model, *shape))
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    run: Any = SimpleNamespace(module=model, device=torch.device("cpu"))
    hook.start(run)
    hook.before_step(run)
    return hook, {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }


class Norms(nn.Module):
    """Batch norms of every kind, one without scale, and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3, self.norm3 = nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.sync, self.bare = nn.SyncBatchNorm(4), nn.BatchNorm2d(4, affine=False)
        self.conv1, self.norm1 = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
        self.layer = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Any:
        x = self.norm3(self.conv3(x)).mean(-1)
        x = self.bare(self.sync(self.norm2(self.conv2(x)))).mean(-1)
        return self.layer(self.norm1(self.conv1(x)).mean(-1))


def test_every_kind_of_batch_norm_is_penalised() -> None:
    hook, added = step(Norms(), GammaL1(scale=2e-3), 1, 2, 3, 4)
    assert added.keys() == {"norm1.weight", "norm2.weight", "norm3.weight", "sync.weight"}
    assert all(torch.equal(gradient, torch.full((4,), 2e-3)) for gradient in added.values())
    assert (hook.report().reached, hook.report().skipped) == (4, ())


def test_batch_norms_can_be_left_out() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    _, added = step(model, GammaL1(ignore=("0",)), 3, 4, 4)
    assert added.keys() == {"2.weight"}
    _, added = step(model, GammaL1(ignore=("2",)), 3, 4, 4)
    assert added.keys() == {"0.1.weight"}
    with pytest.raises(
        UserError, match=r"gamma-l1\{ignore=5\}: no batch norm is this module or inside it"
    ):
        step(model, GammaL1(ignore=("5",)), 3, 4, 4)
    with pytest.raises(UserError, match="ignores every batch norm"):
        step(model, GammaL1(ignore=("0", "2")), 3, 4, 4)


def test_frozen_scales_are_skipped_and_named() -> None:
    model = net()
    frozen = model.get_parameter("1.weight").requires_grad_(False)
    hook = GammaL1().hook(task(net(), 2, 6, 6))
    before = frozen.clone()
    train(model, images(), SGD(epochs=1, batch_size=16), hooks=[hook])
    assert torch.equal(frozen, before)
    assert (hook.report().reached, hook.report().skipped) == (2, ("1.weight",))


def test_what_a_finished_run_reports_survives_its_checkpoint() -> None:
    hook, _ = step(net(), GammaL1(), 2, 6, 6)
    again = GammaL1().hook(task(net(), 2, 6, 6))
    assert again.report().reached == 0
    again.load_state_dict(hook.state_dict())
    assert again.report() == hook.report()


def test_impossible_options_and_networks() -> None:
    for kind in (GammaL1, GroupNorm):
        for scale in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(UserError, match=r"scale.* must be (above 0|a number)"):
                kind(scale=scale)
    with pytest.raises(
        UserError, match=r"no batch norm with a scale .*regulariser=group-norm criterion=l2"
    ):
        GammaL1().hook(task(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), 3, 4, 4))
    with pytest.raises(UserError, match="no channel group that may be pruned"):
        GroupNorm().hook(task(nn.Sequential(nn.Conv2d(3, 4, 1)), 3, 4, 4))


class Residual(nn.Module):
    """A sum of two layers: the weights of both make a unit. A bare parameter scales another
    group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
        self.inner = nn.Conv2d(5, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.relu(self.inner(torch.relu(self.a(x) + self.b(x)))))


def test_group_norm_is_the_gradient_of_the_penalty() -> None:
    """Against autograd of ``scale * sum ||w_u||``; the output layer is frozen, and zero weights get
    zero."""
    torch.manual_seed(0)
    model = Residual().double()
    model.inner.weight.data[2] = 0.0
    _, added = step(model, GroupNorm(scale=0.3), 3, 6, 6)
    assert added.keys() == {"a.weight", "b.weight", "inner.weight"}
    tensors = [
        p.detach().clone().requires_grad_()
        for p in (model.a.weight, model.b.weight, model.inner.weight)
    ]
    a, b, inner = tensors
    summed = [torch.cat([a[i].flatten(), b[i].flatten()]).norm() for i in range(5)]
    summed += [inner[i].flatten().norm() for i in range(6) if i != 2]
    (0.3 * torch.stack(summed).sum()).backward()
    for name, tensor in zip(("a.weight", "b.weight", "inner.weight"), tensors, strict=True):
        torch.testing.assert_close(added[name], tensor.grad, rtol=0, atol=1e-14)
    assert not added["inner.weight"][2].any()


def test_group_norm_in_single_precision_and_under_training() -> None:
    model = Residual()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    hook, added = step(model, GroupNorm(scale=1.0), 3, 6, 6)
    for name, gradient in added.items():
        assert gradient.dtype == before[name].dtype
    both = torch.stack([added["a.weight"], added["b.weight"]])
    torch.testing.assert_close(both.square().sum((0, 2, 3, 4)), torch.ones(5))
    assert hook.report().reached == 3
    plain, pulled = net(), net()
    train(plain, images(), SGD(epochs=4, batch_size=16, lr=0.1))
    penalty = GroupNorm(scale=0.1).hook(task(net(), 2, 6, 6))
    train(pulled, images(), SGD(epochs=4, batch_size=16, lr=0.1), hooks=[penalty])
    norms = [m.get_parameter("0.weight").flatten(1).norm(dim=1).sum() for m in (plain, pulled)]
    assert norms[1] < 0.8 * norms[0]
