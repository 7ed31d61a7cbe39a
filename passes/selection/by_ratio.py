"""Decide layer by layer: how many groups of weights go from each, and which.

The counts follow from ratios or, without ratios, from one ratio for all layers that just meets the
budgets. The groups with the lowest scores go (GReg, arXiv 2012.09243: the mean absolute weight).
Filters and channels become a plan, single weights become masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.channels.naming import is_within
from pruneopt.passes.analysis.channels.plan import load_plan
from pruneopt.passes.analysis.cost.budget import check_reachable, format_value, within
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.analysis.importance.importance import Criterion, score_units
from pruneopt.passes.analysis.residual.stage_numbers import staged_layers
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.prunable import (
    Granularity,
    Prunable,
    Reach,
    prunable_groups,
    prunable_weights,
)
from pruneopt.passes.selection.ratios import (
    SkipRule,
    check_ratios,
    is_plan,
    pruned_count,
    ratios_of,
    skipped,
)
from pruneopt.passes.selection.rounding import RoundTo, rounding
from pruneopt.passes.selection.select import Ladders, fill_up, ladders, largest_within
from pruneopt.passes.selection.weight_counts import (
    check_weight_budgets,
    keeping_all,
    uniform_counts,
)

__all__ = ["LayerRule", "Pick", "Picked", "layer_scores", "picked"]

Pick = Literal["min", "max", "rand", "plan"]


@dataclass(frozen=True)
class Picked:
    """Kept units by group, and for single weights masks (True: stays)."""

    plan: dict[str, np.ndarray]
    masks: dict[str, Tensor] | None


@dataclass(frozen=True)
class LayerRule:
    """The rule of what is pruned, and by how much, as options of the passes that decide by layer.

    Attributes:
        ratios: see `pruneopt.passes.selection.ratios`; None: one ratio that meets the budgets.
        skip, compat: layers that keep everything, and how their ids are compared.
        granularity: filters, channels or single weights.
        scope: only what is summed with nothing, or whole channel groups.
        round_to, minimum: see `ladders`; for filters and channels.
        ignore: parameters or modules of which no single weight goes, beside those of the run.

    Raises:
        UserError: options that are wrong in any network.
    """

    ratios: str | None = None
    skip: tuple[str, ...] = ()
    compat: SkipRule = "exact"
    granularity: Granularity = "filter"
    scope: Reach = "internal"
    round_to: RoundTo = 1
    minimum: float = 1.0
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ratios is not None:
            check_ratios(self.ratios)
        if self.granularity == "weight" and (self.round_to != 1 or self.minimum != 1):
            raise UserError(
                "round-to and minimum count channels: leave them out with granularity=weight"
            )

    def layers(self, state: State) -> tuple[Prunable, ...]:
        """Return the layers that can be pruned in this way, whatever the ratios take from them.

        Raises:
            UserError: there is none.
        """
        coupling = state.need_coupling()
        places = staged_layers(coupling.graph)
        if self.granularity == "weight":
            ignore = keeping_all(state, self.ignore)
            found = tuple(layer for layer in prunable_weights(places) if not _named(layer, ignore))
        else:
            found = prunable_groups(coupling, places, self.granularity, self.scope)
        if not found:
            hint = (
                ": try scope=coupled"
                if self.granularity != "weight" and self.scope == "internal"
                else ""
            )
            raise UserError(
                f"{state.graph.name} has no layer that can be pruned by {self.granularity}{hint}"
            )
        return found

    def skipped(self, state: State, layers: Sequence[Prunable]) -> list[bool]:
        """Return which layers keep everything by request; `UserError` if it fits none."""
        return skipped(layers, staged_layers(state.need_coupling().graph), self.skip, self.compat)

    def counts(self, state: State, layers: Sequence[Prunable]) -> list[int]:
        """Return how many groups go from each of the layers.

        Raises:
            BudgetError: a budget out of reach, or one that the ratios do not meet.
            UserError: ratios that do not fit the network, or neither ratios nor a budget.
        """
        if self.ratios is None and not state.budgets:
            raise UserError(
                "there is nothing to aim at: give ratios such as ratios=0.5, or a budget such as "
                "50%FLOPs"
            )
        coupling, places = state.need_coupling(), staged_layers(state.need_coupling().graph)
        still = self.skipped(state, layers)
        given: list[int] | None = None
        if self.ratios is not None:
            ratios = ratios_of(self.ratios, layers, places, coupling)
            given = [
                0 if stays else pruned_count(ratio, layer.count, len(layer.blocks))
                for ratio, layer, stays in zip(ratios, layers, still, strict=True)
            ]
        if self.granularity == "weight":
            if given is None:
                return uniform_counts(state, layers, still)
            check_weight_budgets(state, sum(given))
            return given
        return self._group_counts(state, layers, still, given)

    def _group_counts(
        self,
        state: State,
        layers: Sequence[Prunable],
        still: Sequence[bool],
        given: Sequence[int] | None,
    ) -> list[int]:
        cost = state.need_cost()
        columns = [cost.groups.index(layer.group or "") for layer in layers]
        frozen = {name for number, name in enumerate(cost.groups) if number not in columns}
        frozen |= {layer.group or "" for layer, stays in zip(layers, still, strict=True) if stays}
        steps = ladders(
            state.need_coupling(),
            cost,
            round_to=rounding(state, self.round_to),
            minimum=self.minimum,
            ignore=frozen,
            bounds=state.limits.bounds,
            tied=state.limits.tied,
        )
        if given is None:
            widths = _uniform_widths(state, steps)
        else:
            widths = cost.full.copy()
            widths[columns] -= np.array(given, dtype=np.int64)
            widths = steps.floor(widths[None])[0]
            _check_ratios_meet(state, widths)
        removed: list[int] = (cost.full - widths)[columns].tolist()
        return removed


def _named(layer: Prunable, names: Sequence[str]) -> bool:
    """Return whether a layer is one of the named modules or parameters, or inside one."""
    weight = layer.shares[0].weight
    return any(is_within(weight, name) for name in names)


def _uniform_widths(state: State, steps: Ladders) -> np.ndarray:
    """Return the widths `[G]` of one ratio for all layers, filled up to the budgets."""
    cost = state.need_cost()
    check_reachable(state.budgets, cost, minimum=steps.lowest)
    each = cost.full // cost.step

    def family(shares: np.ndarray) -> np.ndarray:
        # A product that should be whole may lie just above it.
        gone = np.ceil(np.outer(1 - shares, each) - 1e-9).astype(np.int64)
        return steps.floor(cost.full - cost.step * np.minimum(gone, each - 1))

    widths = largest_within(family, state.budgets, cost)
    return fill_up(
        widths, [np.zeros(int(size)) for size in each], steps, state.budgets, cost, evenly=True
    )


def _check_ratios_meet(state: State, widths: np.ndarray) -> None:
    cost = state.need_cost()
    for budget in state.budgets:
        if not within([budget], cost, widths):
            value = format_value(budget.unit, float(cost.measure(budget.unit, widths)))
            raise BudgetError(
                f"the ratios leave {value}, more than the budget '{budget.text}' allows: give "
                "larger ratios, or leave "
                "them out and let the budget decide"
            )


# Which


def layer_scores(
    state: State,
    layers: Sequence[Prunable],
    weights: Mapping[str, Tensor],
    criterion: Criterion,
    pick: Pick = "min",
) -> list[Tensor]:
    """Return a score per group of every layer, float64 `[count]`; the lowest go.

    Args:
        criterion: l1 is the mean absolute weight at the layers' own granularity; any other scores
            whole channels.
        pick: ``max`` turns the order around, ``rand`` draws it from the seed.

    Raises:
        UserError: a criterion that cannot score single weights, or scores that are not finite.
    """
    if pick == "rand":
        generator = torch.Generator().manual_seed(state.seed)
        return [
            torch.rand(layer.count, generator=generator, dtype=torch.float64) for layer in layers
        ]
    if isinstance(criterion, L1Norm):
        scores = [layer.magnitudes(weights) for layer in layers]
    else:
        if any(layer.group is None for layer in layers):
            raise UserError(
                f"the criterion {criterion.name} scores channels: single weights are picked by l1 "
                "alone"
            )
        found = score_units(
            state.need_coupling(),
            weights,
            criterion,
            seed=state.seed,
            workload=state.workload,
            device=state.device,
        )
        scores = [torch.from_numpy(found[layer.group or ""]) for layer in layers]
    for layer, score in zip(layers, scores, strict=True):
        if not bool(torch.isfinite(score).all()):
            raise UserError(
                f"the weights of {layer.name} hold NaN or infinity: nothing can be picked by them"
            )
    return [-score for score in scores] if pick == "max" else scores


def picked(
    state: State, layers: Sequence[Prunable], counts: Sequence[int], scores: Sequence[Tensor]
) -> Picked:
    """Return the groups with the lowest scores, ``counts`` of each layer, as many in each block."""
    plan = {group.name: np.arange(group.width) for group in state.need_coupling().free}
    masks: dict[str, Tensor] = {}
    for layer, count, score in zip(layers, counts, scores, strict=True):
        stays = torch.ones(layer.count, dtype=torch.bool)
        for block in layer.blocks:
            rows = torch.from_numpy(block)
            order = torch.argsort(score.cpu()[rows], stable=True)
            stays[rows[order[: count // len(layer.blocks)]]] = False
        if layer.group is not None:
            plan[layer.group] = np.flatnonzero(stays.numpy())
        elif count:
            weight = layer.shares[0].weight
            masks[weight] = stays.reshape(state.graph.weights[weight].shape)
    return Picked(plan, masks if any(layer.group is None for layer in layers) else None)


def picked_as_in(path: str, state: State, layers: Sequence[Prunable]) -> Picked:
    """Return what another plan keeps.

    Raises:
        UserError: no such plan, or single weights, of which it says nothing.
    """
    if not is_plan(path) or any(layer.group is None for layer in layers):
        raise UserError(
            "pick=plan takes the channels of a plan: give ratios=plan.json, and filters or channels"
        )
    kept = load_plan(path, state.need_coupling())
    mine = {layer.group for layer in layers}
    full = {group.name: np.arange(group.width) for group in state.need_coupling().free}
    return Picked(
        {name: kept.get(name, whole) if name in mine else whole for name, whole in full.items()},
        None,
    )
