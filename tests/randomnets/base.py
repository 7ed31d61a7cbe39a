"""Things that the families of operators share: chance, shapes, steps, and the table of
operators."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

T = TypeVar("T")
MAX_CHANNELS, MAX_POSITIONS = 48, 256
SPATIAL = ("series", "image", "volume")
KINDS = (*SPATIAL, "tokens", "vector")
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Dice(Protocol):
    """A source of chance: hypothesis, which can shrink what it drew, or a seed, which anyone
    can repeat."""

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""

    def flag(self) -> bool:
        """Yes or no."""


class SeededDice:
    """Chance that a seed repeats."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def whole(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def pick(self, items: Sequence[T]) -> T:
        return items[self._random.randrange(len(items))]

    def flag(self) -> bool:
        return self._random.random() < 0.5


class DrawnDice:
    """Chance that hypothesis shrinks."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def whole(self, low: int, high: int) -> int:
        result: int = self._draw(st.integers(low, high))
        return result

    def pick(self, items: Sequence[T]) -> T:
        result: T = self._draw(st.sampled_from(items))
        return result

    def flag(self) -> bool:
        result: bool = self._draw(st.booleans())
        return result


@dataclass(frozen=True)
class Shape:
    """One tensor of the network without its batch axis: images, series and volumes have channels
    first, tokens last."""

    kind: str
    channels: int
    size: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The channel axis, counting the batch."""
        return 2 if self.kind == "tokens" else 1

    @property
    def rank(self) -> int:
        return 2 + len(self.size)

    @property
    def positions(self) -> int:
        return int(torch.Size(self.size).numel())

    def full(self, batch: int) -> tuple[int, ...]:
        """The shape of the tensor."""
        return (
            (batch, *self.size, self.channels)
            if self.kind == "tokens"
            else (batch, self.channels, *self.size)
        )

    def wide(self, channels: int) -> Shape:
        return Shape(self.kind, channels, self.size)

    def sized(self, *size: int) -> Shape:
        return Shape(self.kind, self.channels, size)

    def along(self, vector: Tensor) -> Tensor:
        """A vector over channels, to be combined with the tensor."""
        return vector if self.kind == "tokens" else vector.reshape(-1, *[1] * len(self.size))


@dataclass
class Made:
    """A drawn operator: what it makes, how, out of which modules; ``sized``: its Python spells out
    channel counts or places, so that the same Python is another function at smaller widths;
    ``product``: it contracts activations.
    """

    text: str
    shape: Shape
    run: Callable[..., Any]
    parts: Sequence[nn.Module] = ()
    sized: bool = False
    product: bool = False


class Step(nn.Module):
    """One operator of a network: which earlier tensors it reads, and what it makes of them."""

    def __init__(self, made: Made, sources: Sequence[int]) -> None:
        super().__init__()
        self.made, self.sources = made, list(sources)
        self.parts = nn.ModuleList(made.parts)

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.made.run(*self.parts, *inputs)
        return result

    def __repr__(self) -> str:
        return f"{self.made.text} {self.sources} -> {self.made.shape.full(0)[1:]}"


class Free(nn.Module):
    """A parameter, buffer or constant that belongs to no layer."""

    def __init__(self, *shape: int, scale: float = 1.0, buffer: bool = False) -> None:
        super().__init__()
        tensor = scale * torch.randn(shape)
        if buffer:
            self.register_buffer("weight", tensor)
        else:
            self.weight = nn.Parameter(tensor)


class Held(nn.Module):
    """A constant in a buffer. Torch.export has to take over where a network holds one in no buffer:
    slow, so seldom."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("constant", tensor)


Unary = Callable[[Dice, Shape], Made | None]
Join = Callable[[Dice, Shape, Shape], Made | None]
UNARY: list[tuple[tuple[str, ...], Unary]] = []
JOINS: list[Join] = []


def unary(*kinds: str, times: int = 1) -> Callable[[Unary], Unary]:
    """Register an operator of one tensor of these kinds; ``times`` makes it more likely."""

    def register(function: Unary) -> Unary:
        UNARY.extend([(kinds, function)] * times)
        return function

    return register


def join(function: Join) -> Join:
    """Register an operator of two tensors."""
    JOINS.append(function)
    return function


def divisors(number: int) -> list[int]:
    """The divisors of a number but one and itself."""
    return [d for d in range(2, number) if number % d == 0]


def width(dice: Dice) -> int:
    return dice.pick([4, 6, 8, 8, 12, 16])
