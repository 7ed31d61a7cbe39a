"""Random plans: as few units as allowed, many at random, one group alone, all but a few."""

from __future__ import annotations

import numpy as np

from pruneopt.passes.analysis.channels.groups import Coupling, Group

KINDS = ("least", "random", "alone", "almost", "mixed")


def make_plan(coupling: Coupling, kind: str, seed: int) -> dict[str, np.ndarray]:
    """Kept units of every free group. In every block as many stay, at any places."""
    random = np.random.default_rng(seed)
    free = list(coupling.free)
    chosen = (
        {random.choice([group.name for group in free])}
        if kind == "alone" and free
        else {g.name for g in free}
    )
    plan = {}
    for group in free:
        most = len(group.blocks[0])
        count = {
            "least": group.least,
            "alone": group.least,
            "random": int(random.integers(group.least, most + 1)),
            "almost": max(group.least, most - 1),
            "mixed": int(random.choice([group.least, most, max(group.least, most // 2)])),
        }[kind]
        plan[group.name] = _kept(group, count if group.name in chosen else most, random)
    return plan


def _kept(group: Group, count: int, random: np.random.Generator) -> np.ndarray:
    return np.sort(np.concatenate([random.permutation(block)[:count] for block in group.blocks]))
