"""Code with state, caches, branches, wrappers and casts: refused with a line, or kept."""

from __future__ import annotations

import pytest
import torch
from randomnets.base import Made, SeededDice, Shape, Step
from randomnets.check import COUNTS, Failure
from randomnets.check_habits import check_habits
from randomnets.habits import HABITS, Habit, Habitual, draw_habits
from randomnets.network import Network, Plan
from torch import nn

from pruneopt.ir.capture.capture import capture


def network(name: str) -> Network:
    """Two linear layers, the first of which has a habit."""
    torch.manual_seed(0)
    given, middle, last = (Shape("vector", channels, ()) for channels in (5, 8, 6))
    steps = [
        Habitual(_linear(given, middle, 0), Habit(name, middle)),
        _linear(middle, last, 1),
    ]
    return Network(Plan(("vector",), (given, middle, last), steps, "plain", (2,), False))


def _linear(given: Shape, made: Shape, source: int) -> Step:
    layer = nn.Linear(given.channels, made.channels)
    return Step(Made("linear", made, lambda m, x: m(x), [layer]), [source])


WITHOUT_LINE = {"by gradient", "by a value read"}
"""Refused, but without a line."""


@pytest.mark.parametrize("name", sorted(HABITS.keys() - WITHOUT_LINE))
def test_every_habit_is_kept_or_refused_with_its_line(name: str) -> None:
    check_habits(network(name), SeededDice(3))


@pytest.mark.parametrize("seed", [1086, 1222])
def test_an_input_whose_batch_is_fixed_is_guarded_beside_one_whose_is_not(seed: int) -> None:
    """One row was repeated to two, as no op read the input of any batch."""
    dice = SeededDice(seed)
    check_habits(draw_habits(dice, 3), dice)


def test_a_habit_that_is_lost_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the user's code: here the result is that of another habit."""
    other = capture(network("by mode").eval().double(), network("by mode").examples(2, 0))
    monkeypatch.setattr("randomnets.check_habits.capture", lambda *_: other)
    with pytest.raises(Failure, match=r"WRONG in habits .* with habits \['by width'\]"):
        check_habits(network("by width"), SeededDice(3))


def test_networks_have_every_habit() -> None:
    """Draws reach all habits, and both ends: networks that are taken and ones that are refused."""
    drawn = {
        module.name
        for seed in range(400)
        for module in draw_habits(SeededDice(seed)).modules()
        if isinstance(module, Habit)
    }
    assert drawn == set(HABITS)
    COUNTS.clear()
    for name in ("by width", "by values"):
        check_habits(network(name), SeededDice(0))
    assert COUNTS["networks with habits that are taken"] == 1
    assert COUNTS["networks with habits that are refused"] == 1
