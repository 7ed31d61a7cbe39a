"""Ops that pick, write, order or count by number: channels beside the numbered axis are pruned,
those along it stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS = (2, 6, 12)
PLACES = torch.tensor([0, 1, 0, 1, 0, 1])
NUMBERED = "places along channels are numbered"


class Net(nn.Module):
    """Two layers beside each other, a score of each token, a head, and a function of them."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self._forward = forward
        self.a, self.b, self.out = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 5)
        self.score = nn.Linear(12, 1)
        self.register_buffer("table", torch.randn(9, 8))
        self.register_buffer("kinds", torch.arange(8) % 3)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def best(s: Net, x: Tensor, count: int = 2) -> Tensor:
    """The numbers of the tokens with the highest scores."""
    return s.score(x).squeeze(-1).topk(count, 1).indices


def chosen(s: Net, x: Tensor) -> Tensor:
    return s.out(s.a(x).gather(1, best(s, x).unsqueeze(-1).expand(-1, -1, 8)))


def masked_autoencoder(s: Net, x: Tensor) -> Tensor:
    """Some tokens, in an order of the input; the others are one learned token; and all go back to
    their places."""
    order = x.mean(-1).argsort(1)
    y = s.a(x).gather(1, order[:, :3].unsqueeze(-1).repeat(1, 1, 8))
    y = torch.cat([y, s.table[None, :1].repeat(x.shape[0], 3, 1)], 1)
    return s.out(y.gather(1, order.argsort(1).unsqueeze(-1).tile(1, 1, 8)) + s.b(x))


def chosen_twice(s: Net, x: Tensor) -> Tensor:
    """Numbers made from another layer's channels: both layers go together."""
    numbers = (s.b(x).sigmoid() * 5).long()
    return s.out(s.a(x).gather(1, numbers))


def back_to_their_places(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    numbers = best(s, x).unsqueeze(-1).expand(-1, -1, 8)
    return s.out(torch.zeros_like(y).scatter(1, numbers, y.gather(1, numbers).sin()) + y)


def one_replaced(s: Net, x: Tensor) -> Tensor:
    y = s.a(x).clone()
    y[:, 2] = s.b(x)[:, 0]
    return s.out(y)


def some_replaced(s: Net, x: Tensor) -> Tensor:
    y = s.a(x).clone()
    y[:, [0, 3]] = s.b(x)[:, 1:3]
    return s.out(y)


def some_cleared(s: Net, x: Tensor) -> Tensor:
    y = s.a(x).clone()
    y[:, torch.tensor([True, False, True, False, False, True])] = 0.5
    return s.out(y)


def replaced_by_the_input(s: Net, x: Tensor) -> Tensor:
    y = s.a(x).clone()
    y[:, 2] = x[:, 0, :8]
    return s.out(y)


def causal(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    mask = torch.ones(6, 6).tril()
    return s.out((y @ s.b(x).mT).masked_fill(mask == 0, -1e9).softmax(-1) @ y)


FREE: dict[str, tuple[Callable[..., Tensor], dict[str, int]]] = {
    "tokens chosen by score": (chosen, {"a": 8}),
    "tokens chosen for each channel": (chosen_twice, {"a": 8}),
    "tokens taken and put back": (back_to_their_places, {"a": 8}),
    "masked autoencoder": (masked_autoencoder, {"a": 8}),
    "rows of a buffer": (lambda s, x: s.out(s.a(x) + s.table[s.kinds[:6]]), {"a": 8}),
    "take along an axis": (
        lambda s, x: s.out(torch.take_along_dim(s.a(x), best(s, x, 6).unsqueeze(-1), 1)),
        {"a": 8},
    ),
    "summed into places": (
        lambda s, x: s.out(torch.zeros(x.shape[0], 2, 8).index_add(1, PLACES, s.a(x))),
        {"a": 8},
    ),
    "summed into places by scatter": (
        lambda s, x: s.out(
            (y := s.a(x)).scatter_add(1, PLACES[None, :, None].expand(y.shape), s.b(x))
        ),
        {"a": 8},
    ),
    "copied into places": (
        lambda s, x: s.out(s.a(x).index_copy(1, PLACES[:2], s.b(x)[:, :2])),
        {"a": 8},
    ),
    "one token replaced": (one_replaced, {"a": 8}),
    "some tokens replaced": (some_replaced, {"a": 8}),
    "some tokens cleared by a mask": (some_cleared, {"a": 8}),
    "sorted tokens": (lambda s, x: s.out(s.a(x).sort(1).values), {"a": 8}),
    "ranks of tokens": (lambda s, x: s.out(s.a(x) * s.b(x).argsort(1)), {"a": 8}),
    "best tokens": (lambda s, x: s.out(s.a(x).topk(3, 1)[0]), {"a": 8}),
    "median token": (lambda s, x: s.out(s.a(x).median(1).values), {"a": 8}),
    "running maxima": (lambda s, x: s.out(s.a(x).cummax(1).values), {"a": 8}),
    "number of the largest token": (
        lambda s, x: s.out(s.b(x) + s.a(x).argmax(1, keepdim=True)),
        {"a": 8},
    ),
    "a mask made by tril": (causal, {"a": 8}),
    "cut by a negative pad": (
        lambda s, x: s.out(s.a(x) + F.pad(F.pad(s.b(x), (-2, -1)), (1, 2))),
        {"a": 3, "a.2": 5, "b": 3},  # b alone: what is cut off
    ),
    "cut within heads by a negative pad": (
        lambda s, x: s.out(
            F.pad(F.pad(s.a(x).unflatten(-1, (2, 4)), (-1, 0)), (0, 1), value=1.0).flatten(2)
        ),
        {"a": 1, "a.2": 3},
    ),
    "sampled at places": (
        lambda s, x: s.out(
            F.grid_sample(s.a(x).mT[..., None], x[..., None, :2].tanh(), align_corners=False)
            .flatten(2)
            .mT
        ),
        {"a": 8},
    ),
}
FROZEN: dict[str, tuple[Callable[..., Tensor], dict[str, str]]] = {
    "channels chosen": (
        lambda s, x: s.out(s.a(x).gather(2, s.kinds.expand(x.shape[0], 6, 8))),
        {"a": NUMBERED},
    ),
    "channels sorted": (lambda s, x: s.out(s.a(x).sort(-1).values), {"a": NUMBERED}),
    "number of the largest of all": (lambda s, x: s.out(s.a(x) * s.b(x).argmax()), {"b": NUMBERED}),
    "triangle over channels": (lambda s, x: s.out(s.a(x).tril()), {"a": NUMBERED}),
    "summed into channels": (
        lambda s, x: s.out(s.a(x).index_add(2, PLACES, s.b(x)[..., :6])),
        {"a": NUMBERED},
    ),
    "one channel replaced": (
        lambda s, x: s.out(torch.select_scatter(s.a(x), s.b(x)[..., 0], 2, 3)),
        {"a": NUMBERED},
    ),
    "replaced by the input": (
        replaced_by_the_input,
        {"a": "combined with a tensor whose channels cannot be removed"},
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_beside_the_numbered_axis(name: str, prove: Callable[..., Any]) -> None:
    forward, free = FREE[name]
    torch.manual_seed(0)
    coupling = prove(Net(forward), torch.randn(TOKENS))
    assert {group.name: group.width for group in coupling.free} == free
    assert not coupling.unknown


@pytest.mark.parametrize("name", FROZEN)
def test_along_the_numbered_axis(name: str, prove: Callable[..., Any]) -> None:
    forward, reasons = FROZEN[name]
    torch.manual_seed(0)
    coupling = prove(Net(forward), torch.randn(TOKENS))
    found = {group.name: group.frozen or "" for group in coupling.groups}
    assert all(reason in found[name] for name, reason in reasons.items()), found
