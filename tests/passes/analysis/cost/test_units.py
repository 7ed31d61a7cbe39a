"""The table of units: what it says of each holds where budgets are read and amounts are shown."""

from __future__ import annotations

import re

import pytest

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.budget import format_value, parse_budget
from pruneopt.passes.analysis.cost.units import (
    TABLE,
    UNITS,
    Unit,
    on_target,
    target_of,
    unit_named,
)

ALL = pytest.mark.parametrize("unit", TABLE, ids=[unit.name for unit in TABLE])


@ALL
def test_forms_are_budgets_of_their_unit(unit: Unit) -> None:
    for form in unit.forms:
        for text in re.findall(r"[\d.]+%?[\w@-]+", form):
            assert parse_budget(text).unit.partition("@")[0] == unit.name


@ALL
def test_every_way_to_write_a_unit_is_read(unit: Unit) -> None:
    for prefix, factor in unit.prefixes.items():
        for word in unit.amounts:
            budget = parse_budget(f"3{prefix}{word}")
            assert (budget.unit, budget.value, budget.relative) == (unit.name, 3 * factor, False)
    for word in unit.shares:
        budget = parse_budget(f"25%{word}")
        assert (budget.unit, budget.value, budget.relative) == (unit.name, 0.25, True)


@ALL
@pytest.mark.parametrize("value", [1, 999, 1000, 123_456, 7_000_000, 2.5e9, 4e12, 5e15])
def test_amounts_are_shown_as_they_are_read(unit: Unit, value: float) -> None:
    assert parse_budget(format_value(unit.name, value)).value == pytest.approx(value, rel=1e-3)


def test_no_text_means_two_units() -> None:
    amounts = [f"{prefix}{word}".lower() for unit in TABLE for prefix, word in _spellings(unit)]
    shares = [word.lower() for unit in TABLE for word in unit.shares]
    assert len(amounts) == len(set(amounts))
    assert len(shares) == len(set(shares))


def _spellings(unit: Unit) -> list[tuple[str, str]]:
    return [(prefix, word) for prefix in unit.prefixes for word in unit.amounts]


def test_units_on_targets() -> None:
    name = on_target("ort-cpu{threads=2}")
    assert name == "latency@ort-cpu{threads=2}"
    assert target_of(name) == "ort-cpu{threads=2}"
    assert unit_named(name).target == "ort-cpu{threads=2}"
    assert unit_named(name).symbol == unit_named("latency").symbol
    assert [target_of(unit) for unit in UNITS] == [None] * len(UNITS)
    assert target_of("speed@ort-cpu") is None


@pytest.mark.parametrize("name", ["", "speed", "flops@ort-cpu", "FLOPs"])
def test_unknown_units_are_refused(name: str) -> None:
    known = ", ".join(unit.name for unit in TABLE)
    with pytest.raises(UserError, match=f"no cost unit '{name}': known are {known}"):
        unit_named(name)
