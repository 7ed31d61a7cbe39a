"""Read the equation of einsum: a name for every axis, also for those under an ellipsis."""

from __future__ import annotations

from collections.abc import Sequence

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.ops.count import AxisOf, Count

__all__ = ["einsum_macs", "terms_of"]


def terms_of(op: Op, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Return the indices of every operand (of these ranks), and those of the result, in order."""
    left, arrow, right = str(op.attrs["equation"]).replace(" ", "").partition("->")
    terms = [_indices_of(text, rank) for text, rank in zip(left.split(","), ranks, strict=True)]
    return terms, _indices_of(right, op.result.type.rank) if arrow else _implied(terms)


def _indices_of(text: str, rank: int) -> list[str]:
    """Return one name per axis; the axes under an ellipsis are counted from the right, where they
    broadcast."""
    before, dots, after = text.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]


def _implied(terms: Sequence[Sequence[str]]) -> list[str]:
    """Return the indices of the result where the equation does not say: all under an ellipsis, then
    those that occur once, by the alphabet."""
    every = [index for term in terms for index in term]
    hidden = {index for index in every if index.startswith("...")}
    single = sorted(index for index in every if every.count(index) == 1 and index not in hidden)
    return [*sorted(hidden, key=lambda index: -int(index[3:])), *single]


def einsum_macs(op: Op) -> list[Count]:
    """Count pairwise, in the order of the op's path or from left to right: the product of all
    indices of the pair.

    An index that only one of the two has, and that nothing reads later, is summed out before.
    """
    entries = op.operands[0]
    if not isinstance(entries, tuple):
        return []
    tensors = [tensor for tensor in entries if tensor is not None]
    terms, output = terms_of(op, [tensor.type.rank for tensor in tensors])
    axis: dict[str, AxisOf] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for position, index in enumerate(term):
            if index not in axis or tensor.type.shape()[position] != 1:
                axis[index] = (tensor, position)
    kept = set(output)
    counts = []
    left = [set(term) for term in terms]
    for first, second in _pairs(op, len(left)):
        a, b = left[first], left[second]
        rest = [term for i, term in enumerate(left) if i not in (first, second)]
        later = kept.union(*rest)
        counts.append(Count(tuple(axis[index] for index in sorted((a & b) | ((a | b) & later)))))
        # A path names the pair's places before both are taken out; without one, the result goes on
        # from the left.
        left = [*rest, (a | b) & later] if op.attrs.get("path") else [(a | b) & later, *rest]
    return counts


def _pairs(op: Op, count: int) -> list[tuple[int, int]]:
    path = op.attrs.get("path")
    if not isinstance(path, tuple):
        return [(0, 1)] * (count - 1)
    numbers = [number for number in path if isinstance(number, int)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))
