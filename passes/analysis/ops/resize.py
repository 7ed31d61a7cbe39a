"""Re-make what is written out in an op of the sliced graph: sizes, from the types that the kept
channels give its operands and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.schema import signature
from pruneopt.ir.types import Attr, BatchSize, Dim
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.sizes import AxisShare, axis_shares

__all__ = ["SIZES", "SizeOf", "SlicedOp", "as_attr", "resize_declared", "resize_result"]

SizeOf = tuple[str, int]
"""Where a size is read: the name of a tensor argument, or ``result``, and an axis."""
SIZES: dict[str, dict[str, SizeOf]] = {}
"""The arguments of users' ops that hold a number of channels, by the op's base: two ops that are
like the same op of PyTorch need not have the same arguments."""


class SlicedOp:
    """One op of the new graph, its original, and what is kept."""

    def __init__(self, graph: Graph, op: Op, old: Op, coupling: Coupling, kept: np.ndarray) -> None:
        self.graph, self.op, self.old, self.coupling, self.kept = graph, op, old, coupling, kept

    def set(self, name: str, value: Attr) -> None:
        """Set an attribute of the new op."""
        if self.op.attrs[name] != value:
            self.graph.set_attr(self.op, name, value)

    def share(self, value: Value | None, axis: int) -> AxisShare | None:
        """Return how an axis of an original value shrinks; None if it does not."""
        if value is not None:
            for share in axis_shares(self.coupling, value):
                if share.axis == axis:
                    return share
        return None

    def flags(self, share: AxisShare) -> np.ndarray:
        """Return which positions of an axis are kept; of channels spread over several axes, in the
        first row.

        The analysis lets an op count positions only where every row has its kept channels at the
        same places.
        """
        flags: np.ndarray = np.append(self.kept, True)[share.units.reshape(share.divisor, -1)[0]]
        return flags

    def retarget(self, target: str, attrs: Mapping[str, Attr]) -> None:
        """Make the new op another one."""
        self.op.target = target
        self.op.attrs = dict(attrs)


def as_attr(dim: Dim) -> Attr:
    """Return a dimension as an attribute holds it."""
    return dim if isinstance(dim, int | BatchSize) else dim.size


def resize_result(name: str) -> Callable[[SlicedOp], None]:
    """Return how ops are resized that spell out their result's shape in the attribute ``name``; -1
    and sizes that did not change stay as they were written."""

    def resize(site: SlicedOp) -> None:
        given = site.op.attrs.get(name)
        dims = site.op.result.type.dims
        old = site.old.result.type.plain().dims
        if not isinstance(given, tuple) or len(given) != len(dims):
            return
        changed = tuple(
            size if size == -1 or old[i] == dims[i] else as_attr(dims[i])
            for i, size in enumerate(given)
        )
        site.set(name, changed)

    return resize


def resize_declared(site: SlicedOp) -> None:
    """Set the arguments of a user's op that were declared to be numbers of channels."""
    for name, (source, axis) in SIZES.get(site.old.base, {}).items():
        names = [argument.name for argument in signature(site.op.target).operands]
        value = site.op.results[0] if source == "result" else site.op.value(names.index(source))
        if value is not None:
            site.set(name, value.type.shape()[axis])
