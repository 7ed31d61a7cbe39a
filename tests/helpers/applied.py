"""Modules that `Result.apply_` cuts, and how they are compared, for the tests beside this file."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruneopt
from pruneopt.passes.result import Result


def pruned(
    model: nn.Module, *inputs: Tensor, text: str = "uniform{budget=50%FLOPs}", **given: Any
) -> Result:
    graph = pruneopt.capture(model, inputs)
    return pruneopt.PassManager.parse(f"couple,cost,{text},slice,verify").run(graph, **given)


def assert_same(model: nn.Module, result: Result, *inputs: Tensor) -> None:
    """In evaluation mode, at another batch size, the module is the pruned network; its weights are
    those, by name."""
    model.eval()
    rows = [torch.cat([x, x.flip(0)]) for x in inputs]
    with torch.no_grad():
        torch.testing.assert_close(model(*rows), result.module(*rows), rtol=1e-4, atol=1e-5)
    own = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in result.graph.weights.items():
        if name in own:
            torch.testing.assert_close(own[name].detach(), tensor, rtol=0, atol=0)


def snapshot(model: nn.Module, *optimizers: torch.optim.Optimizer) -> list[Any]:
    """Everything that applying could change, by identity and by value."""
    found: list[Any] = []
    for tensor in [*model.parameters(), *model.buffers()]:
        grad = None if tensor.grad is None else tensor.grad.clone()
        found.append(
            (id(tensor), tensor.data_ptr(), tensor.detach().clone(), grad, tensor.requires_grad)
        )
    for module in model.modules():
        found.append(
            [
                (k, v)
                for k, v in vars(module).items()
                if isinstance(v, int | float | tuple | list | str)
            ]
        )
    for optimizer in optimizers:
        found.append([[id(p) for p in group["params"]] for group in optimizer.param_groups])
        for state in optimizer.state.values():
            found.append([(k, v.clone() if isinstance(v, Tensor) else v) for k, v in state.items()])
    return found


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(
            equal(one, other) for one, other in zip(left, right, strict=True)
        )
    return bool(left == right)


class Net(nn.Module):
    """A stem, a residual block with a depthwise and a grouped convolution, group norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.expand = nn.Conv2d(12, 20, 1)
        self.depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.grouped = nn.Conv2d(20, 16, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(4, 16)
        self.back = nn.ConvTranspose2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(self.depthwise(F.relu(self.expand(x))))
        x = x + self.back(self.norm(self.grouped(y)))
        return self.head(x.mean((2, 3)))


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()
