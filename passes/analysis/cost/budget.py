"""Budgets: what the result may cost, as text (`300MFLOPs`, `50%params`, `6MB`, `4ms@ort-cpu`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import FORMS, TABLE, on_target, target_of, unit_named
from pruneopt.passes.options.spec import canonical_part

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Budget",
    "BudgetUse",
    "budget_uses",
    "check_reachable",
    "format_value",
    "parse_budget",
    "tightest",
    "within",
]

_TEXT = re.compile(
    r"\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?nan|[+-]?inf(?:inity)?)"
    r"\s*(?P<percent>%?)\s*(?P<unit>[^\W\d_](?:[^\W\d_]|\s)*)?",
    re.IGNORECASE,
)
_OTHER_TIMES = re.compile(r"sec|seconds?|milliseconds?|min|minutes?|h|hours?|fps|hz|latency")


def _key(text: str) -> str:
    """Return the text of a unit in small letters, without blanks."""
    return re.sub(r"\s", "", text).lower()


_AMOUNTS = {
    _key(prefix + word): (unit, factor)
    for unit in TABLE
    for word in unit.amounts
    for prefix, factor in unit.prefixes.items()
}
_SHARES = {_key(word): unit for unit in TABLE for word in unit.shares}
_ROUNDING = 1 + 1e-12
"""A share of a whole number is rarely a float: half of an odd cost, a tenth of a round one."""


@dataclass(frozen=True)
class Budget:
    """An upper limit on one cost.

    ``unit`` is a unit of `CostModel.measure`; ``value`` an amount of it, or a share of the
    original.

    ``text`` is what the user wrote.
    """

    text: str
    unit: str
    value: float
    relative: bool

    def limit(self, cost: CostModel) -> float:
        """Return the limit in the unit's own amount, for a network."""
        return self.value * cost.original(self.unit) if self.relative else self.value

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """A budget's text, unit and limit, with the values of a plan and of the original."""

    text: str
    unit: str
    limit: float
    value: float
    full: float

    @property
    def share(self) -> float:
        """Value over limit: 1.0 is exactly on the budget, more is outside."""
        return self.value / self.limit if self.limit else float("inf")

    @property
    def kept(self) -> float:
        """Value over the original's value."""
        return self.value / self.full if self.full else 1.0


def budget_uses(
    budgets: list[Budget],
    cost: CostModel,
    plan: Mapping[str, np.ndarray],
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[BudgetUse, ...]:
    """Return what a plan uses of every budget, in their order.

    Parameters that masks hold at zero do not count.
    """
    widths = cost.widths(plan)
    zeros = {"params": sum(int((~mask).sum()) for mask in (masks or {}).values())}
    return tuple(
        BudgetUse(
            budget.text,
            budget.unit,
            float(budget.limit(cost)),
            float(cost.measure(budget.unit, widths)) - zeros.get(budget.unit, 0),
            cost.original(budget.unit),
        )
        for budget in budgets
    )


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Letters may be large or small. ``k``, ``M``, ``G``, ``T`` are powers of 1000, ``Ki`` ... of
    1024.

    A time may name the target that it is for, as in ``4ms@ort-cpu{threads=2}``; without one it is
    that of a table.

    Raises:
        UserError: no such form, no or an unknown unit, a number that is not above 0, a share above
            100 %, or no such target.
    """
    amount, at, target = text.partition("@")
    budget = _parse_amount(amount)
    if not at:
        return budget
    if unit_named(budget.unit).measure_on is None:
        raise _refused(text, "names a target, which only a time has")
    return replace(
        budget,
        text=text.strip(),
        unit=on_target(canonical_part("target", target.strip()), budget.unit),
    )


def _parse_amount(text: str) -> Budget:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise _refused(text, "is not a number with a unit")
    unit = _key(match["unit"] or "")
    number = float(match["number"])
    if not math.isfinite(number):
        raise _refused(text, "is no finite number")
    if not number > 0:
        raise _refused(text, "leaves nothing: a budget must be above 0")
    if not unit:
        raise _refused(text, "has no unit")
    return _share(text, number, unit) if match["percent"] else _amount(text, match["number"], unit)


def _share(text: str, number: float, word: str) -> Budget:
    if word not in _SHARES:
        raise _refused(text, f"is a share of '{word}', which is no cost of a network")
    if number > 100:
        raise _refused(
            text,
            f"would allow {number / 100:g} times the cost of the original, which it never exceeds",
        )
    return Budget(text.strip(), _SHARES[word].name, number / 100, relative=True)


def _amount(text: str, number: str, word: str) -> Budget:
    if word not in _AMOUNTS:
        raise _refused(text, _why_no_amount(word))
    unit, factor = _AMOUNTS[word]
    try:
        # Exact until the last step: 0.3e9 and 300e6 are then the same budget.
        return Budget(text.strip(), unit.name, float(Fraction(number) * factor), relative=False)
    except OverflowError:
        raise _refused(text, "is no finite number") from None


def _why_no_amount(word: str) -> str:
    if _OTHER_TIMES.fullmatch(word):
        return "limits time, which is written in s, ms or us"
    if word in _SHARES:
        form = _SHARES[word].forms[0]
        return f"lacks the size that {word} is measured in, as in {form}"
    return f"has the unknown unit '{word}'"


def _refused(text: str, why: str) -> UserError:
    return UserError(f"the budget '{text.strip()}' {why}; write one of {FORMS}")


def format_value(unit: str, value: float) -> str:
    """Return an amount in four digits, as `parse_budget` reads it: ``300.1 MFLOPs``, ``4.2 ms``."""
    return _format(unit, value, round)


def _format(name: str, value: float, rounding: Callable[[float], int]) -> str:
    """Return an amount as text; ``rounding`` is for the last digit shown."""
    unit, at = unit_named(name), target_of(name)
    prefix = unit.prefix_for(value)
    ending = f"{prefix}{unit.amounts[0]}{f'@{at}' if at else ''}"
    if not value > 0:
        return f"{value:g} {ending}"
    scaled = value / unit.prefixes[prefix]
    grain = 10 ** max(3 - math.floor(math.log10(scaled)), 0)
    return f"{rounding(scaled * grain) / grain:.15g} {ending}"


def within(budgets: Sequence[Budget], cost: CostModel, widths: ArrayLike) -> np.ndarray:
    """Return whether width vectors obey every budget: [G] -> a 0-d boolean array, [P, G] -> [P]."""
    rows = np.asarray(widths)
    inside = np.ones(rows.shape[:-1], dtype=bool)
    for budget in budgets:
        inside = inside & (cost.measure(budget.unit, rows) <= budget.limit(cost) * _ROUNDING)
    return inside


def tightest(budgets: Sequence[Budget], cost: CostModel, widths: ArrayLike | None = None) -> Budget:
    """Return the budget that widths [G] (default: the original) exceed most, or are closest to.

    The first of equals.

    Raises `UserError` if there is no budget.
    """
    if not budgets:
        raise UserError("there is no budget: give one such as 50%FLOPs")
    row = cost.full if widths is None else widths
    return max(
        budgets, key=lambda budget: float(cost.measure(budget.unit, row)) / budget.limit(cost)
    )


def check_reachable(
    budgets: Sequence[Budget], cost: CostModel, minimum: ArrayLike | None = None
) -> None:
    """Raise `BudgetError` for a budget below the cost of the smallest widths [G].

    Without ``minimum`` these are one unit in every block.

    The message names the smallest value within reach, rounded up, so that it can be given as the
    budget, and the one thing that stands in the way, where there is one. A budget above the
    original's cost is met without pruning.
    """
    lowest = cost.minimum if minimum is None else np.asarray(minimum)
    for budget in budgets:
        limit = budget.limit(cost) * _ROUNDING
        smallest = float(cost.measure(budget.unit, lowest))
        if smallest <= limit:
            continue
        least = float(cost.measure(budget.unit, cost.minimum))
        if least <= limit:
            reason = (
                "the smallest widths allowed for its groups forbid less; without them "
                f"{_own(budget, least, cost)}"
            )
        else:
            reason = _obstacle(budget.unit, cost, smallest, lowest)
        message = (
            f"the budget '{budget.text}' is out of reach: {cost.graph.name} cannot be made "
            "smaller than"
        )
        raise BudgetError(f"{message} {_own(budget, smallest, cost)}{reason and f' ({reason})'}")


def _own(budget: Budget, value: float, cost: CostModel) -> str:
    """Return an amount as a budget of the same kind, rounded up."""
    if not budget.relative:
        return _format(budget.unit, value, math.ceil)
    share = math.ceil(1e4 * value / cost.original(budget.unit)) / 100
    unit = unit_named(budget.unit)
    return f"{share:.15g}%{unit.name if unit.target else unit.shares[0]}"


def _obstacle(unit: str, cost: CostModel, smallest: float, lowest: np.ndarray) -> str:
    """Return the frozen group that stands most in the way, with a tenth of the cost or more."""
    frozen = [group for group in cost.coupling.groups if group.frozen is not None]
    # Times are known of no widths that a frozen group does not have.
    if not frozen or not unit_named(unit).always:
        return ""
    if not cost.groups:
        return (
            f"none of its channels can be removed: {frozen[0].name} is frozen, {frozen[0].frozen}"
        )
    thawed = replace(
        cost.coupling, groups=tuple(replace(group, frozen=None) for group in cost.coupling.groups)
    )
    other = CostModel(cost.graph, thawed, cost.convention.name)
    own = dict(zip(cost.groups, lowest, strict=True))
    row = np.array(
        [own.get(name, full) for name, full in zip(other.groups, other.full, strict=True)]
    )
    trials = np.tile(row, (len(frozen), 1))
    for trial, group in zip(trials, frozen, strict=True):
        column = other.groups.index(group.name)
        trial[column] = other.minimum[column]
    costs = other.measure(unit, trials)
    best = int(np.argmin(costs))
    if costs[best] > 0.9 * smallest:
        return ""
    return f"group {frozen[best].name} must stay whole: {frozen[best].frozen}"
