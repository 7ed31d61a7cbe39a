"""Networks drawn at random from every structure, pruned at random: never a crash, never a wrong
network."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from randomnets.base import UNARY, DrawnDice, SeededDice
from randomnets.check import COUNTS, check
from randomnets.network import draw_network

SETTINGS = settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


@SETTINGS
@given(st.data())
def test_random_networks(data: st.DataObject) -> None:
    dice = DrawnDice(data.draw)
    check(draw_network(dice, 4), dice)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(SETTINGS, max_examples=500, derandomize=False, print_blob=True)
@given(st.data())
def test_many_random_networks(data: st.DataObject) -> None:
    dice = DrawnDice(data.draw)
    check(draw_network(dice, 12), dice)


def test_a_number_gives_the_same_network() -> None:
    first, second = (draw_network(SeededDice(4)) for _ in range(2))
    assert repr(first) == repr(second)
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_networks_hold_every_family() -> None:
    """Two hundred networks draw nearly all operators: none has become impossible to draw."""
    drawn = {
        step.made.text.split()[0]
        for seed in range(200)
        for step in draw_network(SeededDice(seed), 12).plan.steps
    }
    assert len(drawn) > 150
    assert {kind for kinds, _ in UNARY for kind in kinds} == {
        "image",
        "series",
        "volume",
        "tokens",
        "vector",
    }


def test_no_reference_is_idle() -> None:
    """Both references that are independent of the proof do compare, within a few networks."""
    COUNTS.clear()
    references = (
        "zeroed original",
        "original Python at smaller widths",
        "training mode",
        "text round trip",
    )
    for seed in range(12):
        dice = SeededDice(seed)
        check(draw_network(dice, 3), dice)
        if all(COUNTS[name] for name in references):
            break
    assert all(COUNTS[name] for name in references)


@pytest.mark.parametrize("seed", [30066, 30564])
def test_a_weight_norm_whose_whole_direction_is_removed(seed: int) -> None:
    """The reference had divided nothing by nothing there."""
    dice = SeededDice(seed)
    check(draw_network(dice, 8), dice)
