"""The batch norms of a graph: where their scales (gamma), shifts (beta) and running statistics
stand."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import MODE
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait

__all__ = ["BatchNorm", "RunningNorm", "batch_norms", "running_norm"]


@dataclass(frozen=True, slots=True, repr=False)
class BatchNorm:
    """A batch norm with a scale. ``op`` is the first that applies it; ``shift`` is None where there
    is none."""

    name: str
    op: Op
    scale: Value
    shift: Value | None


def batch_norms(graph: Graph) -> tuple[BatchNorm, ...]:
    """Return every batch norm (1d, 2d, 3d, synchronised) whose scale is a weight, once each, in
    graph order.

    Batch norms without a scale (``affine=False``), or whose scale is computed, are not among them.
    """
    found: dict[Value, BatchNorm] = {}
    for op in graph.ops:
        scale, shift = (
            (op.value(1), op.value(2)) if has_trait(op, Trait.BATCH_NORM) else (None, None)
        )
        if scale is not None and scale.is_weight:
            name = scale.name.rpartition(".")[0] or scale.name
            found.setdefault(
                scale, BatchNorm(name, op, scale, shift if shift and shift.is_weight else None)
            )
    return tuple(found.values())


@dataclass(frozen=True, slots=True, repr=False)
class RunningNorm:
    """A batch norm with running statistics, as one op applies it.

    Attributes:
        op, source: the op, and what it normalises.
        scale, shift: None where there is none.
        mean, variance: the running statistics.
        eps: what is added to the variance.
        learns: training changes the statistics.
    """

    op: Op
    source: Value
    scale: Value | None
    shift: Value | None
    mean: Value
    variance: Value
    eps: float
    learns: bool


def running_norm(op: Op) -> RunningNorm | None:
    """Return the batch norm that an op is, if it has running statistics and uses them in evaluation
    mode."""
    fixed = op.attrs.get("training") in (MODE, False)
    if not has_trait(op, Trait.BATCH_NORM) or op.value(3) is None or not fixed:
        return None
    eps = op.attrs["eps"]
    return RunningNorm(
        op,
        op.needed(0),
        op.value(1),
        op.value(2),
        op.needed(3),
        op.needed(4),
        float(eps) if isinstance(eps, int | float) else 0.0,
        op.attrs["training"] == MODE,
    )
