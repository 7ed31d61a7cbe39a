"""Which passes compile runs for its options."""

import argparse
from typing import Any

import pytest

from pruneopt.tools.pipeline import passes_of


def names(**options: Any) -> list[str]:
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
    steps = passes_of(argparse.Namespace(**{**defaults, **options}))
    return [f"{step.name} {step.method}" if step.name == "repair" else step.name for step in steps]


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
        ({"pass_text": "abn", "repair": ["bias"]}, ["abn", "slice", "verify", "repair bias", "recalibrate"]),
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
