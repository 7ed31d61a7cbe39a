"""Least squares by normal equations, in float64, from rows that arrive batch by batch and are not
kept.

Per group, with rows X [n, f], the weights now W0 [f, o] and what is missing R = Y - X W0 - b0 [n,
o], the change D of the weights and the shift s of the bias minimise |X D + s - R|^2 + ridge * t *
|D|^2, where t is the trace of X'X over f (of centred X, where there is a shift), so that a ridge
means the same at every scale. The shift is not held back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Normal", "pooled", "solve"]

RANK = 1e-12
"""Singular values below this share of the largest count as zero where the normal matrix has no
Cholesky factor."""
CHUNK_BYTES = 1 << 27


class Normal:
    """The sums that least squares needs, of g groups with f inputs and o outputs.

    Attributes:
        free: whether the bias may shift; without, s is zero.
        count: rows so far.
        energy: the sum of squares of the targets.
    """

    def __init__(
        self, groups: int, features: int, outputs: int, *, free: bool, device: torch.device
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self.free = free
        self.count = 0
        self.energy = 0.0
        self._gram, self._cross = zeros(features, features), zeros(features, outputs)
        self._rows, self._rest = zeros(features), zeros(outputs)
        self._squares = zeros(outputs)

    def add(self, rows: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Rows [g, n, f] with their targets [g, n, o], at the weight [g, f, o] and the bias [g, o]
        of now (float64)."""
        groups, total, features = rows.shape
        size = max(1, CHUNK_BYTES // (8 * groups * features))
        for start in range(0, total, size):
            x = rows[:, start : start + size].double()
            y = targets[:, start : start + size].double()
            rest = y - (x @ weight + bias.unsqueeze(1))
            self._gram += x.transpose(1, 2) @ x
            self._cross += x.transpose(1, 2) @ rest
            self._rows += x.sum(1)
            self._rest += rest.sum(1)
            self._squares += rest.square().sum(1)
            self.energy += float(y.square().sum())
        self.count += total

    @property
    def gram(self) -> Tensor:
        """X'X [g, f, f], of centred rows where the bias may shift."""
        if not self.free:
            return self._gram
        return self._gram - self._rows.unsqueeze(2) * self._rows.unsqueeze(1) / self.count

    @property
    def cross(self) -> Tensor:
        """X'R [g, f, o], of centred rows where the bias may shift."""
        if not self.free:
            return self._cross
        return self._cross - self._rows.unsqueeze(2) * self._rest.unsqueeze(1) / self.count

    def shift(self, change: Tensor) -> Tensor:
        """Return the best shift of the bias [g, o] for a change of the weights [g, f, o]."""
        if not self.free:
            return torch.zeros_like(self._rest)
        return (self._rest - (self._rows.unsqueeze(1) @ change).squeeze(1)) / self.count

    def error(self, change: Tensor | None = None, shift: Tensor | None = None) -> float:
        """Return the sum of squares left after a change and a shift; without them, as it is now."""
        if change is None:
            return float(self._squares.sum())
        bias = torch.zeros_like(self._rest) if shift is None else shift
        cross = self._cross - self._rows.unsqueeze(2) * bias.unsqueeze(1)
        left = self._squares - 2 * self._rest * bias + self.count * bias.square()
        left = left - 2 * (change * cross).sum(1) + (change * (self._gram @ change)).sum(1)
        return max(0.0, float(left.sum()))


def solve(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return the change [g, f, o] of the weights, from X'X [g, f, f] and X'R [g, f, o].

    By Cholesky; where a matrix is singular (and the ridge zero) the smallest of all best changes.
    """
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)
    matrix = gram + torch.diag_embed((ridge * scale).unsqueeze(1).expand(-1, gram.shape[-1]))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not bool(failed.any()):
        found: Tensor = torch.cholesky_solve(cross, factor)
        if bool(found.isfinite().all()):
            return found
    inverse: Tensor = torch.linalg.pinv(matrix, rtol=RANK, hermitian=True)
    return inverse @ cross


def pooled(parts: Sequence[Normal]) -> tuple[Tensor, Tensor]:
    """Return X'X and X'R of one weight that is used with several biases, each of which shifts by
    itself."""
    gram, cross = parts[0].gram, parts[0].cross
    for part in parts[1:]:
        gram, cross = gram + part.gram, cross + part.cross
    return gram, cross
