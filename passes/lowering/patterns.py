"""Patterns that the lowerings of a network's passes look for in its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pruneopt.ir.graph import Op, Operand, Value
from pruneopt.ir.types import MODE
from pruneopt.kernels.library import ACTIVATIONS
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import computes

__all__ = [
    "GEOMETRY",
    "Unfused",
    "activation_name",
    "is_conv2d",
    "is_idle_dropout",
    "is_mean_of_pixels",
    "is_residual_sum",
    "mapped",
    "unfit",
]

GEOMETRY = ("stride", "padding", "dilation", "groups")


@dataclass(frozen=True, slots=True)
class Unfused:
    """An op that runs as PyTorch has it, and why."""

    op: Op
    why: str


def activation_name(op: Op) -> str | None:
    """Return the kernels' name of an activation."""
    if op.base == "hardtanh" and (
        op.operands[1:],
        op.attrs.get("min_val"),
        op.attrs.get("max_val"),
    ) == ((), 0, 6):
        return "relu6"
    return op.base if op.base in ACTIVATIONS else None


def is_conv2d(op: Op) -> bool:
    """Return whether an op is a convolution over two axes, not transposed."""
    layer = layer_weight(op) if computes(op, Trait.CONVOLUTION) else None
    return layer is not None and layer.out_axis == 0 and layer.value.type.rank == 4


def is_residual_sum(op: Op) -> bool:
    """Return whether an op adds two values of one type."""
    if not computes(op, Trait.ADD) or op.attrs.get("alpha") != 1:
        return False
    left, right = op.value(0), op.value(1)
    return left is not None and right is not None and left.type == right.type


def is_mean_of_pixels(op: Op) -> bool:
    """Return whether an op takes the mean over rows and columns."""
    return computes(op, Trait.ADAPTIVE_MEAN) and op.attrs["output_size"] == (1, 1)


def is_idle_dropout(op: Op) -> bool:
    """Return whether an op is a dropout that follows the module's mode."""
    return computes(op, Trait.DROPOUT) and op.attrs.get("train") == MODE


def unfit(op: Op) -> str | None:
    """Return why the kernels do not do a convolution, wherever it stands; None where they do."""
    if not isinstance(op.attrs["groups"], int) or not isinstance(op.attrs["padding"], tuple):
        return "its padding or groups are no numbers"
    return None if op.needed(1).is_weight else "its weight is computed"


def mapped(operands: Sequence[Operand], value: Callable[[Value], Value]) -> tuple[Operand, ...]:
    """Return operands with every value replaced."""

    def one(operand: Operand) -> Operand:
        if isinstance(operand, Value):
            return value(operand)
        if isinstance(operand, tuple):
            return tuple(None if item is None else value(item) for item in operand)
        return operand

    return tuple(map(one, operands))
