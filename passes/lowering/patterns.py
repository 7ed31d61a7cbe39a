"""What the lowerings of a network's passes look for in its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pruneopt.ir.graph import Op, Operand, Value
from pruneopt.kernels.library import ACTIVATIONS

__all__ = ["GEOMETRY", "Unfused", "activation_name", "mapped", "unfit"]

GEOMETRY = ("stride", "padding", "dilation", "groups")


@dataclass(frozen=True, slots=True)
class Unfused:
    """An op that runs as PyTorch has it, and why."""

    op: Op
    why: str


def activation_name(op: Op) -> str | None:
    """The kernels' name of an activation."""
    if op.role == "hardtanh" and (
        op.operands[1:],
        op.attrs.get("min_val"),
        op.attrs.get("max_val"),
    ) == ((), 0, 6):
        return "relu6"
    return op.role if op.role in ACTIVATIONS else None


def unfit(op: Op) -> str | None:
    """Why the kernels do not do a convolution, whatever stands around it; None where they do."""
    if not isinstance(op.attrs["groups"], int) or not isinstance(op.attrs["padding"], tuple):
        return "its padding or groups are no numbers"
    return None if op.needed(1).is_weight else "its weight is computed"


def mapped(operands: Sequence[Operand], value: Callable[[Value], Value]) -> tuple[Operand, ...]:
    """Operands with every value replaced."""

    def one(operand: Operand) -> Operand:
        if isinstance(operand, Value):
            return value(operand)
        if isinstance(operand, tuple):
            return tuple(None if item is None else value(item) for item in operand)
        return operand

    return tuple(map(one, operands))
