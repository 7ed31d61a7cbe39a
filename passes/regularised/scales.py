"""The scales that a global threshold is laid over, and the rule by which its survivors become
widths (Network Slimming).

Sources: Liu et al., ICCV 2017; the rounding, the fixed ratios and the floors are those of its
implementation pns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.ops.batch_norm import batch_norms
from pruneopt.passes.pns.schema import Merge, Rounding
from pruneopt.passes.selection.ladders import Bounds, Ties
from pruneopt.passes.selection.select import Scores

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Compat",
    "Rule",
    "Scales",
    "gamma_scales",
    "ratio_threshold",
    "unit_scales",
]

Compat = Literal["floor", "rounding"]


@dataclass(frozen=True, slots=True)
class Scales:
    """A value (float64 `[C]`, not negative) for every channel of one layer, and the unit (int64
    `[C]`, or -1) it is."""

    name: str
    values: np.ndarray
    units: np.ndarray

    def top(self, count: int) -> np.ndarray:
        """Return flags `[C]` of the ``count`` greatest values, the first of equal ones."""
        flags = np.zeros(len(self.values), dtype=bool)
        flags[np.argsort(-self.values, kind="stable")[:count]] = True
        return flags


@dataclass(frozen=True)
class Rule:
    """How what survives a threshold becomes the width of a group.

    Attributes:
        merge: ``or`` keeps what survives in any layer of a group, ``and`` what survives in all.
        methods: groups that are merged in another way, by name.
        min_channels, min_ratio: a group keeps at least ``max(min_channels, int(width *
            min_ratio))`` units.
        rounding: widths go up to a multiple of eight channels, or to a power of two (in every
            block); at most to full.
        fixed: name of a layer or a group -> the share of its channels that goes, whatever the
            threshold.
        whole: names of groups that keep all.
        bounds, tied: see `ladders`; tied groups get the largest width that one of them asks for.
        compat: what is done as published instead. ``floor``: layer by layer before merging, only
            where nothing survives, and groups that ``and`` leaves empty keep 5 %. ``rounding``:
            layer by layer before merging.
    """

    merge: Merge = "or"
    methods: Mapping[str, Merge] = field(default_factory=dict)
    min_channels: int = 2
    min_ratio: float = 0.02
    rounding: Rounding = "none"
    fixed: Mapping[str, float] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    bounds: Bounds = field(default_factory=dict)
    tied: Ties = ()
    compat: tuple[Compat, ...] = ()

    def __post_init__(self) -> None:
        if self.min_channels < 1:
            raise UserError(
                f"min-channels={self.min_channels} is impossible: no group may vanish; use at "
                "least 1"
            )
        if not 0 <= self.min_ratio <= 1:
            raise UserError(f"min-ratio={self.min_ratio:g} must be a share of a layer, from 0 to 1")
        for name, ratio in self.fixed.items():
            if not 0 < ratio < 1:
                raise UserError(
                    f"the fixed ratio of {name} is {ratio:g}; it must be above 0 and below 1"
                )

    def least(self, width: int) -> int:
        """Return the fewest of ``width`` channels that stay."""
        return self.share(width, self.min_ratio)

    def share(self, width: int, ratio: float) -> int:
        """Return a share of ``width`` channels, rounded down, and not below the fewest that
        stay."""
        # A product such as 100 * (1 - 0.8) must not fall below the whole number it stands for.
        return min(width, max(int(width * ratio + 1e-9), self.min_channels))

    def rounded(self, count: int, width: int) -> int:
        """Return a number of channels, rounded up, and at most ``width``."""
        if self.rounding == "eight":
            count = -(-count // 8) * 8
        elif self.rounding == "two-pow":
            count = 1 << max(count - 1, 0).bit_length()
        return min(count, width)


def gamma_scales(coupling: Coupling, weights: Mapping[str, Tensor]) -> list[Scales]:
    """Return the absolute scales of every batch norm, free or not, once each, in graph order.

    Raises:
        UserError: scales that are not finite.
    """
    found = []
    for norm in batch_norms(coupling.graph):
        values = weights[norm.scale.name].detach().double().abs().cpu().numpy().reshape(-1)
        if not np.isfinite(values).all():
            raise UserError(
                f"the scales of {norm.name} are not finite: {norm.scale.name} holds NaN or infinity"
            )
        slots = coupling.slots_of(norm.scale)
        units = slots[0].units.reshape(-1) if slots else np.array([-1])
        found.append(Scales(norm.name, values, np.broadcast_to(units, values.shape)))
    return found


def unit_scales(coupling: Coupling, scores: Scores) -> list[Scales]:
    """Return scores of units as scales: every free group is one layer of the threshold."""
    return [Scales(name, score, coupling.group(name).units) for name, score in scores.items()]


def ratio_threshold(scales: Sequence[Scales], ratio: float) -> float:
    """Return the scale at place ``int(N * ratio)`` of all N in ascending order; what is not greater
    goes.

    Raises:
        UserError: a ratio that is not above 0 and below 1, or nothing to rank.
    """
    if not 0 < ratio < 1:
        raise UserError(
            f"ratio={ratio:g} must be the share of all scales to remove, above 0 and below 1"
        )
    values = np.sort(np.concatenate([np.zeros(0), *(layer.values for layer in scales)]))
    if len(values) == 0:
        raise UserError(
            "the network has no batch-norm scales: rank by weights, with regulariser=group-norm "
            "criterion=l2"
        )
    return float(values[int(len(values) * ratio)])
