"""The regulariser ``growing`` in training: its place among gradients and decay, and runs that are
broken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.workloads import noise
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.regularised.growing import Growing
from pruneopt.passes.regularised.regularised import Decision, RegulariserTask
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.stage import train_state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"pick_grow": 0.0}, "pick-grow=0.0 must be above 0"),
        ({"stabilise": -1}, "stabilise=-1 must not be negative"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Growing(**options)


# In training


@pytest.fixture(scope="module")
def workload() -> Workload:
    return noise(24, 3, channels=1, size=6)


def state_of(graph: Graph, workload: Workload, folder: Path | None = None) -> State:
    coupling = couple(graph)
    return State(
        graph,
        graph.copy(),
        coupling=coupling,
        cost=CostModel(coupling.graph, coupling),
        workload=workload,
        run_dir=folder,
    )


TaskOf = Callable[[State], RegulariserTask]


@pytest.fixture
def task_of(smallest: Callable[[Mapping[str, int]], Any]) -> TaskOf:
    """Return the task of a regulariser: two filters of a and three of b go."""

    def make(state: State) -> RegulariserTask:
        def decide(weights: Mapping[str, Tensor]) -> Decision:
            removed = dict(zip("ab", smallest({"a": 2, "b": 3})(weights), strict=True))
            return Decision(
                {name: np.flatnonzero(~flags.numpy()) for name, flags in removed.items()}
            )

        return RegulariserTask(state, state.need_coupling(), state.need_cost(), decide)

    return make


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_penalty_comes_on_top_of_the_weight_decay(
    graph: Graph, workload: Workload, task_of: TaskOf, tiny: nn.Module, accumulate: int
) -> None:
    """One step of SGD, by hand: W - lr * (dloss/dW + decay * W + reg * W); norms and biases have no
    penalty."""
    state = state_of(graph, workload)
    growing = Growing(picks="early", grow=0.25, interval=1, stabilise=0, ceiling=0.1)
    hook = growing.hook(task_of(state))
    recipe = SGD(
        epochs=1, lr=0.1, momentum=0.9, weight_decay=0.01, batch_size=24, schedule="constant"
    )
    recipe = replace(recipe, accumulate=accumulate, augment=False)
    log = train_state(state, recipe, name="t", hooks=(hook,))
    assert log.steps == 1
    model = tiny
    model.load_state_dict(graph.weights)
    model.train()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    images, labels = workload.train.fetch(
        order, augment=False, generator=torch.Generator(), device="cpu"
    )
    parts = zip(images.tensor_split(accumulate), labels.tensor_split(accumulate), strict=True)
    sum(nn.functional.cross_entropy(model(x), y) / accumulate for x, y in parts).backward()
    for name, parameter in model.named_parameters():
        reg = torch.zeros(parameter.shape)
        if name in ("a.weight", "b.weight"):
            score = parameter.detach().abs().mean((1, 2, 3))
            reg[torch.argsort(score)[: 2 if name == "a.weight" else 3]] = 0.25
        assert parameter.grad is not None
        wanted = parameter - 0.1 * (parameter.grad + 0.01 * parameter + reg * parameter)
        torch.testing.assert_close(state.graph.weights[name], wanted.detach())


def test_a_training_too_short_for_the_schedule(
    graph: Graph, workload: Workload, task_of: TaskOf
) -> None:
    state = state_of(graph, workload)
    hook = Growing(iterations=20).hook(task_of(state))
    with pytest.raises(
        UserError, match=r"training lasts 19 iterations, .* takes up to 20: .* iterations=19"
    ):
        train_state(state, SGD(epochs=19, batch_size=24), name="t", hooks=(hook,))


class Stopped(Exception):
    pass


class StopAt(Hook):
    """Breaks the run off before an iteration."""

    def __init__(self, iteration: int | None) -> None:
        self.iteration = iteration

    def before_forward(self, run: TrainingRun) -> None:
        if run.iteration == self.iteration:
            raise Stopped


@pytest.mark.parametrize("picks", ["early", "late"])
@pytest.mark.parametrize("stop", [3, 7, 12, 19])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    graph: Graph, workload: Workload, task_of: TaskOf, tmp_path: Path, picks: Any, stop: int
) -> None:
    """Before the pick, after it, under the growing and under the final penalty."""
    options = {
        "interval": 2,
        "stabilise": 6,
        "grow": 0.3,
        "pick_grow": 0.01,
        "pick_ceiling": 0.02,
        "recover": -0.01,
    }
    growing = Growing(picks=picks, ceiling=1.0, **options)  # type: ignore[arg-type]
    recipe = SGD(epochs=30, lr=0.05, batch_size=12, schedule="constant", augment=False)

    def run(folder: Path, stop: int | None) -> tuple[State, Any]:
        folder.mkdir(exist_ok=True)
        state = state_of(graph, workload, folder)
        hook = growing.hook(task_of(state))
        log = train_state(state, recipe, name="t", hooks=(hook, StopAt(stop)))
        return state, (log.steps, hook.report(), hook.decision)

    whole, (steps, report, decision) = run(tmp_path / "whole", None)
    assert steps == growing.rates(picks == "early").iterations(picks == "early")
    with pytest.raises(Stopped):
        run(tmp_path / "parts", min(stop, steps - 1))
    again, (steps_again, report_again, decision_again) = run(tmp_path / "parts", None)
    assert (steps_again, report_again) == (steps, report)
    assert decision is not None
    assert decision_again is not None
    for name, kept in decision.plan.items():
        assert np.array_equal(decision_again.plan[name], kept)
    for name, tensor in whole.graph.weights.items():
        assert torch.equal(again.graph.weights[name], tensor), name
    # A finished run is taken over, with what it decided.
    third, (_, report_third, decision_third) = run(tmp_path / "parts", None)
    assert report_third == report
    assert decision_third is not None
    assert torch.equal(third.graph.weights["a.weight"], whole.graph.weights["a.weight"])
