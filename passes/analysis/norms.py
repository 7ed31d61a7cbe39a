"""The batch norms of a graph: where their scales (gamma) and shifts (beta) stand, by the name of their module."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.ir.graph import Graph, Op, Value

__all__ = ["NORMS", "BatchNorm", "batch_norms"]

NORMS = ("batch_norm", "_native_batch_norm_legit", "native_batch_norm", "cudnn_batch_norm")
"""The ops that are batch norms; their second and third operands are scale and shift."""


@dataclass(frozen=True, slots=True, repr=False)
class BatchNorm:
    """A batch norm with a scale. ``op`` is the first that applies it; ``shift`` is None where there is none."""

    name: str
    op: Op
    scale: Value
    shift: Value | None


def batch_norms(graph: Graph) -> tuple[BatchNorm, ...]:
    """Every batch norm (1d, 2d, 3d, synchronised) whose scale is a weight, once each, in graph order.

    Batch norms without a scale (``affine=False``), or whose scale is computed, are not among them.
    """
    found: dict[Value, BatchNorm] = {}
    for op in graph.ops:
        scale, shift = (op.value(1), op.value(2)) if op.role in NORMS else (None, None)
        if scale is not None and scale.is_weight:
            name = scale.name.rpartition(".")[0] or scale.name
            found.setdefault(scale, BatchNorm(name, op, scale, shift if shift and shift.is_weight else None))
    return tuple(found.values())
