"""Where the weight of a layer stands, and which of its axes makes channels and which consumes them: one table."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.ir.graph import Op, Value

__all__ = ["LAYERS", "LayerWeight", "layer_weight"]

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
MATMULS = ("matmul", "bmm", "mm")
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, "linear", "embedding", "addmm", "baddbmm", *MATMULS, "einsum")


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """A layer's weight (it may be computed), the axis of its output channels, and that of its input channels if any."""

    value: Value
    out_axis: int
    in_axis: int | None

    def makes(self, axes: tuple[int, ...]) -> bool:
        """Whether labels over ``axes`` of the weight are those of its output channels.

        Those of a grouped transposed convolution lie along both axes: (groups, outputs of one group).
        """
        return axes[-1] == self.out_axis


def layer_weight(op: Op) -> LayerWeight | None:
    """The weight that a layer contracts its input with; None for other ops, and for products of activations."""
    if op.base in CONVOLUTIONS or op.base in TRANSPOSED:
        weight, axes = op.value(1), (0, 1)
        if op.base in TRANSPOSED or op.attrs.get("transposed") is True:
            axes = (1, 0)
        return None if weight is None else LayerWeight(weight, *axes)
    if op.base == "linear":
        weight = op.value(1)
        return None if weight is None else LayerWeight(weight, 0, weight.type.rank - 1)
    if op.base == "embedding":
        weight = op.value(0)
        return None if weight is None else LayerWeight(weight, 1, None)
    if op.base in (*MATMULS, "addmm", "baddbmm"):
        left, right = (op.value(i) for i in ((1, 2) if op.base in ("addmm", "baddbmm") else (0, 1)))
        if right is not None and right.is_weight and right.type.rank > 1:
            return LayerWeight(right, right.type.rank - 1, right.type.rank - 2)
        if left is not None and left.is_weight and left.type.rank > 1:
            return LayerWeight(left, left.type.rank - 2, left.type.rank - 1)
    return None
