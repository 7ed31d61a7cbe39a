"""Attention that loses whole heads (`Labels.whole_heads`): channels within a head are one with it.

Channels of heads are spread over two axes, heads and places within them. Where heads lose channels,
whatever works along the places unites the same place of every head. Where whole heads go, it unites
the places of each head instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Labels
from pruneopt.passes.analysis.channels.planes import Plane, varying

__all__ = ["Planes", "apart", "tie_contracted", "tie_inner"]

Planes = tuple[list[Plane], Value | None]


def tie_inner(labels: Labels, plane: Plane, axes: Iterable[int]) -> Plane:
    """Tie a plane over the axes that an op works on, where whole heads go and it varies along
    others too."""
    inside = [axis for axis in varying(plane) if axis in axes]
    if labels.whole_heads and inside and len(inside) < len(varying(plane)):
        return labels.tie(plane, inside)
    return plane


def apart(labels: Labels, op: Op, sides: Sequence[Planes]) -> list[Planes]:
    """Part channels within heads from channels of no head that they meet, the same for all heads:
    the former go with their head, the latter stay and carry no labels any more."""
    every = [plane for planes, _ in sides for plane in planes]
    tied: set[int] = set()
    shared: set[int] = set()
    for index, plane in enumerate(every):
        for other, rival in enumerate(every):
            common = set(varying(plane)) & set(varying(rival))
            if common and varying(plane)[0] not in common:
                every[index] = plane = tie_inner(labels, plane, common)
                tied.add(index)
                shared.add(other)
    for index in shared - tied:
        labels.freeze(every[index], f"the same for every head, {op}")
    numbers = iter(range(len(every)))
    return [
        ([every[n] for n in [next(numbers) for _ in planes] if n not in shared - tied], v)
        for planes, v in sides
    ]


def tie_contracted(
    labels: Labels, spreads: list[list[Plane]], out: tuple[int, ...]
) -> list[list[Plane]]:
    """Tie channels that are contracted within heads that every operand has: they are one with their
    head. Planes are over letters, for each operand of a product of activations."""
    every = [{letter for plane in planes for letter in varying(plane)} for planes in spreads]
    heads = {letter for letter in out if all(letter in letters for letters in every)}

    def tied(plane: Plane) -> Plane:
        stay = [letter for letter in varying(plane) if letter in out]
        if not stay or not heads.issuperset(stay):
            return plane
        return labels.tie(plane, [letter for letter in varying(plane) if letter not in out])

    return [[tied(plane) for plane in planes] for planes in spreads]
