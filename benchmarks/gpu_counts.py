"""Bytes and floating-point operations of a statistics pass, counted from shapes, and the time they
need at best."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt import Graph
from pruneopt.extend import Op, Value
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait

__all__ = ["Ceilings", "Work", "work_of"]

FUSED = "pruneopt.conv_statistics"
VIEWS = ("view", "reshape", "flatten", "dropout", "expand", "permute", "transpose")


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches: bytes and operations per second; None where that was not
    measured."""

    copy: float
    products: float


@dataclass(frozen=True)
class Work:
    """Bytes and operations of every op of a pass; each op is taken to be one kernel or more."""

    ops: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        return sum(moved for moved, _ in self.ops)

    @property
    def operations(self) -> int:
        return sum(done for _, done in self.ops)

    def roof_ms(self, ceilings: Ceilings) -> float:
        """Return the sum over ops of the longer of moving and computing."""
        return 1e3 * sum(
            max(moved / ceilings.copy, done / ceilings.products) for moved, done in self.ops
        )


def work_of(graph: Graph, images: int, item: int) -> Work:
    """Return the work of a network in PyTorch's ops, or of its lowered statistics pass.

    Args:
        graph: either.
        images: of all batches together.
        item: bytes of an element of an activation or weight.
    """
    return Work(tuple((item * _elements(op, images), _operations(op, images)) for op in graph.ops))


def _elements(op: Op, images: int) -> int:
    """Return elements that an op reads and writes."""
    if op.role in VIEWS:
        return 0
    results = list(op.results)
    if op.base == FUSED:  # what it finishes is written where others read it
        results = [value for value in op.results if value is not op.results[3] or value.users]
    total = sum(_size(value, images) for value in (*op.inputs, *results))
    # In training mode a batch norm reads its input for the statistics, and again.
    return total + (_size(op.needed(0), images) if has_trait(op, Trait.BATCH_NORM) else 0)


def _operations(op: Op, images: int) -> int:
    """Return operations: two for every product of a convolution or linear layer."""
    if op.base == FUSED or op.role == "conv2d":
        weight = op.needed(6 if op.base == FUSED else 1).type.shape()
        return 2 * _size(op.results[0], images) * weight[1] * weight[2] * weight[3]
    if op.role == "linear":
        return 2 * _size(op.result, images) * op.needed(1).type.shape()[1]
    return 0


def _size(value: Value, images: int) -> int:
    size = 1
    for length in value.type.plain().shape(images):
        size *= length
    return size
