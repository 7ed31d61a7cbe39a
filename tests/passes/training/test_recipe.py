"""Recipes: the learning rate at every step, options out of range, and recipes as text."""

import math
from typing import Any

import pytest
import torch

from pruneopt.errors import UserError
from pruneopt.passes.options.spec import parse_part
from pruneopt.passes.pipeline.text import parse_pipeline, pipeline_text
from pruneopt.passes.training.recipe import SGD, AdamW, Recipe
from pruneopt.passes.transform.finetune import Finetune


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    return [recipe.rate(step, steps_per_epoch) for step in range(recipe.epochs * steps_per_epoch)]


def test_rates_by_step() -> None:
    assert rates(SGD(epochs=2, lr=1, schedule="constant"), 2) == [1, 1, 1, 1]
    assert rates(SGD(epochs=2, lr=1, schedule="linear"), 2) == [1, 0.75, 0.5, 0.25]
    assert rates(SGD(epochs=2, lr=2, schedule="step"), 2) == pytest.approx([2, 2, 0.2, 0.02])
    cosine = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates(SGD(epochs=2, lr=1, schedule="cosine"), 2) == pytest.approx(cosine)


def test_rates_by_epoch() -> None:
    """MetaPruning: linear ``lr0 * (1 - e/E)``; ResNet-50 there: a tenth at a quarter, half and
    three quarters."""
    linear = rates(SGD(epochs=4, lr=0.5, schedule="linear", every="epoch"), 3)
    assert linear == pytest.approx([0.5 * (1 - e / 4) for e in range(4) for _ in range(3)])
    recipe = SGD(epochs=32, lr=0.1, schedule="step", milestones=(0.25, 0.5, 0.75), every="epoch")
    assert rates(recipe, 1) == pytest.approx([0.1 / 10 ** (e // 8) for e in range(32)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs=-1 must not be negative"),
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"lr": math.inf}, "lr must be a number, not inf"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        ({"schedule": "cos"}, "schedule must be one of cosine, linear, step, constant, not 'cos'"),
        ({"every": "batch"}, "every must be one of step, epoch, not 'batch'"),
        ({"precision": "16"}, "precision must be one of 32-true, bf16-mixed, 16-mixed, not '16'"),
        ({"milestones": (0.5, 30.0)}, r"milestones=\(0.5, 30.0\) must lie between 0 and 1"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 must lie between 0 and 1"),
        ({"accumulate": 129}, "accumulate=129 must be from 1 to batch_size"),
        ({"ema": 1.0}, "ema=1.0 must lie between 0 and 1"),
        ({"distil": 2.0}, "distil=2.0 must lie between 0 and 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 must not be negative"),
        ({"momentum": 1.0}, "momentum=1.0 must lie between 0 and 1"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True must go with a momentum above 0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SGD(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"), [({"beta2": 1.0}, "beta2=1.0 must"), ({"eps": 0.0}, "eps=0.0 must")]
)
def test_options_of_adamw_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdamW(**options)  # type: ignore[arg-type]


def test_the_optimisers() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "weight_decay": 0.3}]
    sgd = SGD(lr=0.2, momentum=0.8, nesterov=True).optimiser(groups)
    assert isinstance(sgd, torch.optim.SGD)
    wanted: dict[str, Any] = {"lr": 0.2, "momentum": 0.8, "nesterov": True, "weight_decay": 0.3}
    assert {key: sgd.param_groups[0][key] for key in wanted} == wanted
    adamw = AdamW(lr=0.2, beta1=0.5, beta2=0.6, eps=1e-3).optimiser(groups)
    assert isinstance(adamw, torch.optim.AdamW)
    wanted = {"lr": 0.2, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.3}
    assert {key: adamw.param_groups[0][key] for key in wanted} == wanted


def test_recipes_are_parts() -> None:
    assert parse_part(Recipe, "sgd{epochs=3 milestones=0.3,0.6 every=epoch ema=0.9}") == SGD(
        epochs=3, milestones=(0.3, 0.6), every="epoch", ema=0.9
    )
    assert parse_part(Recipe, "adamw{beta2=0.95}") == AdamW(beta2=0.95)
    with pytest.raises(UserError, match="adamw has no option 'momentum'"):
        parse_part(Recipe, "adamw{momentum=0.9}")


def test_finetune_takes_the_options_of_a_recipe() -> None:
    text = "finetune{epochs=5 lr=0.001 accumulate=4 distil=0.0 optimiser=adamw}"
    (step,) = parse_pipeline(text)
    assert isinstance(step, Finetune)
    assert step.recipe() == AdamW(epochs=5, lr=0.001, accumulate=4)
    assert parse_pipeline(pipeline_text([step])) == [step]
    assert Finetune(momentum=0.5, nesterov=True).recipe() == SGD(
        momentum=0.5, nesterov=True, distil=0.5
    )
    with pytest.raises(UserError, match="momentum is for optimiser=sgd: leave it out"):
        Finetune(optimiser="adamw", momentum=0.5)
    with pytest.raises(UserError, match="optimiser must be one of sgd, adamw, not 'adam'"):
        Finetune(optimiser="adam")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="finetune: epochs=-1 must not be negative"):
        parse_pipeline("finetune{epochs=-1}")


def test_logs_need_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneopt.passes.training.recipe.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="tensorboard is not installed: pip install tensorboard, or leave"
    ):
        SGD(tensorboard="logs")
