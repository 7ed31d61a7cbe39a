"""Normal equations against least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pruneopt.passes.repair.normal import Normal, pooled, solve

G, N, FEATURES, OUT = 3, 40, 5, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums(free: bool, rows: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Normal:
    found = Normal(rows.shape[0], rows.shape[2], targets.shape[2], free=free, device=rows.device)
    for part in range(0, rows.shape[1], 16):
        found.add(rows[:, part : part + 16], targets[:, part : part + 16], weight, bias)
    return found


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_solution_is_that_of_an_augmented_least_squares_problem(
    free: bool, ridge: float
) -> None:
    rows, targets = random(G, N, FEATURES) + 2, random(G, N, OUT, seed=1)
    weight, bias = random(G, FEATURES, OUT, seed=2), random(G, OUT, seed=3)
    found = sums(free, rows, targets, weight, bias)
    change = solve(found.gram, found.cross, ridge)
    shift = found.shift(change)
    for g in range(G):
        x, rest = rows[g].numpy(), (targets[g] - rows[g] @ weight[g] - bias[g]).numpy()
        centred = x - x.mean(0) if free else x
        pull = np.sqrt(ridge * (centred**2).sum() / FEATURES)
        top = np.hstack([x, np.ones((N, 1))]) if free else x
        low = np.hstack([pull * np.eye(FEATURES), np.zeros((FEATURES, top.shape[1] - FEATURES))])
        system, right = np.vstack([top, low]), np.vstack([rest, np.zeros((FEATURES, OUT))])
        wanted = np.linalg.lstsq(system, right, rcond=None)[0]
        np.testing.assert_allclose(change[g], wanted[:FEATURES], atol=1e-10)
        if free:
            np.testing.assert_allclose(shift[g], wanted[FEATURES], atol=1e-10)
        else:
            assert not shift[g].any()


def test_errors_are_sums_of_squares_over_the_rows() -> None:
    rows, targets = random(G, N, FEATURES), random(G, N, OUT, seed=1)
    weight, bias = random(G, FEATURES, OUT, seed=2), random(G, OUT, seed=3)
    found = sums(True, rows, targets, weight, bias)
    change, shift = random(G, FEATURES, OUT, seed=4), random(G, OUT, seed=5)
    now = (targets - rows @ weight - bias.unsqueeze(1)).square().sum()
    then = (targets - rows @ (weight + change) - (bias + shift).unsqueeze(1)).square().sum()
    assert found.error() == pytest.approx(float(now), rel=1e-12)
    assert found.error(change, shift) == pytest.approx(float(then), rel=1e-10)
    assert found.energy == pytest.approx(float(targets.square().sum()), rel=1e-12)


def test_singular_rows_get_the_smallest_change() -> None:
    rows = random(1, N, 3)
    rows = torch.cat([rows, rows[..., :1], torch.zeros(1, N, 1, dtype=torch.float64)], 2)
    targets = random(1, N, OUT, seed=1)
    found = sums(
        False, rows, targets, torch.zeros(1, 5, OUT, dtype=torch.float64), torch.zeros(1, OUT)
    )
    wanted = np.linalg.lstsq(rows[0].numpy(), targets[0].numpy(), rcond=None)[0]
    np.testing.assert_allclose(solve(found.gram, found.cross, 0.0)[0], wanted, atol=1e-9)


def test_a_dead_group_changes_nothing() -> None:
    found = sums(
        True,
        torch.zeros(1, N, 3),
        random(1, N, OUT),
        random(1, 3, OUT, seed=2),
        torch.zeros(1, OUT),
    )
    assert not solve(found.gram, found.cross, 0.1).any()


def test_one_weight_with_two_biases_is_one_problem_with_two_intercepts() -> None:
    weight = random(1, FEATURES, OUT, seed=9)
    parts, systems, rights = [], [], []
    for number in range(2):
        rows, targets = (
            random(1, N, FEATURES, seed=number) + number,
            random(1, N, OUT, seed=10 + number) - 3 * number,
        )
        bias = random(1, OUT, seed=20 + number)
        parts.append(sums(True, rows, targets, weight, bias))
        ones = np.zeros((N, 2))
        ones[:, number] = 1
        systems.append(np.hstack([rows[0].numpy(), ones]))
        rights.append((targets - rows @ weight - bias)[0].numpy())
    change = solve(*pooled(parts), 0.0)
    wanted = np.linalg.lstsq(np.vstack(systems), np.vstack(rights), rcond=None)[0]
    np.testing.assert_allclose(change[0], wanted[:FEATURES], atol=1e-10)
    for number, part in enumerate(parts):
        np.testing.assert_allclose(part.shift(change)[0], wanted[FEATURES + number], atol=1e-10)
