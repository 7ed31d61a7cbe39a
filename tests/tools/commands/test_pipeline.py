"""Which passes compile runs for its options."""

import argparse
from typing import Any

import pytest

from pruneopt.errors import UserError
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.repair.repair import Repair
from pruneopt.passes.transform.recalibrate import Recalibrate
from pruneopt.tools.commands.pipeline import passes_of


def steps(**options: Any) -> list[Pass]:
    defaults: dict[str, Any] = {
        "pipeline": None,
        "pass_text": "l1",
        "repair": [],
        "budgets": ["50%FLOPs"],
        "finetune_epochs": 0,
        "round_to": None,
        "min_channels": None,
        "flops_convention": "macs",
    }
    return passes_of(argparse.Namespace(**{**defaults, **options}))


def names(**options: Any) -> list[str]:
    return [
        f"repair {step.method}" if isinstance(step, Repair) else step.name
        for step in steps(**options)
    ]


HEAD = ["couple", "cost"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["l1", "slice", "verify"]),
        ({"finetune_epochs": 2}, ["l1", "slice", "verify", "finetune"]),
        ({"pass_text": "abn"}, ["abn", "slice", "verify", "recalibrate"]),
        ({"pass_text": "metapruning"}, ["metapruning", "slice", "verify", "scratch"]),
        (
            {"pass_text": "metapruning{weights=inherit epochs=3}"},
            ["metapruning", "slice", "verify", "recalibrate", "finetune"],
        ),
        ({"repair": ["bn", "bias"]}, ["l1", "slice", "verify", "repair bias", "repair bn"]),
        (
            {"pass_text": "abn", "repair": ["bias"]},
            ["abn", "slice", "verify", "repair bias", "recalibrate"],
        ),
        # Fresh statistics would undo what least squares has fitted; asked for by name they come.
        ({"pass_text": "abn", "repair": ["lstsq"]}, ["abn", "slice", "verify", "repair lstsq"]),
        (
            {"pipeline": "couple,cost,l1,slice,verify,recalibrate", "repair": ["lstsq"]},
            ["l1", "slice", "verify", "repair lstsq", "recalibrate"],
        ),
    ],
)
def test_the_passes_of_options(options: dict[str, Any], expected: list[str]) -> None:
    assert names(**options) == [*HEAD, *expected]


def test_the_winner_is_recalibrated_as_it_was_judged() -> None:
    text = "abn{calibration-batches=7 batch-size=16 whole seed=5 compat=momentum,augment}"
    after = next(step for step in steps(pass_text=text) if isinstance(step, Recalibrate))
    assert after == Recalibrate(
        batches=7, batch_size=16, momentum=0.1, reset=False, whole=True, augment=True, seed=5
    )


def test_nothing_is_repaired_before_new_weights() -> None:
    with pytest.raises(UserError, match="leaves nothing to repair"):
        names(pass_text="metapruning", repair=["lstsq"])
    assert names(pass_text="metapruning{weights=inherit}", repair=["lstsq"])[-2:] == [
        "repair lstsq",
        "finetune",
    ]
