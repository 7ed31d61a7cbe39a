"""How einsum writes its operands: a name for every axis, also for those under an ellipsis."""

from __future__ import annotations

from collections.abc import Sequence

from pruneopt.ir.graph import Op

__all__ = ["terms_of"]


def terms_of(op: Op, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The indices of every operand (of these ranks), and those of the result, in order."""
    left, arrow, right = str(op.attrs["equation"]).replace(" ", "").partition("->")
    terms = [_indices_of(text, rank) for text, rank in zip(left.split(","), ranks, strict=True)]
    return terms, _indices_of(right, op.result.type.rank) if arrow else _implied(terms)


def _indices_of(text: str, rank: int) -> list[str]:
    """One name per axis; the axes under an ellipsis are counted from the right, where they
    broadcast."""
    before, dots, after = text.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]


def _implied(terms: Sequence[Sequence[str]]) -> list[str]:
    """The indices of the result where the equation does not say: all under an ellipsis, then those
    that occur once, by the alphabet.
    """
    every = [index for term in terms for index in term]
    hidden = {index for index in every if index.startswith("...")}
    single = sorted(index for index in every if every.count(index) == 1 and index not in hidden)
    return [*sorted(hidden, key=lambda index: -int(index[3:])), *single]
