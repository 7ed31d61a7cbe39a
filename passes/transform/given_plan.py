"""The pass ``plan``: channels by a file, a plan of pruneopt or a result of pns with its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import BudgetError, InternalError, UserError
from pruneopt.manifest import check_listed
from pruneopt.models.weights import read_weights
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.plan import load_plan
from pruneopt.passes.analysis.channels.sizes import gather_kept, kept_mask
from pruneopt.passes.analysis.cost.budget import format_value, within
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pns.result import PruningResult
from pruneopt.passes.selection.prune import Choose
from pruneopt.passes.selection.set_plan import set_plan_for_budgets
from pruneopt.reading import read_record

__all__ = ["GivenPlan", "PlanRecord", "read_plan", "take_plan", "with_kept_weights"]


def read_plan(
    path: str | os.PathLike[str], coupling: Coupling
) -> tuple[dict[str, np.ndarray], PruningResult | None]:
    """Return the plan in a file: one of pruneopt, or the result list of pns that it was read from.

    Raises:
        UserError: no such file, neither of the two, or a plan of another network.
    """
    check_listed(Path(path))
    data = read_record(path, "plan", Any)
    if isinstance(data, list):
        result = PruningResult(data, coupling, str(path))
        return result.plan(), result
    return load_plan(path, coupling), None


def take_plan(state: State, plan: Plan, origin: str) -> bool:
    """Write a plan that was made elsewhere into a state; whether the graph's header changed.

    Raises:
        BudgetError: it is outside of a budget of the run; ``origin`` says where it is from.
    """
    cost = state.need_cost()
    widths = cost.widths(plan)
    for budget in state.budgets:
        if not within([budget], cost, widths):
            value = format_value(budget.unit, float(cost.measure(budget.unit, widths)))
            raise BudgetError(
                f"{origin} leaves {value}, more than the budget '{budget.text}' allows"
            )
    return set_plan_for_budgets(state, plan)


def with_kept_weights(
    coupling: Coupling,
    plan: Plan,
    full: Mapping[str, Tensor],
    small: Mapping[str, Tensor],
    where: str,
) -> dict[str, Tensor]:
    """Return the original's weights, with those of a cut network where the plan keeps them.

    Raises:
        UserError: ``small`` (from ``where``) lacks a tensor, or has one that has not the shape that
            the plan leaves.
    """
    kept = coupling.kept_units(plan)
    found = dict(full)
    for name, value in coupling.graph.params.items():
        if value.kind == "constant":
            continue
        if name not in small:
            # Only a momentum of None reads it, and old checkpoints lack it.
            if name.endswith("num_batches_tracked"):
                continue
            raise UserError(f"{where} lacks {name}, which {coupling.graph.name} needs")
        slots, old = coupling.slots_of(value), full[name]
        wanted, given = gather_kept(old, slots, kept), small[name].to(old.device, old.dtype)
        if given.shape != wanted.shape:
            raise UserError(
                f"{name} of {where} has the shape {list(given.shape)}; the plan leaves "
                f"{list(wanted.shape)}"
            )
        found[name] = _put(old, given, kept_mask(slots, tuple(old.shape), kept))
        if not torch.equal(gather_kept(found[name], slots, kept), given):
            raise InternalError(f"the kept weights of {name} did not go back to their places")
    return found


def _put(full: Tensor, small: Tensor, mask: Tensor) -> Tensor:
    """Return a copy of a tensor with the elements under a mask replaced, in order."""
    new = full.clone()
    new[mask.to(new.device)] = small.reshape(-1)
    return new


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The file that decided, its form (``pruneopt plan``, ``pns result``), and its weights."""

    file: str
    form: str
    weights: str | None


@dataclass(frozen=True)
class GivenPlan(Choose):
    """Keep the channels that a file names."""

    name: ClassVar[str] = "plan"
    summary: ClassVar[str] = (
        "keep the channels that a file names: a plan.json, or a pruning result of pns"
    )

    file: str = field(
        metadata={"help": "a plan.json of pruneopt, or a pruning result of pns as JSON"}
    )
    weights: str | None = option(
        None, "the weights of the network that this plan was cut to, to put in place first"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for path in (self.file, self.weights):
            if path is not None and not Path(path).is_file():
                raise UserError(f"there is no file {path}")

    @property
    def aims(self) -> bool:
        return True

    def run(self, state: State) -> bool:
        coupling = state.need_coupling()
        plan, result = read_plan(self.file, coupling)
        changed = take_plan(state, plan, f"the plan of {self.file}")
        if self.weights is not None:
            small = read_weights(Path(self.weights))
            small = small if result is None else result.in_graph_order(small)
            state.graph.weights = with_kept_weights(
                coupling, plan, state.graph.weights, small, self.weights
            )
        form = "pruneopt plan" if result is None else "pns result"
        state.records[self.name] = PlanRecord(self.file, form, self.weights)
        return changed or self.weights is not None
