"""The passes ``greg1`` and ``greg2``: prune by a growing penalty (Wang et al., ICLR 2021, arXiv
2012.09243).

Both train the network under the regulariser ``growing`` and then remove what was picked: GReg-1 by
the weights before training, GReg-2 after a uniform penalty has driven the weights apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from pruneopt.digest import file_digest
from pruneopt.errors import UserError
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.analysis.importance.importance import Criterion
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.regularised.growing import Growing
from pruneopt.passes.regularised.regularised import (
    Decision,
    Regularised,
    Regulariser,
    RegulariserHook,
    RegulariserTask,
)
from pruneopt.passes.selection.by_ratio import LayerRule, Pick, layer_scores, picked, picked_as_in
from pruneopt.passes.selection.prunable import Granularity, Reach
from pruneopt.passes.selection.prune import MINIMUM
from pruneopt.passes.selection.ratios import COMPAT, RATIOS, SKIP, SkipRule, is_plan
from pruneopt.passes.selection.rounding import ROUND, RoundTo
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.recipe import SGD, Recipe

__all__ = ["GReg1", "GReg2", "GRegRecord", "LayerCount"]

RECIPE = SGD(lr=0.001, weight_decay=1e-4, batch_size=64, schedule="constant")
"""The paper's for ImageNet; the epochs follow from the penalty."""


@dataclass(frozen=True, slots=True)
class LayerCount:
    """How many groups of weights a layer has, and how many of them went."""

    name: str
    groups: int
    removed: int


@dataclass(frozen=True, slots=True)
class GRegRecord:
    """The share that went from each layer, the regulariser's report, and the training under it."""

    layers: tuple[LayerCount, ...]
    regulariser: Any
    training: TrainingLog


@dataclass(frozen=True)
class GReg(Regularised):
    """The base of both passes."""

    early: ClassVar[bool]

    ratios: str | None = option(None, RATIOS)
    skip: tuple[str, ...] = option((), SKIP)
    compat: SkipRule = option("exact", COMPAT)
    granularity: Granularity = option(
        "filter", "what goes: filters, input channels, or single weights (masks)"
    )
    scope: Reach = option(
        "internal", "only inside of branches and chains, as published, or whole channel groups"
    )
    criterion: Criterion = option(L1Norm(), "what is scored; l1 is the mean absolute weight")
    round_to: RoundTo = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)
    regulariser: Regulariser = option(Growing(), "the penalty in training")
    recipe: Recipe = option(RECIPE, "how to train under it; the penalty ends the training")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rule()
        if self.granularity == "weight" and not isinstance(self.criterion, L1Norm):
            raise UserError(
                f"criterion={self.criterion.name} scores channels: single weights are picked by l1 "
                "alone"
            )
        if isinstance(self.regulariser, Growing) and self.regulariser.picks not in (
            None,
            self._picks,
        ):
            other = "greg2" if self.early else "greg1"
            raise UserError(f"{self.name} picks {self._picks}: leave picks out, or take {other}")

    @property
    def aims(self) -> bool:
        return super().aims or self.ratios is not None

    @property
    def _picks(self) -> Any:
        return "early" if self.early else "late"

    @property
    def _order(self) -> Pick:
        """Which of the scored groups go."""
        return "min"

    def parts(self) -> tuple[Regulariser, Recipe]:
        if isinstance(self.regulariser, Growing):
            return _Over(self, replace(self.regulariser, picks=self._picks)), self.recipe
        return self.regulariser, self.recipe

    def run(self, state: State) -> bool:
        if not isinstance(self.regulariser, Growing):
            return super().run(state)
        longest = self.regulariser.rates(self.early).iterations(self.early)
        split = state.need_workload(self.name).train
        recipe = _long_enough(self.recipe, longest, len(split))
        state.progress(
            f"{self.name}: up to {longest:,} iterations, {recipe.epochs:,} epochs of this data"
        )
        return super(GReg, replace(self, recipe=recipe)).run(state)

    def decide(self, state: State, weights: Mapping[str, Tensor]) -> Decision:
        rule = self._rule()
        layers = rule.layers(state)
        counts = rule.counts(state, layers)
        if self._order == "plan":
            found = picked_as_in(self.ratios or "", state, layers)
        else:
            scores = layer_scores(state, layers, weights, self.criterion, self._order)
            found = picked(state, layers, counts, scores)
        return Decision(found.plan, found.masks)

    def record(
        self, state: State, log: Any, hook: RegulariserHook, decision: Decision
    ) -> GRegRecord:
        layers = []
        for layer in self._rule().layers(state):
            if layer.group is not None:
                removed = layer.count - len(decision.plan[layer.group])
            else:
                mask = (decision.masks or {}).get(layer.shares[0].weight)
                removed = 0 if mask is None else int((~mask).sum())
            layers.append(LayerCount(layer.name, layer.count, removed))
        return GRegRecord(tuple(layers), hook.report(), log)

    def source(self) -> str:
        return file_digest(self.ratios) if self.ratios is not None and is_plan(self.ratios) else ""

    def _rule(self) -> LayerRule:
        return LayerRule(
            self.ratios,
            self.skip,
            self.compat,
            self.granularity,
            self.scope,
            self.round_to,
            self.minimum,
        )


def _long_enough(recipe: Recipe, longest: int, samples: int) -> Recipe:
    """Return the recipe with as many epochs as the penalty may take; an own number of epochs must
    be enough.

    Raises:
        UserError: fewer epochs than that.
    """
    steps = samples // min(recipe.batch_size, samples)
    epochs = math.ceil(longest / steps)
    if recipe.epochs == type(recipe)().epochs:
        return replace(recipe, epochs=epochs)
    if recipe.epochs < epochs:
        raise UserError(
            f"epochs={recipe.epochs} of this data are {recipe.epochs * steps:,} iterations, but "
            "the growing penalty "
            f"takes up to {longest:,} ({epochs:,} epochs): leave epochs out, or shorten it by "
            f"iterations={max(1, recipe.epochs * steps)}"
        )
    return recipe


@dataclass(frozen=True)
class _Over(Regulariser):
    """The growing penalty over the layers from which a pass takes something."""

    chooser: GReg
    growing: Growing

    def hook(self, task: RegulariserTask) -> RegulariserHook:
        rule = self.chooser._rule()
        layers = rule.layers(task.state)
        counts = rule.counts(task.state, layers)
        return self.growing.hook_over(
            [layer for layer, count in zip(layers, counts, strict=True) if count], task
        )


@dataclass(frozen=True)
class GReg1(GReg):
    """GReg-1: the filters that go are picked before training, and the penalty drives them to
    zero."""

    name: ClassVar[str] = "greg1"
    summary: ClassVar[str] = (
        "drive picked weights to zero by a growing penalty, then remove them (GReg-1)"
    )
    early: ClassVar[bool] = True

    pick: Pick = option(
        "min", "what goes: the lowest or highest scores, random ones, or as in the plan of ratios"
    )

    @property
    def _order(self) -> Pick:
        return self.pick


@dataclass(frozen=True)
class GReg2(GReg):
    """A uniform penalty drives the weights apart first; then the smallest are picked and driven to
    zero."""

    name: ClassVar[str] = "greg2"
    summary: ClassVar[str] = (
        "let a growing penalty separate the weights, pick, and remove the smallest (GReg-2)"
    )
    early: ClassVar[bool] = False
