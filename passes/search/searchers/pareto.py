"""Pareto fronts: dominance, sorting, crowding, and the volume that a front dominates.

Objectives are minimised, all of them; callers turn the sign of what is to be large. Points are
rows, float64 `[N, M]`. Sorting and crowding are those of NSGA-II (Deb et al., IEEE Transactions on
Evolutionary Computation 6(2), 2002).
"""

from __future__ import annotations

import numpy as np

__all__ = ["crowding_distances", "front_ranks", "hypervolume", "non_dominated"]


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Return whether no other point is at least as good everywhere and better somewhere, bool
    `[N]`; equals stay."""
    order = np.lexsort(points.T[::-1])
    kept: list[int] = []
    for index in order:
        # What dominates a point comes before it in this order, and is itself dominated only by what
        # is kept.
        front, point = points[kept], points[index]
        dominated = (front <= point).all(axis=1) & (front < point).any(axis=1)
        if not dominated.any():
            kept.append(int(index))
    found = np.zeros(len(points), dtype=bool)
    found[kept] = True
    return found


def front_ranks(points: np.ndarray) -> np.ndarray:
    """Return the number of every point's front, int64 `[N]`: 0 for what nothing dominates, 1 for
    what only those do, ...

    Deb's fast non-dominated sort: every point counts those that dominate it, and the counts fall
    front by front.
    """
    no_worse = (points[:, None] <= points[None]).all(axis=2)
    dominates = np.logical_and(no_worse, (points[:, None] < points[None]).any(axis=2))
    count = dominates.sum(axis=0)
    ranks = np.full(len(points), -1, dtype=np.int64)
    rank = 0
    while (ranks < 0).any():
        front = (ranks < 0) & (count == 0)
        ranks[front] = rank
        count -= dominates[front].sum(axis=0)
        rank += 1
    return ranks


def crowding_distances(points: np.ndarray) -> np.ndarray:
    """Return how lonely every point of one front is, float64 `[N]`: the sum over objectives of the
    distance between its two neighbours in that objective, as a share of the front's range. The ends
    of every objective are infinitely lonely.

    An objective in which all are equal tells nothing, and counts for nothing. Of points that are
    equal in an objective the first counts as the smaller one.
    """
    found = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = float(column[order[-1]] - column[order[0]]) if len(order) else 0.0
        if not span > 0:
            continue
        found[order[[0, -1]]] = np.inf
        found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return found


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume of what points `[N, M]` dominate and the reference `[M]` bounds from above.

    Points that are not below the reference everywhere add nothing. Exact, by slices along the last
    objective: the time grows as ``N ** (M - 1)``, which is nothing for the fronts of a search.
    """
    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - inside.min())
    front = inside[non_dominated(inside)]
    front = front[np.argsort(front[:, -1], kind="stable")]
    ends = np.append(front[1:, -1], reference[-1])
    volume = 0.0
    for last in range(len(front)):
        depth = float(ends[last] - front[last, -1])
        if depth > 0:
            volume += depth * hypervolume(front[: last + 1, :-1], reference[:-1])
    return volume
