"""How many single weights go: budgets on parameters, counted as the weights that are not zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.channels.naming import is_within
from pruneopt.passes.analysis.cost.budget import Budget, format_value
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.prunable import Prunable
from pruneopt.passes.selection.ratios import pruned_count

__all__ = ["check_weight_budgets", "keeping_all", "uniform_counts", "weights_to_remove"]


def keeping_all(state: State, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the modules and parameters of which no weight goes: ignored ones, and ``names``.

    Raises:
        UserError: the name of a channel group that is no module: it says nothing about single
            weights.
    """
    found = (*state.ignore, *names)
    for name in found:
        if not any(is_within(param, name) for param in state.graph.params):
            raise UserError(
                f"ignore={name} is a channel group, but single weights go: name modules or "
                "parameters"
            )
    return found


def weights_to_remove(state: State) -> int:
    """Return how many weights must become zero, so that all budgets hold; at least 0.

    Raises:
        UserError: a budget on anything but parameters: zeros change no shape, so they save nothing
            else.
    """
    return max((_needed(state, budget) for budget in state.budgets), default=0)


def _needed(state: State, budget: Budget) -> int:
    cost = state.need_cost()
    if budget.unit != "params":
        raise UserError(
            f"the budget '{budget.text}' cannot be met by single weights: zeros change no shape, "
            "only parameters that "
            "are not zero can be counted (such as 20%params)"
        )
    full = int(cost.measure("params", cost.full))
    # The same tolerance as for widths: a share of a whole number is rarely a float.
    return max(0, full - math.floor(budget.limit(cost) * (1 + 1e-12)))


def check_weight_budgets(state: State, removed: int) -> None:
    """`BudgetError` unless the budgets hold when so many weights are zero."""
    cost = state.need_cost()
    for budget in state.budgets:
        if removed < _needed(state, budget):
            left = format_value("params", float(cost.measure("params", cost.full)) - removed)
            raise BudgetError(
                f"this leaves {left} that are not zero, more than the budget '{budget.text}' allows"
            )


def uniform_counts(state: State, layers: Sequence[Prunable], still: Sequence[bool]) -> list[int]:
    """Return how many weights go from each layer at the smallest ratio that meets the budgets.

    What one step of the ratio takes too much is given back one by one, to the largest layers first.

    Raises:
        BudgetError: a budget out of reach.
        UserError: a budget on anything but parameters.
    """
    total = weights_to_remove(state)
    sizes = [0 if stays else layer.count for layer, stays in zip(layers, still, strict=True)]
    check_reach(state, total, sum(max(0, size - 1) for size in sizes))
    counts = _counts_at(_smallest_ratio(sizes, total), sizes)
    surplus = sum(counts) - total
    for number in np.argsort([-size for size in sizes], kind="stable"):
        given_back = min(surplus, 1, counts[number])
        counts[number] -= given_back
        surplus -= given_back
    return counts


def check_reach(state: State, total: int, available: int) -> None:
    """`BudgetError` where fewer weights can go than must."""
    if total > available:
        cost = state.need_cost()
        left = format_value("params", float(cost.measure("params", cost.full)) - available)
        text = max(state.budgets, key=lambda budget: _needed(state, budget)).text
        raise BudgetError(f"the budget '{text}' is out of reach: at least {left} stay")


def _smallest_ratio(sizes: Sequence[int], total: int) -> Fraction:
    """Return the smallest ratio, to 1 in 2**40, at which at least ``total`` weights go."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high) // 2
        if sum(_counts_at(Fraction(middle, 1 << 40), sizes)) >= total:
            high = middle
        else:
            low = middle + 1
    return Fraction(low, 1 << 40)


def _counts_at(ratio: Fraction, sizes: Sequence[int]) -> list[int]:
    return [pruned_count(ratio, size) if size else 0 for size in sizes]
