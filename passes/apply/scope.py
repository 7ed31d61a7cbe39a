"""The ops that ran in a module, before the cut and after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import BatchSize
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.sizes import axis_shares
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait

__all__ = ["Run", "Scope", "Sizes"]

Sizes = Mapping[int, set[int]]
"""The lengths that channel axes had -> those that they have."""


class Run:
    """The ops of the graph before and after the cut, by the module in which they ran."""

    def __init__(self, coupling: Coupling, cut: Graph) -> None:
        self.coupling = coupling
        self.by_path: dict[str, list[tuple[Op, Op]]] = {}
        self.twins: dict[Value, Value] = dict(zip(coupling.graph.inputs, cut.inputs, strict=True))
        self.twins.update(
            (value, cut.params[name]) for name, value in coupling.graph.params.items()
        )
        for old, new in zip(coupling.graph.ops, cut.ops, strict=True):
            self.by_path.setdefault(old.loc.module, []).append((old, new))
            self.twins.update(zip(old.results, new.results, strict=True))

    def sizes(self, values: Iterable[Value], *, last: bool = True) -> Sizes:
        """Return lengths of channel axes of values before the cut; ``last``: of last axes too."""
        found: dict[int, set[int]] = {}
        for value in values:
            for share in axis_shares(self.coupling, value):
                before, after = (
                    value.type.dims[share.axis],
                    self.twins[value].type.shape()[share.axis],
                )
                if not isinstance(before, BatchSize) and (last or share.axis < value.type.rank - 1):
                    found.setdefault(value.type.shape()[share.axis], set()).add(after)
        return found


@dataclass(frozen=True)
class Scope:
    """The ops that ran in a module, known by these paths."""

    run: Run
    paths: list[str]

    @property
    def own(self) -> list[tuple[Op, Op]]:
        """Pairs of an op before and after the cut, without those of modules inside."""
        return [pair for path in self.paths for pair in self.run.by_path.get(path, [])]

    @property
    def inside(self) -> set[Op]:
        """The ops before the cut, of modules inside too."""
        paths = [
            path for path in self.run.by_path if any(is_inside(path, mine) for mine in self.paths)
        ]
        return {op for path in paths for op, _ in self.run.by_path[path]}

    def attr(self, name: str, trait: Trait) -> Any:
        """Return the new value of an attribute of the first op of this kind with it, else None."""
        return next(
            (new.attrs[name] for _, new in self.own if name in new.attrs and has_trait(new, trait)),
            None,
        )

    def channels(self) -> int | None:
        """Return the second axis of what the first op reads."""
        value = next((new.value(0) for _, new in self.own), None)
        return None if value is None or value.type.rank < 2 else value.type.shape()[1]


def is_inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")
