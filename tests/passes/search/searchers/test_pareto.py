"""Sorting, crowding and volume against their definitions, by brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneopt.passes.search.searchers.nsga2 import survivors
from pruneopt.passes.search.searchers.pareto import (
    crowding_distances,
    front_ranks,
    hypervolume,
    non_dominated,
)


def tables(
    columns: st.SearchStrategy[int], top: int = 6, rows: int = 12
) -> st.SearchStrategy[np.ndarray]:
    """Points on a small grid, so that equal numbers and equal points are common."""
    return columns.flatmap(
        lambda count: st.lists(
            st.lists(st.integers(0, top), min_size=count, max_size=count), min_size=1, max_size=rows
        ).map(lambda found: np.array(found, dtype=np.float64))
    )


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(
        a < b for a, b in zip(one, other, strict=True)
    )


@given(tables(st.integers(1, 4)))
def test_the_front_is_what_nothing_dominates(points: np.ndarray) -> None:
    wanted = [not any(dominates(other, point) for other in points) for point in points]
    assert non_dominated(points).tolist() == wanted


@given(tables(st.integers(1, 4)))
def test_ranks_peel_front_after_front(points: np.ndarray) -> None:
    left, rank = set(range(len(points))), 0
    wanted = np.zeros(len(points), dtype=int)
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        wanted[list(front)] = rank
        left, rank = left - front, rank + 1
    assert front_ranks(points).tolist() == wanted.tolist()


def crowding_of_the_paper(points: np.ndarray) -> list[float]:
    """crowding-distance-assignment of Deb et al. (2002), line by line."""
    count = len(points)
    distance = [0.0] * count
    for m in range(points.shape[1]):
        order = sorted(range(count), key=lambda i: points[i, m])
        low, high = points[order[0], m], points[order[-1], m]
        if high == low:
            continue  # the paper divides by the range here
        distance[order[0]] = distance[order[-1]] = math.inf
        for place in range(1, count - 1):
            distance[order[place]] += (
                points[order[place + 1], m] - points[order[place - 1], m]
            ) / (high - low)
    return distance


@given(tables(st.integers(1, 3), top=30))
def test_crowding_is_the_papers(points: np.ndarray) -> None:
    assert crowding_distances(points) == pytest.approx(crowding_of_the_paper(points))


def test_crowding_of_few_and_of_equal_points() -> None:
    assert crowding_distances(np.zeros((0, 2))).tolist() == []
    assert crowding_distances(np.array([[1.0, 2.0]])).tolist() == [0.0]
    assert crowding_distances(np.ones((3, 2))).tolist() == [0.0, 0.0, 0.0]


@given(tables(st.integers(1, 4), top=4, rows=8))
def test_the_volume_is_the_number_of_dominated_cells(points: np.ndarray) -> None:
    # On whole numbers the dominated region is made of unit cells, each with its upper corner above
    # some point.
    reference = np.full(points.shape[1], 4.0)
    cells = itertools.product(range(4), repeat=points.shape[1])
    wanted = sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
        for cell in cells
    )
    assert hypervolume(points, reference) == pytest.approx(wanted)


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_volume_agrees_with_chance(objectives: int) -> None:
    random = np.random.default_rng(objectives)
    points, reference = random.random((20, objectives)) ** 2, np.full(objectives, 0.8)
    drawn = random.random((100_000, objectives)) * reference
    share = np.mean((points[:, None] <= drawn[None]).all(axis=2).any(axis=0))
    assert hypervolume(points, reference) == pytest.approx(share * 0.8**objectives, rel=0.02)


def test_points_outside_of_the_reference_add_nothing() -> None:
    inside = np.array([[0.2, 0.5]])
    more = np.array([[0.2, 0.5], [0.1, 1.0], [1.5, 0.0]])
    reference = np.ones(2)
    assert (
        hypervolume(inside, reference) == hypervolume(more, reference) == pytest.approx(0.8 * 0.5)
    )
    assert hypervolume(more[1:], reference) == 0.0


@given(tables(st.just(2), top=9), st.integers(1, 12))
def test_survivors_are_whole_fronts_and_the_loneliest_of_the_last(
    points: np.ndarray, count: int
) -> None:
    kept, ranks = survivors(points, count), front_ranks(points)
    assert len(set(kept.tolist())) == len(kept) == min(count, len(points))
    last = ranks[kept].max()
    assert set(np.flatnonzero(ranks < last)) <= set(kept.tolist())
    front = np.flatnonzero(ranks == last)
    lonely = dict(zip(front.tolist(), crowding_distances(points[front]).tolist(), strict=True))
    left = [lonely[i] for i in lonely if i not in kept]
    assert not left or min(lonely[i] for i in kept.tolist() if i in lonely) >= max(left)
