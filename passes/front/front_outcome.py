"""The result of an exploration: the structures that were judged, and the front among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.search.searchers.explorer import WORST
from pruneopt.passes.search.searchers.pareto import hypervolume, non_dominated

__all__ = ["FrontOutcome", "Point", "Tried", "objectives"]


@dataclass(frozen=True, slots=True)
class Tried:
    """One judged structure; a line of the journal.

    Attributes:
        index: its number, in the order of judging.
        generation: of the explorer, from 0.
        origin: original, widest, uniform, l1, random, child, or the name of a searcher.
        widths: by group.
        score: the mean metric on the sub-validation images.
        signal: what structures are compared by, where that is not the score.
        seconds: of judging.
    """

    index: int
    generation: int
    origin: str
    widths: dict[str, int]
    score: float
    signal: float | None
    seconds: float

    @property
    def value(self) -> float:
        """Return what structures are compared by; larger is better."""
        found = self.score if self.signal is None else self.signal
        return found if math.isfinite(found) else -WORST


@dataclass(frozen=True, slots=True)
class Point:
    """A structure with its costs by unit, as `CostModel.measure` has them; ``number`` counts from 1
    on the front, the cheapest first, and is None for what is not on it.
    """

    number: int | None
    tried: Tried
    costs: Mapping[str, int]


def objectives(
    values: Sequence[float], widths: np.ndarray, units: Sequence[str], cost: CostModel
) -> np.ndarray:
    """Return what is minimised, float64 `[P, 1 + U]`: the negative values `[P]`, and the costs of
    widths `[P, G]`."""
    columns = [
        -np.asarray(values, dtype=np.float64),
        *(cost.measure(unit, widths).astype(np.float64) for unit in units),
    ]
    return np.stack(columns, axis=1)


@dataclass
class FrontOutcome:
    """The result of an exploration.

    Attributes:
        cost: measures structures.
        against: the cost units that accuracy is traded against.
        averaging: how structures were judged.
        sampling: how they were found.
        candidates: all judged structures, by number.
        interrupted: stopped by hand; the front is that of what was judged until then.
        notes: what the user should know.
    """

    cost: CostModel
    against: tuple[str, ...]
    averaging: str
    sampling: str
    candidates: list[Tried] = field(default_factory=list)
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def objectives(self) -> np.ndarray:
        """Return what is minimised, of every candidate: float64 `[P, 1 + U]`."""
        rows = np.array(
            [[item.widths[name] for name in self.cost.groups] for item in self.candidates]
        )
        return objectives([item.value for item in self.candidates], rows, self.against, self.cost)

    @property
    def front(self) -> list[Point]:
        """Return what nothing dominates, by the first cost; of structures with equal objectives the
        first."""
        points = self.objectives
        _, first = np.unique(points, axis=0, return_index=True)
        kept = sorted(int(index) for index in first if points[index, 0] < WORST)
        kept = [
            index for index, stays in zip(kept, non_dominated(points[kept]), strict=True) if stays
        ]
        kept.sort(key=lambda index: tuple(points[index, 1:]))
        return [self._point(number, self.candidates[index]) for number, index in enumerate(kept, 1)]

    @property
    def measured(self) -> list[Point]:
        """Every candidate, on the front or not, in the order of judging."""
        return [self._point(None, item) for item in self.candidates]

    def hypervolume(self, floor: float = 0.0) -> float:
        """Return the volume between the front, the original's costs (1 each) and a value; costs are
        shares of the original's.

        With one cost and accuracy it is the accuracy that the front gives for a share of the cost,
        on the average over all shares from 0 to 1.
        """
        points = self.objectives.copy()
        points[:, 1:] /= [self.cost.original(unit) for unit in self.against]
        return hypervolume(points, np.array([-floor, *[1.0] * len(self.against)]))

    def _point(self, number: int | None, item: Tried) -> Point:
        row = np.array([item.widths[name] for name in self.cost.groups])
        units = dict.fromkeys([*self.against, *self.cost.units])
        return Point(number, item, {unit: int(self.cost.measure(unit, row)) for unit in units})
