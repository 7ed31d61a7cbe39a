"""Habits of users' code that a captured graph may lose: state, branches on sizes and mode, caches,
wrappers, casts. Every habit keeps the shape, and stands behind a drawn step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from randomnets.base import Dice, Shape, Step
from randomnets.network import Network, draw_network

Code = Callable[["Habit", Tensor], Tensor]
HABITS: dict[str, Code] = {}


class Habit(nn.Module):
    """Code with a vector over channels as a parameter and as a buffer, and Python attributes."""

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__()
        self.name, self.shape = name, shape
        self.weight = nn.Parameter(1 + 0.3 * torch.rand(shape.channels))
        self.register_buffer("scale", 1 + 0.3 * torch.rand(shape.channels))
        self.scale: Tensor
        self.calls, self.log, self.cache = 0, [], {}  # type: ignore[var-annotated]
        self.last: Any = None
        if name == "hooked":
            self.register_forward_hook(lambda module, given, result: result * 1.25)
        if name == "hooked before":
            self.register_forward_pre_hook(lambda module, given: (given[0] * 1.25,))

    def forward(self, x: Tensor) -> Tensor:
        return HABITS[self.name](self, x)

    def own(self, vector: Tensor) -> Tensor:
        return self.shape.along(vector)


class Habitual(Step):
    """A step, and a habit behind it."""

    def __init__(self, step: Step, habit: Habit) -> None:
        super().__init__(step.made, step.sources)
        self.habit = habit

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.habit(super().forward(*inputs))
        return result

    def __repr__(self) -> str:
        return f"{super().__repr__()}, then {self.habit.name}"


def habit(function: Code) -> Code:
    """Register a habit under the words of its name."""
    HABITS[function.__name__.replace("_", " ")] = function
    return function


def draw_habits(dice: Dice, most: int = 3) -> Network:
    """A network of a few steps, some of which have habits."""
    model = draw_network(dice, most)
    steps = model.plan.steps
    names = sorted(HABITS)
    for index in {dice.whole(0, len(steps) - 1) for _ in range(dice.whole(1, 2))} if steps else ():
        steps[index] = Habitual(steps[index], Habit(dice.pick(names), steps[index].made.shape))
    return Network(model.plan)


# State


@habit
def multiplied_in_place(s: Habit, x: Tensor) -> Tensor:
    s.scale.mul_(0.9)
    return x * s.own(s.scale)


@habit
def assigned(s: Habit, x: Tensor) -> Tensor:
    s.scale = s.scale * 0.9
    return x * s.own(s.scale)


@habit
def through_data(s: Habit, x: Tensor) -> Tensor:
    s.scale.data.add_(0.1)
    return x * s.own(s.scale)


@habit
def running_mean(s: Habit, x: Tensor) -> Tensor:
    with torch.no_grad():
        s.scale.copy_(0.9 * s.scale + 0.1 * x.mean())
    return x + s.own(s.scale)


@habit
def running_mean_in_training(s: Habit, x: Tensor) -> Tensor:
    if s.training:
        s.scale.lerp_(torch.ones_like(s.scale), 0.1)
    return x + s.own(s.scale)


@habit
def parameter_written(s: Habit, x: Tensor) -> Tensor:
    with torch.no_grad():
        s.weight.mul_(0.9)
    return x * s.own(s.weight)


@habit
def counted(s: Habit, x: Tensor) -> Tensor:
    s.calls += 1
    return x * 2 if s.calls > 3 else x


@habit
def counted_as_a_number(s: Habit, x: Tensor) -> Tensor:
    s.calls += 1
    return x * (1 + 0.1 * s.calls)


@habit
def logged(s: Habit, x: Tensor) -> Tensor:
    s.log.append(x.shape[0])
    return x + len(s.log)


@habit
def compared_with_the_last(s: Habit, x: Tensor) -> Tensor:
    before, s.last = s.last, x.detach()
    return x if before is None or before.shape != x.shape else x + 0.5 * before


@habit
def input_written(s: Habit, x: Tensor) -> Tensor:
    x.mul_(2)
    return x + 1


# Caches


@habit
def cached_by_shape(s: Habit, x: Tensor) -> Tensor:
    key = tuple(x.shape[1:])
    if key not in s.cache:
        s.cache[key] = torch.linspace(1, 2, x.shape[-1], dtype=x.dtype)
    return x * s.cache[key]


@habit
def cached_once(s: Habit, x: Tensor) -> Tensor:
    if s.last is None:
        s.last = torch.arange(x.shape[-1], dtype=x.dtype)
    return x + s.last


@habit
def cached_rows(s: Habit, x: Tensor) -> Tensor:
    if s.last is None or s.last.shape[0] < x.shape[0]:
        s.last = torch.linspace(1, 2, x.shape[0], dtype=x.dtype)
    return x * s.last[: x.shape[0]].reshape(-1, *[1] * (x.dim() - 1))


@habit
def memoised(s: Habit, x: Tensor) -> Tensor:
    return x + _wave(x.shape[-1]).to(x.dtype)


@functools.lru_cache(maxsize=8)
def _wave(size: int) -> Tensor:
    return torch.arange(size).sin()


@habit
def first_values_kept(s: Habit, x: Tensor) -> Tensor:
    if s.last is None:
        s.last = x.detach().mean()
    return x - s.last


# Branches


@habit
def alone(s: Habit, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == 1 else x


@habit
def large_batch(s: Habit, x: Tensor) -> Tensor:
    return x.tanh() if len(x) > 4 else x


@habit
def even_batch(s: Habit, x: Tensor) -> Tensor:
    return x + 1 if x.size(0) % 2 == 0 else x


@habit
def batch_as_a_number(s: Habit, x: Tensor) -> Tensor:
    return x / x.shape[0]


@habit
def batch_of_two(s: Habit, x: Tensor) -> Tensor:
    return -x if x.shape[0] == 2 else x


@habit
def all_numbers(s: Habit, x: Tensor) -> Tensor:
    return x * (x.numel() ** 0.5 / 8)


@habit
def by_width(s: Habit, x: Tensor) -> Tensor:
    return x * 2 if x.shape[-1] > 5 else x + 1


@habit
def by_mode(s: Habit, x: Tensor) -> Tensor:
    return x + torch.randn_like(x) if s.training else x.relu()


@habit
def by_gradient(s: Habit, x: Tensor) -> Tensor:
    return x * 1.5 if torch.is_grad_enabled() and x.requires_grad else x


@habit
def by_values(s: Habit, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


@habit
def by_a_value_read(s: Habit, x: Tensor) -> Tensor:
    return x * max(0.5, x.abs().max().item())


@habit
def by_a_weight(s: Habit, x: Tensor) -> Tensor:
    return x * 2 if s.scale.sum() > 0 else x


@habit
def chosen_by_rows(s: Habit, x: Tensor) -> Tensor:
    return torch.stack([row * (1 + 0.1 * number) for number, row in enumerate(x)])


@habit
def tried(s: Habit, x: Tensor) -> Tensor:
    try:
        return x + torch.ones(2, *x.shape[1:], dtype=x.dtype)
    except RuntimeError:
        return x


# Wrappers


@habit
def hooked(s: Habit, x: Tensor) -> Tensor:
    return x * s.own(s.weight)


@habit
def hooked_before(s: Habit, x: Tensor) -> Tensor:
    return x * s.own(s.weight)


@habit
def without_gradient(s: Habit, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * s.own(s.weight)
    return x + y


@habit
def checkpointed(s: Habit, x: Tensor) -> Tensor:
    result: Tensor = checkpoint.checkpoint(lambda y: y * s.own(s.weight), x, use_reentrant=False)
    return result


@habit
def by_a_partial(s: Habit, x: Tensor) -> Tensor:
    return functools.partial(torch.add, alpha=0.5)(x, s.own(s.weight))


@habit
def detached(s: Habit, x: Tensor) -> Tensor:
    return x - x.detach().mean(-1, keepdim=True)


# Casts


@habit
def through_float(s: Habit, x: Tensor) -> Tensor:
    return (x.float() * s.own(s.weight).float()).to(x.dtype)


@habit
def through_half(s: Habit, x: Tensor) -> Tensor:
    return x + x.clamp(-1, 1).to(torch.bfloat16).to(x.dtype)


@habit
def as_a_weight(s: Habit, x: Tensor) -> Tensor:
    return x.to(s.weight.dtype) * s.own(s.weight).type_as(x)


@habit
def truth_as_numbers(s: Habit, x: Tensor) -> Tensor:
    return x * (x > 0).to(x.dtype) + (x < 0).double()


@habit
def default_type(s: Habit, x: Tensor) -> Tensor:
    return x + torch.ones(x.shape[-1]) * torch.zeros(1, dtype=x.dtype)
