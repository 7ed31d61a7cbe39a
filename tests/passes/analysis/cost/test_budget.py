"""Budgets as users write them, every way to be wrong, and what is said of a budget out of reach."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.models import zoo
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.budget import (
    Budget,
    check_reachable,
    format_value,
    parse_budget,
    tightest,
    within,
)
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import FORMS, UNITS
from pruneopt.passes.analysis.couple import couple


@cache
def cost_model(ignore: tuple[str, ...] = ()) -> CostModel:
    graph = capture(zoo.create("resnet20").eval(), torch.randn(1, 3, 32, 32))
    return CostModel(graph, freeze_named(couple(graph), ignore))


# Grammar


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("300MFLOPs", "flops", 300e6),
        ("300mflops", "flops", 300e6),
        ("2.05GFLOPs", "flops", 2.05e9),
        ("300MMACs", "flops", 300e6),
        ("1.2gmac", "flops", 1.2e9),
        ("12500FLOPs", "flops", 12500),
        ("1e-3TFLOPs", "flops", 1e9),
        ("+5kFLOP", "flops", 5000),
        ("1.5Mparams", "params", 1.5e6),
        ("1.5 M params", "params", 1.5e6),
        ("64000parameters", "params", 64000),
        ("6MB", "bytes", 6e6),
        ("500KB", "bytes", 500e3),
        ("6MiB", "bytes", 6 * 2**20),
        (".5GiB", "bytes", 2**29),
        ("4096bytes", "bytes", 4096),
        ("12MBmemory", "memory", 12e6),
        ("12 MiB memory", "memory", 12 * 2**20),
        ("4ms", "latency", 4e6),
        ("0.1 s", "latency", 1e8),
        ("350us", "latency", 350e3),
        ("350 \N{MICRO SIGN}s", "latency", 350e3),
        ("+2e3ns", "latency", 2000),
    ],
)
def test_amounts(text: str, unit: str, value: float) -> None:
    assert parse_budget(text) == Budget(text, unit, value, relative=False)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("50%FLOPs", "flops", 0.5),
        ("50 % macs", "flops", 0.5),
        ("40%params", "params", 0.4),
        ("25%bytes", "bytes", 0.25),
        ("30%memory", "memory", 0.3),
        ("80%latency", "latency", 0.8),
        ("100%FLOPs", "flops", 1.0),
        ("0.5%params", "params", 0.005),
    ],
)
def test_shares(text: str, unit: str, value: float) -> None:
    assert parse_budget(text) == Budget(text, unit, value, relative=True)


def test_text_is_kept_without_the_blanks_around_it() -> None:
    assert str(parse_budget(" 6 MB\n")) == "6 MB"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a number with a unit"),
        ("MFLOPs", "is not a number with a unit"),
        ("1,5MB", "is not a number with a unit"),
        ("300M FLOPs!", "is not a number with a unit"),
        ("1.2.3MB", "is not a number with a unit"),
        ("0FLOPs", "must be above 0"),
        ("0%params", "must be above 0"),
        ("-3MFLOPs", "must be above 0"),
        ("-10%FLOPs", "must be above 0"),
        ("1e-400FLOPs", "must be above 0"),
        ("nanMFLOPs", "is no finite number"),
        ("infMFLOPs", "is no finite number"),
        ("-infinity%FLOPs", "is no finite number"),
        ("1e999FLOPs", "is no finite number"),
        ("1e305TFLOPs", "is no finite number"),
        ("150%FLOPs", "would allow 1.5 times the cost of the original, which it never exceeds"),
        ("50", "has no unit"),
        ("50%", "has no unit"),
        ("0.1min", "limits time, which is written in s, ms or us"),
        ("30fps", "limits time, which is written in s, ms or us"),
        ("4latency", "limits time, which is written in s, ms or us"),
        ("1e305s", "is no finite number"),
        ("30%ms", "is a share of 'ms', which is no cost of a network"),
        ("3furlongs", "has the unknown unit 'furlongs'"),
        ("300M", "has the unknown unit 'm'"),
        ("3MiFLOPs", "has the unknown unit 'miflops'"),
        ("5iB", "has the unknown unit 'ib'"),
        ("30%MB", "is a share of 'mb', which is no cost of a network"),
        ("30%accuracy", "is a share of 'accuracy', which is no cost of a network"),
        ("12memory", "lacks the size that memory is measured in, as in 12MBmemory"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(UserError) as error:
        parse_budget(text)
    message = str(error.value)
    assert message == f"the budget '{text}' {message.partition(chr(39) + ' ')[2]}"
    assert why in message
    assert message.endswith(f"; write one of {FORMS}")
    assert "\n" not in message


def parsed(text: str) -> Budget | str:
    """The budget, or the message of the `UserError`."""
    try:
        return parse_budget(text)
    except UserError as error:
        return str(error)


@given(
    st.text(max_size=20)
    | st.from_regex(r"[0-9.e+-]{1,4} ?[kMGT]?i?(FLOPs|B|params|s|%bytes)", fullmatch=True)
)
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    result = parsed(text)
    if isinstance(result, str):
        assert result.endswith(FORMS)
    else:
        assert result.value > 0
        assert result.unit in (*UNITS, "latency")


UNIT_NAMES = {
    "flops": ("FLOPs", "MACs"),
    "params": ("params",),
    "bytes": ("B", "bytes"),
    "memory": ("Bmemory",),
}


@given(
    st.sampled_from(UNITS),
    st.sampled_from(["", "k", "M", "G", "T"]),
    st.decimals(min_value="0.001", max_value=9999, places=3),
    st.data(),
)
def test_written_amounts_are_read_back(
    unit: str, prefix: str, number: object, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(UNIT_NAMES[unit]))
    text = "".join(data.draw(st.sampled_from((c.lower(), c.upper()))) for c in f"{prefix}{name}")
    budget = parse_budget(f"{number}{text}")
    exponent = 3 * ["", "k", "M", "G", "T"].index(prefix)
    assert (budget.unit, budget.value, budget.relative) == (
        unit,
        float(f"{number}e{exponent}"),
        False,
    )


@given(st.sampled_from((*UNITS, "latency")), st.integers(1, 10**15))
def test_shown_amounts_are_read_back(unit: str, value: int) -> None:
    budget = parse_budget(format_value(unit, value))
    assert budget.unit == unit
    assert budget.value == pytest.approx(value, rel=5e-4)


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("flops", 300.1e6, "300.1 MFLOPs"),
        ("flops", 4_089_184_256, "4.089 GFLOPs"),
        ("params", 25_557_032, "25.56 Mparams"),
        ("params", 999, "999 params"),
        ("bytes", 6e6, "6 MB"),
        ("memory", 12.5e6, "12.5 MB memory"),
        ("flops", 2.5e16, "25000 TFLOPs"),
        ("flops", 0, "0 FLOPs"),
    ],
)
def test_format(unit: str, value: float, text: str) -> None:
    assert format_value(unit, value) == text


# Use


def test_limits() -> None:
    cost = cost_model()
    full = int(cost.measure("flops", cost.full))
    assert parse_budget("50%FLOPs").limit(cost) == full / 2
    assert parse_budget("10MFLOPs").limit(cost) == 10e6


def test_within() -> None:
    cost = cost_model()
    widths = np.stack([cost.full, np.maximum(cost.full // 2, 1), cost.minimum])
    half = [parse_budget("50%FLOPs"), parse_budget("100%params")]
    assert within(half, cost, widths).tolist() == [False, True, True]
    assert within([], cost, widths).tolist() == [True, True, True]
    assert within(half, cost, widths[1]).shape == ()
    assert within(half, cost, list(widths)).tolist() == [False, True, True]


@given(st.integers(1, 10_000))
def test_exactly_met_is_met(share: int) -> None:
    cost = cost_model()
    budget = parse_budget(f"{share / 100}%FLOPs")
    full = float(cost.measure("flops", cost.full))
    exact = Budget("exact", "flops", full * share / 1e4, relative=False)
    assert exact.limit(cost) == pytest.approx(budget.limit(cost), rel=1e-15)
    assert bool(within([parse_budget("100%FLOPs")], cost, cost.full))


def test_a_budget_above_the_original_is_met() -> None:
    cost = cost_model()
    budgets = [parse_budget("300GFLOPs"), parse_budget("100%memory")]
    check_reachable(budgets, cost)
    assert bool(within(budgets, cost, cost.full))


def test_tightest() -> None:
    cost = cost_model()
    loose, tight = parse_budget("90%FLOPs"), parse_budget("30%params")
    assert tightest([loose, tight], cost) is tight
    assert tightest([loose], cost) is loose
    few = cost.full.copy()
    few[-2:] = 1  # most parameters and few FLOPs are in the last stage
    assert tightest([loose, parse_budget("99%params")], cost, few) is loose
    with pytest.raises(UserError, match="there is no budget"):
        tightest([], cost)


# Out of reach


@pytest.mark.parametrize(
    "text",
    ["0.001MFLOPs", "0.01%FLOPs", "10params", "0.1%params", "100B", "0.1%bytes", "1kBmemory"],
)
def test_the_smallest_value_named_can_be_had(text: str) -> None:
    cost = cost_model()
    budget = parse_budget(text)
    with pytest.raises(BudgetError, match="out of reach") as error:
        check_reachable([parse_budget("90%FLOPs"), budget], cost)
    smallest = str(error.value).partition("smaller than ")[2].partition(" (")[0]
    named = parse_budget(smallest)
    assert (named.unit, named.relative) == (budget.unit, budget.relative)
    check_reachable([named], cost)
    least = float(cost.measure(budget.unit, cost.minimum))
    assert least <= named.limit(cost) <= least * 1.01 + 1e-4 * named.limit(cost) / named.value
    assert error.value.exit_code == 3


def test_the_output_layer_is_named() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(3, 16)
            self.head = nn.Linear(16, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.hidden(x)))

    graph = capture(Wide().eval(), torch.randn(1, 3))
    cost = CostModel(graph, couple(graph))
    with pytest.raises(BudgetError) as error:
        check_reachable([parse_budget("1kparams")], cost)
    assert str(error.value) == (
        "the budget '1kparams' is out of reach: Wide cannot be made smaller than 2.004 kparams "
        "(group head must stay whole: model output)"
    )


def test_an_ignored_group_is_named() -> None:
    cost = cost_model(("layer3.0.conv1",))
    with pytest.raises(
        BudgetError, match=r"group layer3\.0\.conv1 must stay whole: ignored by request"
    ):
        check_reachable([parse_budget("0.1%params")], cost)


def test_nothing_can_be_removed() -> None:
    module = nn.Linear(3, 4)
    graph = capture(module.eval(), torch.randn(1, 3))
    cost = CostModel(graph, couple(graph))
    assert cost.groups == ()
    with pytest.raises(
        BudgetError,
        match=r"smaller than 100%FLOPs \(none of its channels can be removed: .* is frozen",
    ):
        check_reachable([parse_budget("50%FLOPs")], cost)
    check_reachable([parse_budget("100%FLOPs")], cost)


def test_smallest_widths_asked_for_are_named() -> None:
    cost = cost_model()
    half = np.maximum(cost.full // 2, 1)
    check_reachable([parse_budget("20%FLOPs")], cost)
    with pytest.raises(
        BudgetError,
        match=r"the smallest widths allowed for its groups forbid less; without them \d.*%FL",
    ):
        check_reachable([parse_budget("20%FLOPs")], cost, minimum=half)
    check_reachable([parse_budget("60%FLOPs")], cost, minimum=half)


def test_every_budget_is_checked() -> None:
    cost = cost_model()
    with pytest.raises(BudgetError, match="the budget '5params'"):
        check_reachable([parse_budget("50%FLOPs"), parse_budget("5params")], cost)
    check_reachable([], cost)


def test_percentages_are_rounded_up() -> None:
    cost = cost_model()
    with pytest.raises(BudgetError) as error:
        check_reachable([parse_budget("0.001%FLOPs")], cost)
    share = float(str(error.value).partition("smaller than ")[2].partition("%")[0])
    exact = (
        100 * float(cost.measure("flops", cost.minimum)) / float(cost.measure("flops", cost.full))
    )
    assert share == math.ceil(exact * 100) / 100
