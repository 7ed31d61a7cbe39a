"""Prune at once, without training, by the layers, ratios and granularities of GReg."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.by_ratio import LayerRule, Pick, Picked, layer_scores, picked
from pruneopt.passes.selection.masks import deliver
from pruneopt.passes.selection.set_plan import set_plan_for_budgets
from pruneopt.passes.selection.weight_counts import (
    check_reach,
    check_weight_budgets,
    weights_to_remove,
)

__all__ = ["prune_by_layer", "prune_weights"]


def prune_by_layer(state: State, rule: LayerRule, pick: Pick) -> bool:
    """Remove from every layer as many groups as the rule says; return whether the graph changed.

    Raises:
        BudgetError, UserError: see `LayerRule`.
    """
    layers = rule.layers(state)
    counts = rule.counts(state, layers)
    scores = layer_scores(state, layers, state.graph.weights, L1Norm(), pick)
    return _deliver(state, picked(state, layers, counts, scores))


def prune_weights(
    state: State,
    *,
    scope: Literal["global", "local"] = "global",
    normalise: bool = True,
    pick: Pick = "min",
    ratio: float | None = None,
    ignore: Sequence[str] = (),
) -> bool:
    """Mask single weights, wherever they are the smallest; return whether the graph changed.

    Args:
        scope: ``global`` ranks all weights together, every layer keeping at least one; ``local``
            takes one ratio of every layer.
        normalise: divide by the mean of the layer before layers are compared.
        pick: the smallest, the largest, or random ones.
        ratio: without a budget: the share that goes.
        ignore: parameters or modules that keep all, beside those of the state.

    Raises:
        BudgetError: a budget on parameters that cannot be met.
        UserError: a budget on anything else, or nothing to aim at.
    """
    if ratio is not None and state.budgets:
        raise UserError("a budget and a ratio contradict each other: give one of them")
    if ratio is not None and not 0 <= ratio < 1:
        raise UserError(
            f"ratio={ratio:g} must be the share of weights to remove, at least 0 and below 1"
        )
    rule = LayerRule(
        None if ratio is None else repr(ratio), granularity="weight", ignore=tuple(ignore)
    )
    if scope == "local":
        return prune_by_layer(state, rule, pick)
    if ratio is None and not state.budgets:
        raise UserError("there is nothing to aim at: give a budget such as 20%params, or a ratio")
    layers = rule.layers(state)
    sizes = [layer.count for layer in layers]
    total = weights_to_remove(state) if ratio is None else math.ceil(ratio * sum(sizes) - 1e-9)
    check_reach(state, total, sum(sizes) - len(sizes))
    scores = layer_scores(state, layers, state.graph.weights, L1Norm(), pick)
    if normalise:
        scores = [score / mean if (mean := score.abs().mean()) > 0 else score for score in scores]
    return _deliver(state, picked(state, layers, _lowest(scores, total), scores))


def _lowest(scores: Sequence[Tensor], total: int) -> list[int]:
    """Return how many of the ``total`` lowest scores are in each list, never the best of a list."""
    protected = []
    for score in scores:
        copy = score.cpu().clone()
        # The last of equal ones: `picked` takes the first.
        copy[torch.argsort(copy, stable=True)[-1]] = math.inf
        protected.append(copy)
    owners = torch.from_numpy(np.repeat(np.arange(len(scores)), [len(score) for score in scores]))
    order = torch.argsort(torch.cat(protected), stable=True)[:total]
    counts: list[int] = torch.bincount(owners[order], minlength=len(scores)).tolist()
    return counts


def _deliver(state: State, found: Picked) -> bool:
    if found.masks is None:
        return set_plan_for_budgets(state, found.plan)
    check_weight_budgets(state, sum(int((~mask).sum()) for mask in found.masks.values()))
    return deliver(state, found.plan, found.masks)
