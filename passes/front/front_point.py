"""The pass ``front``: the channels of one point of a front that `pruneopt search` found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import ClassVar

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.units import target_of
from pruneopt.passes.front.front_file import load_front
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.search.rankings.function import Function
from pruneopt.passes.selection.prune import Choose
from pruneopt.passes.transform.given_plan import take_plan

__all__ = ["FrontPoint", "FrontRecord"]


@dataclass(frozen=True, slots=True)
class FrontRecord:
    """Which point of which front decided; its score is that of the search, on the sub-validation
    images."""

    file: str
    point: int
    points: int
    candidate: int
    score: float


@dataclass(frozen=True)
class FrontPoint(Choose):
    """Cut to a point of a front; the network must be the one that was searched, with the same
    weights."""

    name: ClassVar[str] = "front"
    summary: ClassVar[str] = "keep the channels of a point of a front that `pruneopt search` found"

    file: str = field(metadata={"help": "a front.json, or the folder that holds it"})
    point: int = option(1, "which point, from 1: the cheapest")

    def __post_init__(self) -> None:
        super().__post_init__()
        load_front(self.file).point(self.point)

    @property
    def aims(self) -> bool:
        return True

    def before(self) -> list[Pass]:
        """Return the passes that led to the channel groups that were searched."""
        return _passes(self.file, "before")

    def finishing_passes(self) -> list[Pass]:
        """Return what gives the delivered network what the judged ones had."""
        return _passes(self.file, "after")

    def times(self) -> dict[str, tuple[float, float]]:
        """Return the seconds that the front has of the original and of the point, by the texts of
        targets."""
        front = load_front(self.file)
        original, own = front.data["original"], front.point(self.point)["costs"]
        return {
            target: (original[unit] / 1e9, own[unit] / 1e9)
            for unit in own
            if (target := target_of(unit)) is not None
        }

    def run(self, state: State) -> bool:
        front = load_front(self.file)
        front.check_network(state)
        entry = front.point(self.point)
        changed = take_plan(
            state,
            front.plan(self.point, state.need_coupling()),
            f"point {self.point} of {front.path}",
        )
        record = FrontRecord(
            str(front.path), self.point, len(front.points), entry["candidate"], entry["score"]
        )
        state.records[self.name] = record
        return changed


def _passes(file: str, key: str) -> list[Pass]:
    front = load_front(file)
    text = front.data[key]
    if not isinstance(text, str):
        raise UserError(f"{front.path} is damaged: {key} must be a pipeline")
    found = parse_pipeline(text) if text else []
    for part in _parts(found):
        if isinstance(part, Function | FrontPoint):
            raise UserError(
                f"{front.path} names code or files by its passes ({part.name}): a front cannot, "
                "give --pass and --before yourself"
            )
    return found


def _parts(value: object) -> Iterator[object]:
    """Iterate over passes and the parts in their options."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    elif is_dataclass(value):
        yield value
        for item in fields(value):
            yield from _parts(getattr(value, item.name))
