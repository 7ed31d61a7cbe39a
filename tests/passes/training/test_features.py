"""Options of a recipe beside plain SGD, each against a loop or a formula written out here."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.models.workload import Workload
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.objective import distillation
from pruneopt.passes.training.recipe import SGD, AdamW
from pruneopt.passes.training.trainer import train

Points = Callable[..., Workload]
Plain = Callable[..., nn.Sequential]
Weights = Callable[[nn.Module], Tensor]


class Watcher(Hook):
    """Keeps the gradients before, and the weights after, every step."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.gradients: list[Tensor] = []
        self.weights: list[Tensor] = []

    def start(self, run: TrainingRun) -> None:
        self.calls.append(("start", run.iteration, run.epoch))

    def before_forward(self, run: TrainingRun) -> None:
        assert all(parameter.grad is None for parameter in run.module.parameters())
        self.calls.append(("forward", run.iteration, run.epoch))

    def before_backward(self, run: TrainingRun) -> None:
        assert all(parameter.grad is None for parameter in run.module.parameters())
        self.calls.append(("backward", run.iteration, run.epoch))

    def before_step(self, run: TrainingRun) -> None:
        self.gradients.append(
            torch.cat(
                [p.grad.flatten().clone() for p in run.module.parameters() if p.grad is not None]
            )
        )
        self.calls.append(("step", run.iteration, run.epoch))

    def after_step(self, run: TrainingRun) -> None:
        self.weights.append(
            torch.cat([p.detach().flatten().clone() for p in run.module.parameters()])
        )
        self.calls.append(("after", run.iteration, run.epoch))


def test_hooks_are_called_in_order(points: Points, plain: Plain) -> None:
    hook = Watcher()
    train(plain(), points(), SGD(epochs=2, batch_size=35, accumulate=3), hooks=[hook])
    names = ["forward", "backward", "step", "after"]
    iterations = [
        (name, done + (name == "after"), 1 + done // 2) for done in range(4) for name in names
    ]
    assert hook.calls == [("start", 0, 1), *iterations]


def test_hooks_change_gradients_and_weights(points: Points, plain: Plain) -> None:
    class Sparse(Hook):
        """Adds ``0.1 * sign(w)`` to a gradient, and keeps one weight at zero."""

        def before_step(self, run: TrainingRun) -> None:
            weight = run.module.get_parameter("0.weight")
            assert weight.grad is not None
            weight.grad.add_(0.1 * weight.detach().sign())

        def after_step(self, run: TrainingRun) -> None:
            with torch.no_grad():
                run.module.get_parameter("0.weight")[0, 0] = 0

    module, reference, workload = plain(), plain(), points()
    train(
        module,
        workload,
        SGD(epochs=1, lr=0.1, momentum=0, weight_decay=0, batch_size=70),
        hooks=[Sparse()],
    )
    x, y = next(workload.train.batches(70, seed=1))
    loss = F.cross_entropy(reference(x), y) + 0.1 * reference[0].weight.abs().sum()
    gradient = torch.autograd.grad(loss, reference[0].get_parameter("weight"))[0]
    wanted = (reference[0].weight - 0.1 * gradient).detach()
    wanted[0, 0] = 0
    assert torch.allclose(module[0].weight.detach(), wanted, atol=1e-6)


def test_a_hook_ends_the_training(points: Points, plain: Plain) -> None:
    class Enough(Watcher):
        def finished(self) -> bool:
            return len(self.weights) == 6

    hook = Enough()
    log = train(plain(), points(), SGD(epochs=50, batch_size=16), hooks=[hook])
    assert log.steps == len(hook.weights) == 6
    assert [(entry.epoch, entry.samples) for entry in log.epochs] == [(1, 64), (2, 32)]


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_parts_of_a_batch_make_the_same_step(
    points: Points, plain: Plain, weights: Weights, parts: int
) -> None:
    workload, whole, cut = points(dtype=torch.float64), plain(torch.float64), plain(torch.float64)
    recipe: dict[str, Any] = {"epochs": 4, "batch_size": 16, "lr": 0.1, "label_smoothing": 0.1}
    one = train(whole, workload, SGD(**recipe))
    other = train(cut, workload, SGD(**recipe, accumulate=parts))
    assert torch.allclose(weights(whole), weights(cut), rtol=0, atol=1e-13)
    assert not torch.allclose(weights(whole), weights(plain(torch.float64)), atol=1e-3)
    assert (one.steps, one.epochs[-1].samples) == (other.steps, other.epochs[-1].samples)
    assert one.epochs[-1].loss == pytest.approx(other.epochs[-1].loss, rel=1e-6)


def test_batches_that_cannot_be_cut(points: Points, plain: Plain) -> None:
    with pytest.raises(
        UserError,
        match="a batch of 70 samples cannot be cut into accumulate=80 parts for each of 1",
    ):
        train(plain(), points(), SGD(epochs=1, batch_size=100, accumulate=80))


def test_averaged_weights_are_delivered(
    points: Points, net: Callable[[], nn.Sequential], weights: Weights
) -> None:
    """``w' = 0.7 w' + 0.3 w``, from the weights after the first step on; buffers too, but for
    counts."""
    hook, module, unaveraged = Watcher(), net(), net()
    recipe = SGD(epochs=2, batch_size=16, lr=0.3, ema=0.7)
    train(module, points(), recipe, hooks=[hook])
    average = hook.weights[0]
    for current in hook.weights[1:]:
        average = 0.7 * average + 0.3 * current
    assert torch.allclose(weights(module), average, atol=1e-6)
    assert not torch.allclose(weights(module), hook.weights[-1], atol=1e-3)
    train(unaveraged, points(), SGD(epochs=2, batch_size=16, lr=0.3))
    assert torch.equal(weights(unaveraged), hook.weights[-1])
    assert not torch.equal(
        unaveraged[1].get_buffer("running_mean"), module[1].get_buffer("running_mean")
    )
    assert module[1].num_batches_tracked == 8


def test_gradients_are_clipped_after_the_hooks(
    points: Points, plain: Plain, weights: Weights
) -> None:
    class Push(Hook):
        def before_step(self, run: TrainingRun) -> None:
            for parameter in run.module.parameters():
                parameter.grad = torch.full_like(parameter, 3.0)

    module = plain()
    recipe = SGD(epochs=1, lr=1, momentum=0, weight_decay=0, batch_size=70, clip_norm=0.5)
    train(module, points(), recipe, hooks=[Push()])
    moved = weights(plain()) - weights(module)
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert torch.allclose(moved, moved[0].expand_as(moved), atol=1e-6)


def test_decay_of_chosen_weights(points: Points, net: Callable[[], nn.Sequential]) -> None:
    nothing = points(loss=lambda outputs, targets: outputs.sum() * 0)

    def decayed(**options: object) -> set[str]:
        module, before = net(), dict(net().named_parameters())
        decays = options.pop("decays", None)
        recipe = SGD(epochs=1, lr=0.5, weight_decay=0.1, **options)  # type: ignore[arg-type]
        train(module, nothing, recipe, decays=decays)  # type: ignore[arg-type]
        return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}

    # The shift of a fresh batch norm is zero, and stays so under decay.
    assert decayed() == {"0.weight", "0.bias", "1.weight", "4.weight", "4.bias"}
    assert decayed(decay_norm=False) == {"0.weight", "4.weight"}
    assert decayed(decays=lambda name, parameter: name.startswith("0")) == {"0.weight", "0.bias"}
    assert decayed(decays=lambda name, parameter: name.startswith("0"), decay_norm=False) == {
        "0.weight"
    }
    assert decayed(decays=lambda name, parameter: False) == set()


def test_adamw_is_torchs(points: Points, plain: Plain, weights: Weights) -> None:
    module, reference, workload = plain(), plain(), points()
    train(
        module,
        workload,
        AdamW(epochs=2, lr=0.01, schedule="constant", batch_size=16, weight_decay=0.1),
    )
    optimiser = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1)
    for epoch in (1, 2):
        for x, y in workload.train.batches(16, seed=epoch, drop_last=True):
            optimiser.zero_grad()
            F.cross_entropy(reference(x), y).backward()
            optimiser.step()
    assert torch.equal(weights(module), weights(reference))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_hooks_see_the_gradients_as_they_are(points: Points, plain: Plain, precision: Any) -> None:
    """Not those of the scaled loss, and whole: the sum over all parts."""
    workload, seen = points(dtype=torch.float64), Watcher()
    train(plain(torch.float64), workload, SGD(epochs=1, batch_size=35), hooks=[seen])
    hook = Watcher()
    recipe = SGD(epochs=1, batch_size=35, precision=precision, accumulate=2, clip_norm=100)
    train(plain(), points(), recipe, hooks=[hook])
    for mine, exact in zip(hook.gradients, seen.gradients, strict=True):
        error = ((mine - exact).norm() / exact.norm()).item()
        assert error < {"32-true": 1e-5, "bf16-mixed": 2e-2, "16-mixed": 2e-3}[precision]
        assert (error > 1e-5) == (precision != "32-true")
    assert {value.dtype for value in hook.weights} == {torch.float32}


def test_a_step_whose_scaled_gradients_overflow_is_left_out(
    points: Points, plain: Plain, weights: Weights
) -> None:
    """The first scale is 65536, and a gradient of about 1 then has no place in 16 bits: the scale
    is halved."""
    hook = Watcher()
    loud = points(loss=lambda outputs, targets: 50 * F.cross_entropy(outputs, targets))
    train(plain(), loud, SGD(epochs=3, batch_size=16, lr=1e-4, precision="16-mixed"), hooks=[hook])
    before = [weights(plain()), *hook.weights]
    moved = [not torch.equal(old, new) for old, new in pairwise(before)]
    finite = [bool(torch.isfinite(gradient).all()) for gradient in hook.gradients]
    assert moved == finite
    assert not finite[0]
    assert finite[-1]


def test_the_distance_to_a_teacher() -> None:
    """Against the sum written out, for plain and for dense outputs."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = 0.0
    for row in range(3):
        p = [
            float(torch.exp(theirs[row, k] / 2) / torch.exp(theirs[row] / 2).sum())
            for k in range(5)
        ]
        q = [float(torch.exp(mine[row, k] / 2) / torch.exp(mine[row] / 2).sum()) for k in range(5)]
        wanted += (
            4
            * sum(
                a * (torch.tensor(a).log() - torch.tensor(b).log()).item()
                for a, b in zip(p, q, strict=True)
            )
            / 3
        )
    assert distillation(mine, theirs, 2.0).item() == pytest.approx(wanted, rel=1e-5)
    dense = [tensor.T.reshape(1, 5, 3) for tensor in (mine, theirs)]
    assert distillation(dense[0], dense[1], 2.0).item() == pytest.approx(wanted, rel=1e-5)
    assert distillation(theirs, theirs, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_distilling_steps(points: Points, plain: Plain, net: Callable[[], nn.Sequential]) -> None:
    """One step is the gradient of the mixed loss; the teacher runs in evaluation mode and stays as
    it was."""
    module, reference, workload, teacher = plain(), plain(), points(), net()
    before = copy.deepcopy(teacher.state_dict())
    recipe = SGD(
        epochs=1, batch_size=70, lr=1, momentum=0, weight_decay=0, distil=0.3, temperature=2
    )
    train(module, workload, recipe, teacher=teacher)
    x, y = next(workload.train.batches(70, seed=1))
    target = F.softmax(net().eval()(x) / 2, 1)
    soft = -(target * F.log_softmax(reference(x) / 2, 1)).sum(1).mean()
    gradients = torch.autograd.grad(
        0.7 * F.cross_entropy(reference(x), y) + 0.3 * 4 * soft, [*reference.parameters()]
    )
    for mine, old, gradient in zip(
        module.parameters(), reference.parameters(), gradients, strict=True
    ):
        assert torch.allclose(mine, old - gradient, atol=1e-5)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_no_teacher_where_there_can_be_none(points: Points, plain: Plain) -> None:
    with pytest.raises(UserError, match=r"distil=0.5 needs a teacher: give one, or set distil=0"):
        train(plain(), points(), SGD(epochs=1, distil=0.5))
    with pytest.raises(
        UserError, match="distillation needs classification with the default cross-entropy"
    ):
        train(plain(), points(num_classes=None), SGD(epochs=1, distil=0.5), teacher=plain())
    with pytest.raises(
        UserError, match=r"the teacher's logits have shape \[70, 3\] and the network's \[70, 2\]"
    ):
        train(plain(), points(), SGD(epochs=1, distil=0.5), teacher=nn.Linear(4, 3))


def test_logs_for_tensorboard(points: Points, plain: Plain, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = train(
        plain(),
        points(),
        SGD(epochs=30, batch_size=2, tensorboard=str(tmp_path / "tb")),
        name="tuning",
    )
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    epochs = [(event.step, event.value) for event in events.Scalars("tuning/epoch/loss")]
    assert epochs == [(entry.epoch, pytest.approx(entry.loss)) for entry in log.epochs]
    assert [event.step for event in events.Scalars("tuning/lr")] == [
        s for s in range(20, 1050, 20) if s % 35
    ]
