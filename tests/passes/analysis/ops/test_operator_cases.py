"""Every operator that breaks pruners, as a small network: how free it is, and a proof of what
pruning leaves.

``free`` names every free group with its width; ``frozen`` is a part of the reason given for each
frozen group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.operator_cases import IMAGE, Case, check_case
from nets import conv
from nets import later as net
from torch import nn
from torch.nn import functional as F


def head(ins: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(ins, 5, 1)


def c(ins: int, outs: int, kernel: int = 3, **options: Any) -> Callable[[], nn.Module]:
    return lambda: conv(ins, outs, kernel, **options)


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    b, n, h, w = x.shape
    return x.view(b, groups, n // groups, h, w).transpose(1, 2).reshape(b, n, h, w)


def option_a(s: Any, x: torch.Tensor) -> Any:
    x = s.a(x).relu()
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
    return s.out((s.b(x) + short).relu())


def option_a_cat(s: Any, x: torch.Tensor) -> Any:
    x = s.a(x).relu()
    short = x[:, :, ::2, ::2]
    short = torch.cat([short, torch.zeros(short.shape[0], 8, 4, 4)], 1)
    return s.out((s.b(x) + short).relu())


def c2f(s: Any, x: torch.Tensor) -> Any:
    parts = list(s.a(x).chunk(2, 1))
    parts.append(parts[-1] + s.n(s.m(parts[-1]).relu()))
    parts.append(parts[-1] + s.n2(s.m2(parts[-1]).relu()))
    return s.out(torch.cat(parts, 1))


def no_grad_branch(s: Any, x: torch.Tensor) -> Any:
    x = s.a(x).relu()
    with torch.no_grad():
        gate = s.b(x).sigmoid()
    return s.out(x * gate)


def focus(x: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1
    )


JOINS = {
    "concat with itself": Case(
        net(lambda s, x: s.out(torch.cat([y := s.a(x).relu(), y], 1)), a=c(3, 8), out=head(16)),
        {"a": 8},
    ),
    "concat then add": Case(
        net(
            lambda s, x: s.out(torch.cat([s.a(x), s.b(x)], 1) + s.d(x)),
            a=c(3, 8),
            b=c(3, 8),
            d=c(3, 16),
            out=head(16),
        ),
        {"a": 8, "b": 8},
    ),
    "residual and concat of the same tensors": Case(
        net(
            lambda s, x: s.out(torch.cat([(y := s.a(x).relu()) + (z := s.b(y)), y, z], 1)),
            a=c(3, 8),
            b=c(8, 8),
            out=head(24),
        ),
        {"a": 8},
    ),
    "broadcast add": Case(
        net(
            lambda s, x: s.out(s.a(x) + s.b(x).mean((2, 3), keepdim=True)),
            a=c(3, 8),
            b=c(3, 8),
            out=head(8),
        ),
        {"a": 8},
    ),
    "squeeze-excite": Case(
        net(
            lambda s, x: s.out(
                (y := s.a(x)) * s.up(s.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
            ),
            a=c(3, 16),
            down=c(16, 4, 1),
            up=c(4, 16, 1),
            out=head(16),
        ),
        {"a": 16, "down": 4},
    ),
    "max gate": Case(
        net(lambda s, x: s.out(torch.max(s.a(x), s.b(x))), a=c(3, 8), b=c(3, 8), out=head(8)),
        {"a": 8},
    ),
    "shared conv": Case(
        net(lambda s, x: s.out(s.b(s.b(s.a(x).relu()).relu())), a=c(3, 8), b=c(8, 8), out=head(8)),
        {"a": 8},
    ),
    "shared head on two branches": Case(
        net(
            lambda s, x: s.out(s.a(x).relu()) + s.out(s.b(x).sigmoid()),
            a=c(3, 8),
            b=c(3, 8),
            out=head(8),
        ),
        {"a": 8},
    ),
    "broadcast multiply by one channel": Case(
        net(lambda s, x: s.out(s.a(x) * s.b(x).sigmoid()), a=c(3, 8), b=c(3, 1), out=head(8)),
        {"a": 8},
    ),
    "stack and sum": Case(
        net(
            lambda s, x: s.out(torch.stack([s.a(x), s.b(x)]).sum(0)),
            a=c(3, 8),
            b=c(3, 8),
            out=head(8),
        ),
        {"a": 8},
    ),
    "stack along a new channel axis": Case(
        net(
            lambda s, x: s.out(torch.stack([s.a(x), s.b(x)], 2).flatten(1, 2)),
            a=c(3, 8),
            b=c(3, 8),
            out=head(16),
        ),
        {"a": 8},
    ),
    "residual with projection": Case(
        net(
            lambda s, x: s.out(s.b(s.m(y := s.a(x).relu()).relu()) + s.p(y)),
            a=c(3, 8),
            m=c(8, 6),
            b=c(6, 12),
            p=c(8, 12, 1),
            out=head(12),
        ),
        {"a": 8, "m": 6, "b": 12},
    ),
    "features beside the input": Case(
        net(lambda s, x: s.out(torch.cat([x, s.a(x), x], 1)), a=c(3, 8), out=head(14)), {"a": 8}
    ),
    "features beside the input, normalised": Case(
        net(
            lambda s, x: s.out(s.bn(torch.cat([s.a(x), x], 1))),
            a=c(3, 8),
            bn=lambda: nn.BatchNorm2d(11),
            out=head(11),
        ),
        {"a": 8},
    ),
    "padded input channels": Case(
        net(lambda s, x: s.out(s.a(F.pad(x, (0, 0, 0, 0, 0, 5))).relu()), a=c(8, 8), out=head(8)),
        {"a": 8},
    ),
    "zero-padded shortcut": Case(
        net(option_a, a=c(3, 8), b=c(8, 16, stride=2), out=head(16)), {"a": 8, "b": 8}
    ),
    "zero-padded shortcut by concat": Case(
        net(option_a_cat, a=c(3, 8), b=c(8, 16, stride=2), out=head(16)), {"a": 8, "b": 8}
    ),
    "where": Case(
        net(
            lambda s, x: s.out(torch.where(s.a(x) > 0, s.b(x), s.d(x))),
            a=c(3, 8),
            b=c(3, 8),
            d=c(3, 8),
            out=head(8),
        ),
        {"a": 8},
    ),
    "no_grad branch": Case(net(no_grad_branch, a=c(3, 8), b=c(8, 8), out=head(8)), {"a": 8}),
    "detach branch": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * s.b(y.detach()).sigmoid()),
            a=c(3, 8),
            b=c(8, 8),
            out=head(8),
        ),
        {"a": 8},
    ),
    "two inputs": Case(
        net(
            lambda s, x, y: s.out(s.a(x).relu() + s.b(y).relu()), a=c(3, 8), b=c(4, 8), out=head(8)
        ),
        {"a": 8},
        shapes=(IMAGE, (2, 4, 8, 8)),
    ),
}

SPLITS = {
    "chunk then gate": Case(
        net(
            lambda s, x: s.out((p := s.a(x).chunk(2, 1))[0] * p[1].sigmoid()),
            a=c(3, 16),
            out=head(8),
        ),
        {"a": 8},
    ),
    "glu": Case(net(lambda s, x: s.out(F.glu(s.a(x), 1)), a=c(3, 16), out=head(8)), {"a": 8}),
    "maxout": Case(
        net(lambda s, x: s.out(s.a(x).reshape(2, 8, 4, 8, 8).amax(2)), a=c(3, 32), out=head(8)),
        {"a": 8},
        shapes=(IMAGE,),
    ),
    "c2f": Case(
        net(c2f, a=c(3, 16), m=c(8, 6), n=c(6, 8), m2=c(8, 6), n2=c(6, 8), out=head(32)),
        {"a.2": 8, "a": 8, "m": 6, "m2": 6},
    ),
    "first half": Case(
        net(
            lambda s, x: s.out(s.b((y := s.a(x))[:, :16]).relu()) + s.k(y),
            a=c(3, 32),
            b=c(16, 8),
            k=head(32),
            out=head(8),
        ),
        {"a": 16, "a.2": 16, "b": 8},
    ),
    "every second channel": Case(
        net(lambda s, x: s.out((y := s.a(x))[:, ::2] + y[:, 1::2] * 2), a=c(3, 16), out=head(8)),
        {"a": 8},
    ),
    "every second channel and all": Case(
        net(
            lambda s, x: s.out((y := s.a(x))[:, ::2]) + s.k(y), a=c(3, 16), k=head(16), out=head(8)
        ),
        {"a": 8, "a.2": 8},
    ),
    "overlapping slices": Case(
        net(
            lambda s, x: s.out((y := s.a(x))[:, :10].relu()) + s.k(y[:, 6:]),
            a=c(3, 16),
            k=head(10),
            out=head(10),
        ),
        {"a": 6, "a.2": 4, "a.3": 6},
    ),
    "narrow": Case(
        net(
            lambda s, x: s.out((y := s.a(x)).narrow(1, 4, 8)) + s.k(y),
            a=c(3, 16),
            k=head(16),
            out=head(8),
        ),
        {"a": 8, "a.2": 8},
    ),
    "one channel picked out": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * y[:, 3:4].sigmoid() + y[:, 3][:, None]),
            a=c(3, 16),
            out=head(16),
        ),
        {"a": 15},
        {"a.2": "picked out"},
    ),
    "unequal split": Case(
        net(
            lambda s, x: s.out((p := s.a(x).split([4, 12], 1))[1]) + s.k(p[0]),
            a=c(3, 16),
            k=head(4),
            out=head(12),
        ),
        {"a": 4, "a.2": 12},
    ),
    "unbind": Case(
        net(
            lambda s, x: s.out((p := s.a(x).reshape(2, 2, 8, 8, 8).unbind(1))[0] - p[1]),
            a=c(3, 16),
            out=head(8),
        ),
        {"a": 8},
    ),
    "focus": Case(net(lambda s, x: s.out(focus(s.a(x))), a=c(3, 8), out=head(32)), {"a": 8}),
    "pixel shuffle": Case(
        net(lambda s, x: s.out(F.pixel_shuffle(s.a(x), 2)), a=c(3, 32), out=head(8)), {"a": 8}
    ),
    "pixel unshuffle": Case(
        net(lambda s, x: s.out(F.pixel_unshuffle(s.a(x), 2)), a=c(3, 8), out=head(32)), {"a": 8}
    ),
    "repeat_interleave": Case(
        net(lambda s, x: s.out(s.a(x).repeat_interleave(3, 1)), a=c(3, 8), out=head(24)), {"a": 8}
    ),
    "repeat": Case(
        net(lambda s, x: s.out(s.a(x).repeat(1, 3, 1, 1)), a=c(3, 8), out=head(24)), {"a": 8}
    ),
    "expanded gate": Case(
        net(
            lambda s, x: s.out(s.a(x) * s.g(x).expand(-1, 8, -1, -1)),
            a=c(3, 8),
            g=c(3, 1),
            out=head(8),
        ),
        {"a": 8},
    ),
    "expand_as": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * y.mean(1, keepdim=True).expand_as(y)),
            a=c(3, 8),
            out=head(8),
        ),
        {"a": 8},
    ),
    "expanded scale": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) * s.p.view(1, 8, 1, 1).expand_as(y)),
            a=c(3, 8),
            p=lambda: torch.rand(8),
            out=head(8),
        ),
        {"a": 8},
    ),
    "roll along channels": Case(
        net(lambda s, x: s.out(s.a(x).roll(1, 1)), a=c(3, 8), out=head(8)),
        {},
        {"a": "rolled along channels"},
    ),
    "roll along space": Case(
        net(lambda s, x: s.out(s.a(x).roll(1, 2)), a=c(3, 8), out=head(8)), {"a": 8}
    ),
    "flip along channels": Case(
        net(lambda s, x: s.out(s.a(x).flip(1)), a=c(3, 8), out=head(8)), {"a": 8}
    ),
    "flip and add": Case(
        net(lambda s, x: s.out((y := s.a(x)) + y.flip(1)), a=c(3, 8), out=head(8)), {"a": 4}
    ),
    "unfold and fold": Case(
        net(
            lambda s, x: s.out(
                F.fold(s.b(F.unfold(s.a(x), 2, stride=2)).relu(), (8, 8), 2, stride=2)
            ),
            a=c(3, 8),
            b=lambda: nn.Conv1d(32, 24, 1),
            out=head(6),
        ),
        {"a": 8, "b": 6},
    ),
    "windows over channels": Case(
        net(lambda s, x: s.out(s.a(x).unfold(1, 4, 2).sum(-1)), a=c(3, 8), out=head(3)),
        {},
        {"a": "windows"},
    ),
}

RESHAPES = {
    "flatten": Case(
        net(lambda s, x: s.out(s.a(x).relu().flatten(1)), a=c(3, 8), out=lambda: nn.Linear(512, 5)),
        {"a": 8},
    ),
    "flatten after NHWC": Case(
        net(
            lambda s, x: s.out(s.a(x).relu().permute(0, 2, 3, 1).flatten(1)),
            a=c(3, 8),
            out=lambda: nn.Linear(512, 5),
        ),
        {"a": 8},
    ),
    "flatten batch and channels": Case(
        net(
            lambda s, x: s.out(s.m(s.a(x).reshape(-1, 1, 8, 8)).reshape(-1, 8, 8, 8)),
            a=c(3, 8),
            m=c(1, 1),
            out=head(8),
        ),
        {"a": 8},
    ),
    "flatten channels and batch": Case(
        net(
            lambda s, x: s.out(
                s.m(s.a(x).transpose(0, 1).reshape(-1, 1, 8, 8))
                .reshape(8, -1, 8, 8)
                .transpose(0, 1)
            ),
            a=c(3, 8),
            m=c(1, 1),
            out=head(8),
        ),
        {"a": 8},
    ),
    "hard-coded view": Case(
        net(
            lambda s, x: s.out(s.a(x).view(2, 16, 64).softmax(2).view(2, 16, 8, 8)),
            a=c(3, 16),
            out=head(16),
        ),
        {"a": 16},
    ),
    "hard-coded view, any batch": Case(
        net(
            lambda s, x: s.out(s.a(x).view(x.shape[0], 16, -1).softmax(2).view(-1, 16, 8, 8)),
            a=c(3, 16),
            out=head(16),
        ),
        {"a": 16},
    ),
    "view that splits channels": Case(
        net(
            lambda s, x: s.out(s.a(x).view(-1, 4, 8, 8, 8).relu().view(-1, 32, 8, 8)),
            a=c(3, 32),
            out=head(32),
        ),
        {"a": 32},
    ),
    "unflatten": Case(
        net(
            lambda s, x: s.out(s.a(x).unflatten(1, (4, 8)).softmax(3).flatten(1, 2)),
            a=c(3, 32),
            out=head(32),
        ),
        {"a": 32},
    ),
    "squeeze of what may shrink to one": Case(
        net(
            lambda s, x: s.out(s.a(x).mean((2, 3), keepdim=True).squeeze(1).squeeze(3).squeeze()),
            a=c(3, 8),
            out=lambda: nn.Linear(8, 5),
        ),
        {"a": 8},
    ),
    "channel shuffle before dense": Case(
        net(lambda s, x: s.out(shuffle(s.a(x), 2)), a=c(3, 16), out=head(16)), {"a": 8}
    ),
    "channel shuffle between grouped": Case(
        net(
            lambda s, x: s.out(s.b(shuffle(s.a(x), 2))),
            a=c(4, 16, groups=2),
            b=c(16, 8, groups=2),
            out=head(8),
        ),
        {"a": 8, "b": 8},
        shapes=((2, 4, 8, 8),),
    ),
    "channel shuffle before depthwise": Case(
        net(
            lambda s, x: s.out(s.b(shuffle(s.a(x), 4))),
            a=c(4, 16, groups=4),
            b=c(16, 16, groups=16),
            out=head(16),
        ),
        {"a": 4},
        shapes=((2, 4, 8, 8),),
    ),
    "nn.ChannelShuffle": Case(
        net(
            lambda s, x: s.out(s.b(s.m(s.a(x)))),
            a=c(3, 16),
            m=lambda: nn.ChannelShuffle(2),
            b=c(16, 8, groups=2),
            out=head(8),
        ),
        {"a": 8, "b": 8},
    ),
    "slice inside blocks": Case(
        net(
            lambda s, x: s.out(s.a(x).view(-1, 2, 16, 8, 8)[:, :, 4:8].flatten(1, 2)),
            a=c(3, 32),
            out=head(8),
        ),
        {"a": 8, "a.2": 8, "a.3": 16},  # before, in and after the slice
    ),
    "every second inside blocks": Case(
        net(
            lambda s, x: (
                s.out((y := s.a(x).view(-1, 2, 8, 8, 8))[:, :, ::2].flatten(1, 2))
                + s.k(y.flatten(1, 2))
            ),
            a=c(3, 16),
            k=head(16),
            out=head(8),
        ),
        {"a": 4, "a.2": 4},
    ),
    "chunks inside blocks": Case(
        net(
            lambda s, x: s.out(
                (p := s.a(x).view(-1, 2, 8, 8, 8).chunk(2, 2))[0].mul(p[1]).flatten(1, 2)
            ),
            a=c(3, 16),
            out=head(8),
        ),
        {"a": 8},
    ),
    "one channel picked in each block": Case(
        net(
            lambda s, x: s.out((y := s.a(x).view(-1, 2, 8, 8, 8))[:, :, 3]) + s.k(y.flatten(1, 2)),
            a=c(3, 16),
            k=head(16),
            out=head(2),
        ),
        {"a": 7},
        {"a.2": "picked out singly"},
    ),
}

CONVS = {
    "grouped by 4, then by 2": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x).relu())),
            a=c(4, 16, groups=4),
            b=c(16, 8, groups=2),
            out=head(8),
        ),
        {"a": 16, "b": 8},
        shapes=((2, 4, 8, 8),),
    ),
    "grouped, dense, grouped": Case(
        net(
            lambda s, x: s.out(s.d(s.b(s.a(x).relu()).relu())),
            a=c(4, 12, groups=2),
            b=c(12, 24),
            d=c(24, 9, groups=3),
            out=head(9),
        ),
        {"a": 12, "b": 24, "d": 9},
        shapes=((2, 4, 8, 8),),
    ),
    "grouped residual": Case(
        net(
            lambda s, x: s.out((y := s.a(x)) + s.b(y)),
            a=c(3, 16),
            b=c(16, 16, groups=4),
            out=head(16),
        ),
        {"a": 16},
    ),
    "depthwise, multiplier 2": Case(
        net(lambda s, x: s.out(s.b(s.a(x))), a=c(3, 8), b=c(8, 16, groups=8), out=head(16)),
        {"a": 8},
    ),
    "depthwise on the input": Case(
        net(lambda s, x: s.out(s.b(x)), b=c(3, 3, groups=3), out=head(3)),
        {},
        {"b": "only whole blocks"},
    ),
    "depthwise on the input, multiplier 2": Case(
        net(lambda s, x: s.out(s.b(x)), b=c(3, 6, groups=3), out=head(6)), {"b": 6}
    ),
    "transposed": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x))),
            a=c(3, 8),
            b=lambda: nn.ConvTranspose2d(8, 6, 2, 2),
            out=head(6),
        ),
        {"a": 8, "b": 6},
    ),
    "grouped transposed": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x))),
            a=c(3, 8),
            b=lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=2),
            out=head(12),
        ),
        {"a": 8, "b": 12},
    ),
    "depthwise transposed": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x))),
            a=c(3, 8),
            b=lambda: nn.ConvTranspose2d(8, 16, 2, 2, groups=8),
            out=head(16),
        ),
        {"a": 8},
    ),
    "one output": Case(
        net(lambda s, x: s.out(s.a(x) * s.b(x)), a=c(3, 8), b=c(3, 1), out=head(8)), {"a": 8}
    ),
    "returned": Case(net(lambda s, x: s.a(x), a=c(3, 8)), {}, {"a": "output"}),
    "dict and tuple": Case(
        net(
            lambda s, x: {"y": (y := s.a(x)), "z": (s.b(y), [s.out(s.b(y))])},
            a=c(3, 8),
            b=c(8, 6),
            out=head(6),
        ),
        {},
        {"a": "output", "b": "output"},
    ),
    "raw weight": Case(
        net(
            lambda s, x: s.out(F.conv2d(s.a(x), s.w, s.v).relu()),
            a=c(3, 8),
            w=lambda: torch.rand(6, 8, 1, 1),
            v=lambda: torch.rand(6),
            out=head(6),
        ),
        {"a": 8, "w": 6},
    ),
    "one dimension": Case(
        net(
            lambda s, x: s.out(s.b(s.a(x)).relu()),
            a=lambda: nn.Conv1d(3, 8, 3),
            b=lambda: nn.BatchNorm1d(8),
            out=lambda: nn.Conv1d(8, 5, 3),
        ),
        {"a": 8},
        shapes=((2, 3, 16),),
    ),
    "three dimensions": Case(
        net(
            lambda s, x: s.out(F.max_pool3d(s.b(s.a(x)), 2)),
            a=lambda: nn.Conv3d(3, 8, 3, padding=1),
            b=lambda: nn.Conv3d(8, 8, 3, padding=1, groups=8),
            out=lambda: nn.Conv3d(8, 5, 1),
        ),
        {"a": 8},
        shapes=((2, 3, 4, 4, 4),),
    ),
}

CASES = {**JOINS, **SPLITS, **RESHAPES, **CONVS}


@pytest.mark.parametrize("name", CASES)
def test_operator_case(name: str, prove: Callable[..., Any]) -> None:
    check_case(CASES[name], prove)
