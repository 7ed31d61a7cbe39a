"""The check of a module cut in place: no difference may hide behind large signals or behind weights
that are zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import UserError

PIPELINE = "couple,cost,prune{ratio=0.5 scope=local},slice,verify"


class GatedAttention(nn.Module):
    """One head whose scale follows the size, with values and gates cut from one projection, behind
    a deep stem."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(nn.Linear(width, width) for _ in range(20)))
        self.q, self.k, self.v = (
            nn.Linear(width, head),
            nn.Linear(width, head),
            nn.Linear(width, 2 * head),
        )
        self.proj = nn.Linear(head, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        v, gate = self.v(x).sigmoid().chunk(2, -1)
        out = F.scaled_dot_product_attention(self.q(x), self.k(x), v)
        return self.proj(out * gate)


def test_a_scale_that_follows_the_size_is_found_behind_a_deep_stem() -> None:
    """Shifting every weight would make signals so large that attention looks at one place at any
    scale."""
    torch.manual_seed(0)
    model, x = GatedAttention(64, 32).eval(), torch.randn(2, 5, 64)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
        model.q.weight *= 4
    result = pruneopt.PassManager.parse(PIPELINE).run(
        pruneopt.capture(model, (x,)), ignore=["stem.*"]
    )
    with pytest.raises(UserError, match=r"has scale=None, where the pruned network has 0\.1767"):
        result.apply_(model)


class Switched(nn.Module):
    """Adds what its code takes for the mean over 16 channels; the branch starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 2)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.a(x) * self.b(x)
        return self.head(x) + self.gain * inner.sum(-1, keepdim=True) / inner.shape[-1]


def test_a_difference_behind_a_branch_that_starts_at_zero_is_found() -> None:
    torch.manual_seed(0)
    model, x = Switched().eval(), torch.randn(2, 6)
    result = pruneopt.PassManager.parse(PIPELINE).run(pruneopt.capture(model, (x,)))
    assert result.module.a.out_features < 16
    with pytest.raises(UserError, match=r"module is as it was before"):
        result.apply_(model)
