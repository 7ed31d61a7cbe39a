"""A front as a file: ``front.json``, enough to cut the network that it was found for to any of its
points.

The file names the network by digests of its graph and its weights, and holds, of every channel
group, the units from the best to the worst: a point is then its widths alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from pruneopt.digest import digest, weights_digest
from pruneopt.errors import UserError
from pruneopt.ir.text.printer import print_graph
from pruneopt.manifest import check_listed
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.front.explore import Explore
from pruneopt.passes.front.front_outcome import FrontOutcome, Point
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import pipeline_text
from pruneopt.passes.selection.select import best_units
from pruneopt.reading import as_record, read_record

__all__ = ["FRONT", "FrontFile", "front_data", "load_front"]

FRONT = "front.json"
FORMAT = "pruneopt-front"
VERSION = 1
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(max_length=4096)]


class _Point(Struct):
    """What is read of an entry of a point."""

    candidate: int
    score: float
    costs: dict[Name, Annotated[float, Meta(ge=0)]]
    widths: dict[Name, Count]


class _Front(Struct):
    """What is read of a front."""

    points: list[_Point]
    order: dict[Name, list[Count]]
    original: dict[Name, Annotated[float, Meta(ge=0)]]
    graph_sha256: Name
    weights_sha256: Name


def front_data(
    outcome: FrontOutcome, state: State, explore: Explore, before: str
) -> dict[str, Any]:
    """Return a front as JSON data.

    Args:
        state: after the exploration; its graph is the one that was explored.
        before: the passes that led to the channel groups and their costs, as text.
    """
    seed = state.seed if explore.seed is None else explore.seed
    scores = explore.space(state, seed).scores
    points, tried = outcome.front, outcome.measured
    return {
        "format": FORMAT,
        "version": VERSION,
        "network": state.original.name,
        "against": list(outcome.against),
        "budgets": [budget.text for budget in state.budgets],
        "flops_convention": outcome.cost.convention.name,
        "original": {unit: int(outcome.cost.original(unit)) for unit in (points or tried)[0].costs},
        "judged": len(tried),
        "judged_by": pass_text(explore.evaluator),
        "found_by": outcome.sampling,
        "interrupted": outcome.interrupted,
        "hypervolume": outcome.hypervolume(),
        "notes": outcome.notes,
        "points": [{"point": point.number, **_entry(point)} for point in points],
        "baselines": [
            _entry(point) for point in tried if point.tried.origin in ("original", "uniform", "l1")
        ],
        **_identity(state),
        "before": before,
        "after": pipeline_text(explore.finishing_passes(seed)),
        "order": {
            name: np.argsort(-score, kind="stable").tolist() for name, score in scores.items()
        },
    }


def _entry(point: Point) -> dict[str, Any]:
    tried = point.tried
    signal = {} if tried.signal is None else {"signal": tried.signal}
    found = {"candidate": tried.index, "origin": tried.origin, "score": tried.score, **signal}
    return {**found, "costs": dict(point.costs), "widths": tried.widths}


def _identity(state: State) -> dict[str, str]:
    """Return the digests of the network that a state holds, before it is cut."""
    graph = digest(print_graph(state.need_coupling().graph, locations=False))
    return {"graph_sha256": graph, "weights_sha256": weights_digest(state.graph.weights)}


@dataclass(frozen=True)
class FrontFile:
    """A front that was read from ``path``."""

    path: Path
    data: Mapping[str, Any]

    @property
    def points(self) -> Sequence[Mapping[str, Any]]:
        """The entries of the points, the cheapest first."""
        found: Sequence[Mapping[str, Any]] = self.data["points"]
        return found

    def point(self, number: int) -> Mapping[str, Any]:
        """Return the entry of a point, counted from 1; `UserError` where there is none of this
        number."""
        count = len(self.points)
        if not 1 <= number <= count:
            which = (
                f"points 1 to {count}" if count > 1 else "only point 1" if count else "no points"
            )
            raise UserError(f"there is no point {number} in {self.path}, which has {which}")
        return self.points[number - 1]

    def check_network(self, state: State) -> None:
        """Raise `UserError` where the front belongs to another network than the one of a state, or
        to other weights."""
        mine = _identity(state)
        differing = [name for name in mine if mine[name] != self.data[name]]
        if differing:
            words = {"graph_sha256": "the graph", "weights_sha256": "the weights"}
            raise UserError(
                f"{self.path} belongs to another network "
                f"({' and '.join(words[name] for name in differing)} differ): "
                "name the model and the weights that were searched"
            )

    def plan(self, number: int, coupling: Coupling) -> dict[str, np.ndarray]:
        """Return the units that a point keeps of every free group; one that the search left alone
        keeps all.

        Raises:
            UserError: no such point, or other channel groups than those that were searched.
        """
        widths, free = self.point(number)["widths"], {group.name: group for group in coupling.free}
        plan = {name: np.arange(group.width) for name, group in free.items()}
        for name, width in widths.items():
            order, group = self.data["order"].get(name, ()), free.get(name)
            if group is None or sorted(order) != list(range(group.width)) or width % group.step:
                raise self._other_groups(name)
            if not 0 < width <= group.width:
                raise UserError(f"{self.path} is damaged: it keeps {width} channels of {name}")
            rank = np.empty(group.width)
            rank[order] = np.arange(group.width)
            plan[name] = best_units(group, -rank, width)
        return plan

    def _other_groups(self, name: str) -> UserError:
        return UserError(
            f"{self.path} was found for other channel groups ({name} differs): couple channels as "
            "the search did, by "
            f"{self.data['before']}"
        )


def load_front(path: str | os.PathLike[str]) -> FrontFile:
    """Return the front in a file, or in the ``front.json`` of a folder.

    Raises:
        UserError: no such file, or no front.
    """
    place = Path(path)
    place = place / FRONT if place.is_dir() else place
    check_listed(place)
    data = read_record(place, "front", Any)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(
            f'{place} is no front: it lacks "format": "{FORMAT}"; `pruneopt search` writes one'
        )
    if data.get("version") != VERSION:
        raise UserError(
            f"{place} is a front of version {data.get('version')}; this pruneopt reads version "
            f"{VERSION}"
        )
    needed = ("points", "order", "graph_sha256", "weights_sha256", "before", "after")
    missing = [name for name in needed if name not in data]
    if missing:
        raise UserError(f"{place} is damaged: it lacks {missing[0]}")
    found = as_record(data, f"{place} is damaged", _Front)
    for point in found.points:
        if not point.costs.keys() <= found.original.keys():
            raise UserError(f"{place} is damaged: a point has costs that the original has not")
    return FrontFile(place, data)
