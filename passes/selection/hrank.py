"""HRank (Lin et al., CVPR 2020, arXiv 2002.10179): filters whose feature maps have a low rank go.

A filter's score is the average rank of its feature map over a few hundred images (equation 7): maps
of high rank carry more information, and the average hardly depends on which images are taken. As in
the released code, the map is the one behind the layer's batch norm and activation, and behind the
sum of a residual block where the activation follows that. A unit that several layers make (a
residual stream) is scored by the mean over their maps.

The paper prunes each layer by a ratio given by hand and then fine-tunes; here a budget may set one
ratio for all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.interpreter import Interpreter
from pruneopt.ir.types import dim_size
from pruneopt.passes.analysis.channels.groups import Group
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.analysis.importance.importance import Criterion, Given
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.by_ratio import LayerRule, picked
from pruneopt.passes.selection.prune import BUDGET, MINIMUM, Choose, add_budgets
from pruneopt.passes.selection.ratios import RATIOS, SKIP
from pruneopt.passes.selection.rounding import ROUND, RoundTo
from pruneopt.passes.selection.set_plan import set_plan_for_budgets

__all__ = ["HRank", "HRankPass", "HRankRecord", "feature_map"]

IMAGES = 500
"""Calibration images, as in the paper."""
Flat = Literal["refuse", "l1"]
IMAGES_HELP = "calibration images that the ranks are averaged over"
FLAT_HELP = (
    "groups without maps of rows and columns, whose rank says nothing: refuse them, or "
    "take the L1 norm"
)


# Where a layer's feature map is


def feature_map(op: Op) -> Value:
    """Return the value in which a layer's channels are looked at: behind its norm, and behind its
    activation if one follows, directly or after a sum.
    """
    value = _behind(op.result, Trait.BATCH_NORM) or op.result
    total = _behind(value, Trait.ADD)
    active = _behind(value, Trait.ACTIVATION) or (total and _behind(total, Trait.ACTIVATION))
    return active or value


def _behind(value: Value, trait: Trait) -> Value | None:
    """Return what the only reader of a value makes of it, if it is an op of this kind."""
    reader = value.users[0] if len(value.users) == 1 else None
    return reader.results[0] if reader is not None and has_trait(reader, trait) else None


def _maps(graph: Graph) -> dict[Value, list[Op]]:
    """Return feature maps with rows and columns, and their layers, in graph order."""
    found: dict[Value, list[Op]] = {}
    for op in graph.ops:
        layer = layer_weight(op)
        if layer is None or not layer.value.is_weight or op.result.type.rank != 4:
            continue
        value = feature_map(op)
        rows, columns = value.type.shape()[2:]
        # A map of one row or column has rank 0 or 1, which says nothing.
        if min(rows, columns) > 1:
            found.setdefault(value, []).append(op)
    return found


# The criterion


@dataclass(frozen=True)
class HRank(Criterion):
    """The average rank of a unit's feature maps."""

    name: ClassVar[str] = "hrank"
    summary: ClassVar[str] = "the average rank of a channel's feature maps (HRank)"
    data: ClassVar[bool] = True

    images: int = option(IMAGES, IMAGES_HELP)
    flat: Flat = option("refuse", FLAT_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1:
            raise UserError(f"images={self.images} must be at least 1")

    def score(self, given: Given) -> np.ndarray:
        return self.score_groups(given, given.coupling.free)

    def score_groups(self, given: Given, groups: Collection[Group]) -> np.ndarray:
        """Return a score for every unit, float64 `[units]`; only those of ``groups`` are used.

        Raises:
            UserError: one of the groups has no maps with rows and columns, and ``flat`` refuses it;
                no data; or a network that does not fit them.
        """
        ranks, seen = self._ranks(given)
        flat = [group for group in groups if not seen[group.units].all()]
        if flat and self.flat == "refuse":
            name = flat[0].name
            raise UserError(
                f"group {name} has no feature map with rows and columns ({flat[0].location}), and "
                "the rank of a vector "
                f"says nothing: use flat=l1, another criterion, or --ignore {name}"
            )
        if flat:
            norms = L1Norm().score(given)
            for group in flat:
                ranks[group.units] = norms[group.units]
        return ranks

    def _ranks(self, given: Given) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean rank of a unit over its maps, `[units]`, and which units have any map."""
        count = len(given.coupling.unit_group)
        total, number = np.zeros(count), np.zeros(count)
        for value, ranks in self._average(given).items():
            for slot in given.coupling.slots_of(value):
                if slot.axes != (1,):
                    continue
                units = slot.units.reshape(-1)
                mine = units >= 0
                if given.leader:  # the first layer alone decides
                    mine &= number[units] == 0
                np.add.at(total, units[mine], ranks[mine])
                np.add.at(number, units[mine], 1)
        return total / np.maximum(number, 1), number > 0

    def _average(self, given: Given) -> dict[Value, np.ndarray]:
        """Return the average rank of every channel of every map, float64 `[C]`, by layers."""
        graph = given.coupling.graph
        maps = _maps(graph)
        sums: dict[Value, Tensor] = {}
        images = 0
        weights = {name: tensor.to(given.device) for name, tensor in given.weights.items()}
        interpreter = Interpreter(graph)
        with torch.inference_mode():
            for inputs in self._batches(given, graph):
                for op, results in interpreter.steps(weights, inputs):
                    for value, result in zip(op.results, results, strict=True):
                        if value in maps:
                            found = _summed_ranks(result, op)
                            sums[value] = sums[value] + found if value in sums else found
                images += len(inputs)
        return {value: (sums[value] / images).cpu().numpy() for value in maps}

    def _batches(self, given: Given, graph: Graph) -> Iterator[Tensor]:
        split = given.need_workload(self.name).calibration.head(self.images)
        fixed = not graph.dynamic_batch and len(graph.inputs) == 1
        size = dim_size(graph.inputs[0].type.dims[0]) if fixed else given.batch_size
        if len(split) < size and fixed:
            raise UserError(
                f"{graph.name} takes batches of {size}, but there are {len(split)} calibration "
                "images"
            )
        for inputs, _ in split.batches(size, device=given.device, drop_last=fixed):
            yield inputs


def _summed_ranks(maps: Tensor, op: Op) -> Tensor:
    """Return the sum over images of the ranks of maps `[N, C, H, W]`, float64 `[C]`.

    As numpy and torch count: singular values above ``max(H, W) * eps`` times the largest.
    """
    if not bool(torch.isfinite(maps).all()):
        raise UserError(
            f"the feature maps of {op} are not finite: its weights, or the images, hold NaN or "
            "infinity"
        )
    # Image by image: the singular values of a whole batch of maps fill the memory.
    return torch.stack([torch.linalg.matrix_rank(image.float()) for image in maps]).double().sum(0)


# The pass


@dataclass(frozen=True, slots=True)
class HRankRecord:
    """How many images the ranks were averaged over, and how many units went from which group."""

    images: int
    removed: dict[str, int]


@dataclass(frozen=True)
class HRankPass(Choose):
    """Remove the filters whose feature maps have the lowest rank, layer by layer."""

    name: ClassVar[str] = "hrank"
    summary: ClassVar[str] = "remove the channels whose feature maps have the lowest rank (HRank)"

    ratios: str | None = option(None, RATIOS)
    skip: tuple[str, ...] = option((), SKIP)
    images: int = option(IMAGES, IMAGES_HELP)
    flat: Flat = option("refuse", FLAT_HELP)
    budget: tuple[str, ...] = option((), BUDGET)
    round_to: RoundTo = option(1, ROUND)
    minimum: float = option(1.0, MINIMUM)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._parts()

    @property
    def aims(self) -> bool:
        return super().aims or self.ratios is not None

    @property
    def needs_data(self) -> str | None:
        return self.name

    def _parts(self) -> tuple[HRank, LayerRule]:
        """Return the criterion, and how much of every layer goes."""
        rule = LayerRule(
            self.ratios, self.skip, scope="coupled", round_to=self.round_to, minimum=self.minimum
        )
        return HRank(self.images, self.flat), rule

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        criterion, rule = self._parts()
        coupling, workload = state.need_coupling(), state.need_workload(self.name)
        layers = rule.layers(state)
        counts = rule.counts(state, layers)
        groups = [coupling.group(layer.group or "") for layer in layers]
        # What loses nothing needs no score.
        cut = [group for group, count in zip(groups, counts, strict=True) if count]
        given = Given(
            coupling, state.graph.weights, seed=state.seed, workload=workload, device=state.device
        )
        total = criterion.score_groups(given, cut)
        scores = [torch.from_numpy(total[group.units]) for group in groups]
        removed = {group.name: count for group, count in zip(groups, counts, strict=True) if count}
        state.records[self.name] = HRankRecord(min(self.images, len(workload.calibration)), removed)
        return set_plan_for_budgets(state, picked(state, layers, counts, scores).plan)
