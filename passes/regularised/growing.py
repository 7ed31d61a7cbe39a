"""The regulariser ``growing``: GReg's growing penalty as a hook of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.passes.analysis.residual.stage_numbers import staged_layers
from pruneopt.passes.options.configured import option
from pruneopt.passes.regularised.growth import Growth, Rates
from pruneopt.passes.regularised.regularised import (
    Decision,
    Regulariser,
    RegulariserHook,
    RegulariserTask,
)
from pruneopt.passes.selection.prunable import Prunable, prunable_groups
from pruneopt.passes.training.hooks import TrainingRun

__all__ = ["Growing", "GrowingHook", "GrowingReport", "LayerReport"]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer: groups, how many go, the last penalty on them, magnitude ratio, and when the layer
    was finished."""

    name: str
    groups: int
    removed: int
    penalty: float
    ratio: float | None
    finished: int | None


@dataclass(frozen=True, slots=True)
class GrowingReport:
    """The course of the penalty: the state at the end, when it last grew, how many iterations at
    most, and every layer."""

    state: str
    grown_until: int | None
    longest: int
    layers: tuple[LayerReport, ...]


@dataclass(frozen=True)
class Growing(Regulariser):
    """A penalty that grows until weights are gone (Wang et al., ICLR 2021, arXiv 2012.09243).

    The defaults are the paper's for ImageNet; for CIFAR it takes an interval of 10 and stabilises
    for 10,000.
    """

    name: ClassVar[str] = "growing"
    summary: ClassVar[str] = "a penalty that grows on what is to go until it is gone (GReg)"

    picks: Literal["early", "late"] | None = option(
        None,
        "pick before training (GReg-1) or after a uniform penalty (GReg-2); default: the pass's "
        "way, else late",
    )
    interval: int = option(5, "iterations between two updates of the penalty")
    stabilise: int = option(40_000, "iterations under the final penalty")
    grow: float = option(1e-4, "how much the penalty on what goes grows at each update")
    pick_grow: float = option(
        1e-5, "how much the uniform penalty grows at each update, before a late pick"
    )
    recover: float = option(-1e-4, "the penalty on what stays, after a late pick")
    pick_ceiling: float = option(0.01, "a late pick happens when the penalty is at least this")
    ceiling: float = option(1.0, "a layer is finished when its penalty exceeds this")
    limit: float = option(1000.0, "or when what stays is this many times as large as what goes")
    iterations: int | None = option(
        None, "fit all of it into so many iterations, by larger steps (not in the paper)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = [
            ("interval", self.interval >= 1, "be at least 1"),
            ("stabilise", self.stabilise >= 0, "not be negative"),
            *(
                (name, getattr(self, name) > 0, "be above 0")
                for name in ("grow", "pick_grow", "pick_ceiling")
            ),
            ("ceiling", self.ceiling > 0, "be above 0"),
            ("recover", math.isfinite(self.recover), "be a number"),
            ("limit", self.limit > 0, "be above 0"),
            ("iterations", self.iterations is None or self.iterations >= 1, "be at least 1"),
        ]
        for name, good, must in wanted:
            if not good:
                raise UserError(f"{name.replace('_', '-')}={getattr(self, name)} must {must}")

    def rates(self, early: bool) -> Rates:
        """Return the constants as exact decimals, fitted into `iterations` where given.

        Raises:
            UserError: too few iterations.
        """
        exact = {
            name: Fraction(str(getattr(self, name)))
            for name in ("pick_grow", "grow", "recover", "pick_ceiling", "ceiling")
        }
        rates = Rates(interval=self.interval, stabilise=self.stabilise, limit=self.limit, **exact)
        return rates if self.iterations is None else rates.fitted(self.iterations, early)

    def hook(self, task: RegulariserTask) -> GrowingHook:
        """Return the penalty over all free channel groups, by the filters that make them; the pass
        says what goes."""
        layers = prunable_groups(
            task.coupling, staged_layers(task.coupling.graph), "filter", "coupled"
        )
        return self.hook_over(layers, task)

    def hook_over(self, layers: Sequence[Prunable], task: RegulariserTask) -> GrowingHook:
        """Return the penalty over given layers."""
        early = self.picks == "early"
        return GrowingHook(layers, self.rates(early), early=early, task=task)


class GrowingHook(RegulariserHook):
    """Runs the machine inside a training run, and ends the training when the machine is done."""

    def __init__(
        self, layers: Sequence[Prunable], rates: Rates, *, early: bool, task: RegulariserTask
    ) -> None:
        self.task = task
        self.growth = Growth(layers, rates, early=early, decide=self._decide)
        self.done = 0
        """Iterations done."""

    def start(self, run: TrainingRun) -> None:
        longest = self.growth.rates.iterations(self.growth.early)
        if run.steps < longest:
            raise UserError(
                f"training lasts {run.steps:,} iterations, but the growing penalty takes up to "
                f"{longest:,}: train for "
                f"more epochs, or shorten it by iterations={run.steps}"
            )
        self.growth.start(self._weights(run))

    def before_backward(self, run: TrainingRun) -> None:
        # Collecting the weights is for nothing at all other times.
        if self.growth.due(run.iteration):
            self.growth.update(run.iteration, self._weights(run))

    def before_step(self, run: TrainingRun) -> None:
        self.growth.penalise(dict(run.module.named_parameters()))

    def after_step(self, run: TrainingRun) -> None:
        self.done = run.iteration

    def finished(self) -> bool:
        return self.growth.done(self.done)

    def state_dict(self) -> dict[str, Any]:
        return {
            "growth": self.growth.state_dict(),
            "done": self.done,
            "plan": None if self.decision is None else _tensors(self.decision.plan),
            "masks": None if self.decision is None else self.decision.masks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.growth.load_state_dict(state["growth"])
        self.done = state["done"]
        plan = state["plan"]
        self.decision = (
            None
            if plan is None
            else Decision({k: v.numpy() for k, v in plan.items()}, state["masks"])
        )

    def report(self) -> GrowingReport:
        growth = self.growth
        layers = []
        for layer in growth.layers:
            at = growth.of[layer.name]
            removed = 0 if at.removed is None else int(at.removed.sum())
            penalty = float(growth.values(at)[0])
            layers.append(
                LayerReport(layer.name, layer.count, removed, penalty, at.ratio, at.finished)
            )
        longest = growth.rates.iterations(growth.early)
        return GrowingReport(growth.state, growth.since, longest, tuple(layers))

    def _weights(self, run: TrainingRun) -> dict[str, Tensor]:
        """Return the weights of the network in training by name, and what no module holds
        (constants of the graph)."""
        named = {
            name: tensor.detach()
            for name, tensor in run.module.named_parameters(remove_duplicate=False)
        }
        named |= dict(run.module.named_buffers(remove_duplicate=False))
        return {**self.task.state.graph.weights, **named}

    def _decide(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what the pass removes by the weights as they are now, by layer; from now on that
        is the decision."""
        self.decision = decision = self.task.decide(weights)
        found = []
        for layer in self.growth.layers:
            removed = torch.zeros(layer.count, dtype=torch.bool)
            weight = layer.shares[0].weight
            if layer.group is not None:
                kept = decision.plan.get(layer.group, np.arange(layer.count))
                removed = torch.ones_like(removed)
                removed[torch.from_numpy(np.asarray(kept, dtype=np.int64))] = False
            elif decision.masks is not None and weight in decision.masks:
                removed = ~decision.masks[weight].reshape(-1).cpu()
            found.append(removed)
        return found


def _tensors(plan: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(kept, dtype=np.int64)) for name, kept in plan.items()}
