"""Published and derived numbers of GReg's schedule: penalties, lengths, and shorter schedules of
the same shape."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from pruneopt.errors import UserError
from pruneopt.passes.regularised.growing import Growing
from pruneopt.passes.regularised.growth import Growth
from pruneopt.passes.selection.prunable import Prunable, Share

PAPER = Growing().rates(early=False)


def alone(count: int = 4) -> Prunable:
    """Return a layer of single weights: no magnitudes are looked at, so that 10,000 updates take no
    time."""
    return Prunable("w", None, count, (np.arange(count),), (Share("w", None),), ())


def test_greg2_at_iteration_48200() -> None:
    """The one number that a user's log shows: 0.87404.

    The log prints after the update of iteration 48,200, the 9,641st. In single precision, which it
    used, 1,000 times 0.00001 is 0.00999996, so picking takes 1,001 updates and 8,640 follow. In
    exact decimals 1,000 are enough: when the iteration begins, 1,000 + 8,640 updates have made
    0.874.
    """
    machine = Growth(
        [alone()], PAPER, early=False, decide=lambda _: [torch.tensor([True, False, False, False])]
    )
    weights = {"w": torch.ones(4)}
    for number in range(48_200):
        machine.update(number, weights)
    at = machine.of["w"]
    assert (at.raised, at.pushed) == (1000, 8640)
    assert machine.values(at) == (Fraction("0.874"), Fraction("-0.0001"))
    reg = torch.zeros(4)
    updates = 0
    while updates <= 48_200 // 5:
        picked = reg.max() >= 0.01
        reg[0] += 1e-4 if picked else 1e-5
        updates += 1
        if not picked:
            reg[1:] += 1e-5
    assert f"{float(reg[0]):.5f}" == "0.87404"


def test_lengths_of_the_published_schedules() -> None:
    imagenet, cifar = PAPER, replace(PAPER, interval=10, stabilise=10_000)
    assert imagenet.updates(early=True) == 10_001
    # The last of the 9,901 exceeds 1.0, which 1,000 + 9,900 reach exactly.
    assert imagenet.updates(early=False) == 1000 + 9901
    assert [rates.iterations(True) - 1 - rates.stabilise for rates in (imagenet, cifar)] == [
        50_000,
        100_000,
    ]
    assert [rates.iterations(False) - 1 - rates.stabilise for rates in (imagenet, cifar)] == [
        54_500,
        109_000,
    ]


@pytest.mark.parametrize("early", [True, False])
def test_the_longest_run_is_as_long_as_said(early: bool) -> None:
    rates = replace(PAPER, stabilise=40)
    machine = Growth(
        [alone()], rates, early=early, decide=lambda _: [torch.tensor([True, False, False, False])]
    )
    machine.start({})
    number = 0
    while not machine.done(number):
        machine.update(number, {})
        number += 1
    assert number == rates.iterations(early)
    assert machine.of["w"].finished == 5 * (rates.updates(early) - 1)
    assert machine.largest(machine.of["w"]) == Fraction("1.0001")


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("iterations", [7, 20, 100, 777, 90_000])
def test_a_shorter_schedule_keeps_its_shape(early: bool, iterations: int) -> None:
    fitted = PAPER.fitted(iterations, early)
    assert fitted.iterations(early) <= iterations
    assert fitted.iterations(early) > 0.9 * iterations or iterations < 20
    assert fitted.grow / fitted.pick_grow == 10
    assert (fitted.recover, fitted.ceiling, fitted.interval) == (
        PAPER.recover,
        PAPER.ceiling,
        PAPER.interval,
    )
    if iterations >= 100:
        share = fitted.stabilise / fitted.iterations(early)
        assert share == pytest.approx(PAPER.stabilise / PAPER.iterations(early), abs=0.06)


def test_too_short_a_schedule() -> None:
    with pytest.raises(UserError, match=r"iterations=5 is too short.*at least 6"):
        PAPER.fitted(5, early=False)
    assert PAPER.fitted(1, early=True).iterations(True) == 1
    assert PAPER.fitted(10**6, early=True) == PAPER
