"""2:4 sparsity: the masks against a loop over fours, and sparse matrices on a GPU that has them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.manager import PassManager
from pruneopt.passes.result import Result
from pruneopt.passes.selection.prune import L1
from pruneopt.passes.selection.semi_structured import (
    is_two_of_four,
    to_semi_structured,
    two_of_four,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def run(text: str) -> Result:
    torch.manual_seed(0)
    graph = capture(Small().eval(), (torch.randn(2, 1, 6, 6),))
    return PassManager.parse(f"couple,cost,{text},slice,verify").run(graph)


def test_two_of_four_against_every_four_by_hand() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[0, 0, 0, :3] = 1.0
    weight[0, 0, 1, 0] = 1.0  # four equal ones: the first two stay
    mask = two_of_four(weight)
    for row, flags in zip(
        weight.reshape(6, 36).tolist(), mask.reshape(6, 36).tolist(), strict=True
    ):
        for start in range(0, 36, 4):
            four = [abs(value) for value in row[start : start + 4]]
            best = sorted(range(4), key=lambda i: (-four[i], i))[:2]
            assert [i for i in range(4) if flags[start + i]] == sorted(best)
    assert is_two_of_four(weight * mask)
    assert not is_two_of_four(weight)
    with pytest.raises(UserError, match="rows of 9 weights are not made of fours"):
        two_of_four(torch.randn(8, 1, 3, 3))


def test_two_of_four_in_a_network() -> None:
    result = run("l1{granularity=2:4}")
    assert {name: int((~mask).sum()) for name, mask in (result.masks or {}).items()} == {
        "b.weight": 432,
        "head.weight": 24,
    }
    record: Any = result.records["2:4"]
    assert record.masked == ("b", "head")
    assert record.left == ("a: its rows have 9 weights",)
    assert all(is_two_of_four(result.graph.weights[f"{name}.weight"]) for name in ("b", "head"))
    total = sum(p.numel() for p in Small().parameters())
    (use,) = run("l1{granularity=2:4 budget=60%params}").budgets
    assert use.value == total - 456
    with pytest.raises(BudgetError, match="allows"):
        run("l1{granularity=2:4 budget=40%params}")
    with pytest.raises(UserError, match="2:4 sparsity removes half of every layer"):
        L1(granularity="2:4", ratios="0.5")


def test_sparse_matrices_need_a_gpu_that_has_them() -> None:
    with pytest.raises(UserError, match=r"NVIDIA GPU of compute capability 8\.0"):
        to_semi_structured(nn.Linear(64, 64))
    with pytest.raises(UserError, match="float16 and bfloat16, not"):
        to_semi_structured(nn.Linear(64, 64), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparse_matrices_give_what_masks_give(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an NVIDIA GPU of compute capability 8.0 or newer")
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64), nn.Linear(64, 10)
    ).cuda()
    for part in module:
        if isinstance(part, nn.Linear):
            part.weight.data *= two_of_four(part.weight)
    dense = copy.deepcopy(module).to(dtype)
    assert to_semi_structured(module, dtype) == ["0", "2"]
    x = torch.randn(64, 128, device="cuda", dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(module(x), dense(x), atol=2e-2, rtol=2e-2)
    with pytest.raises(UserError, match="no linear layer of this network is 2:4 sparse"):
        to_semi_structured(nn.Linear(64, 64).cuda())
