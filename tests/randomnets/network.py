"""A network of drawn steps: inputs, a growing list of tensors, outputs in some structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from randomnets import (  # noqa: F401  the families register their operators
    attention,
    channels,
    conversions,
    convolutions,
    functional,
    gates,
    normalisation,
    pointwise,
    rare,
    recurrent,
    resampling,
    tokens,
)
from randomnets import joins as _joins  # noqa: F401
from randomnets.base import CONV, JOINS, MAX_CHANNELS, MAX_POSITIONS, UNARY, Dice, Made, Shape, Step

INPUTS = {
    "image": Shape("image", 3, (8, 8)),
    "series": Shape("series", 4, (12,)),
    "volume": Shape("volume", 2, (2, 4, 4)),
    "tokens": Shape("tokens", 6, (6,)),
    "vector": Shape("vector", 5, ()),
    "words": Shape("tokens", 8, (5,)),
}
VOCABULARY = 11


@dataclass
class Plan:
    """The steps of a network, so that steps can be left out when a failure is made smaller."""

    inputs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    steps: list[Step]
    structure: str
    heads: tuple[int, ...]
    frozen: bool


class Network(nn.Module):
    """Steps over a growing list of tensors; some of the last ones go to heads, and out."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        if "words" in plan.inputs:
            self.words = nn.Embedding(VOCABULARY, INPUTS["words"].channels)
        self.steps = nn.ModuleList(plan.steps)
        self.heads = nn.ModuleList(_head(plan.shapes[index]) for index in plan.heads)

    def forward(self, *inputs: Tensor) -> Any:
        pool = [
            self.words(x) if name == "words" else x
            for name, x in zip(self.plan.inputs, inputs, strict=True)
        ]
        for step in self.steps:
            pool.append(step(*(pool[source] for source in step.sources)))
        results = [
            head(pool[index]) for head, index in zip(self.heads, self.plan.heads, strict=True)
        ]
        if self.plan.structure == "dict":
            return {"out": results[0], "all": results[1:], "twice": (results[0].relu(), 3)}
        if self.plan.structure == "tuple":
            return (*results, pool[self.plan.heads[0]])
        if self.plan.structure == "words" and "words" in self.plan.inputs:
            tied = pool[self.plan.inputs.index("words")]
            return results[0].mean(), tied @ self.words.weight.t()
        return results[0] if len(results) == 1 else results

    def examples(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Random inputs."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(0, VOCABULARY, (batch, INPUTS[name].size[0]), generator=generator)
            if name == "words"
            else torch.randn(INPUTS[name].full(batch), generator=generator, dtype=torch.float64)
            for name in self.plan.inputs
        )

    def __repr__(self) -> str:
        first = len(self.plan.inputs)
        steps = "".join(f"\n    {first + i}: {step!r}" for i, step in enumerate(self.plan.steps))
        return (
            f"inputs {self.plan.inputs}{steps}\n    heads {self.plan.heads} as "
            f"{self.plan.structure}"
        )


def _head(shape: Shape) -> nn.Module:
    if shape.kind in ("tokens", "vector"):
        return nn.Linear(shape.channels, 3)
    return CONV[len(shape.size)](shape.channels, 3, 1)


def draw_network(dice: Dice, most: int = 8) -> Network:
    """A network of up to ``most`` steps. The same dice give the same network, weights included."""
    torch.manual_seed(dice.whole(0, 99))
    inputs = dice.pick(
        [
            ("image",),
            ("image",),
            ("image",),
            ("tokens",),
            ("words",),
            ("series",),
            ("volume",),
            ("image", "vector"),
            ("image", "words"),
            ("tokens", "image"),
            ("words", "vector"),
            ("vector",),
        ]
    )
    shapes = [INPUTS[name] for name in inputs]
    steps: list[Step] = []
    for _ in range(dice.whole(2, most)):
        step = (
            _again(dice, steps, shapes, len(inputs))
            if steps and dice.whole(0, 7) == 7
            else _step(dice, shapes)
        )
        if step is not None:
            steps.append(step)
            shapes.append(step.made.shape)
    heads = [len(shapes) - 1]
    if dice.whole(0, 2) == 0:
        heads.append(dice.whole(len(inputs), len(shapes) - 1) if steps else 0)
    structure = dice.pick(["plain", "plain", "plain", "dict", "tuple", "words"])
    if structure == "words" and "words" in inputs:
        heads = heads[:1]  # a second one would be read by nobody
    return Network(_alive(Plan(inputs, tuple(shapes), steps, structure, tuple(heads), dice.flag())))


def _alive(plan: Plan) -> Plan:
    """Without the steps that no output reads: they are in no graph, but the drawn Python would run
    them."""
    first, read = len(plan.inputs), set(plan.heads)
    for place in range(len(plan.shapes) - 1, first - 1, -1):
        if place in read:
            read.update(plan.steps[place - first].sources)
    places = [place for place in range(len(plan.shapes)) if place < first or place in read]
    new = {place: index for index, place in enumerate(places)}
    steps = [
        Step(
            plan.steps[place - first].made,
            [new[source] for source in plan.steps[place - first].sources],
        )
        for place in places[first:]
    ]
    shapes = tuple(plan.shapes[place] for place in places)
    return replace(plan, shapes=shapes, steps=steps, heads=tuple(new[head] for head in plan.heads))


def _step(dice: Dice, shapes: Sequence[Shape]) -> Step | None:
    last = len(shapes) - 1
    source = dice.pick([last, last, last, dice.whole(0, last)])
    if last > 0 and dice.whole(0, 3) == 0:
        return _join(dice, shapes, source)
    kind = shapes[source].kind
    return _fits(
        dice.pick([make for kinds, make in UNARY if kind in kinds])(dice, shapes[source]), [source]
    )


def _join(dice: Dice, shapes: Sequence[Shape], source: int) -> Step | None:
    """A pair that fits some operator: the partner is drawn first among tensors of the same
    shape."""
    alike = [i for i, shape in enumerate(shapes) if shape == shapes[source] and i != source]
    other = dice.pick(alike) if alike and dice.flag() else dice.whole(0, len(shapes) - 1)
    return _fits(dice.pick(JOINS)(dice, shapes[source], shapes[other]), [source, other])


def _fits(made: Made | None, sources: list[int]) -> Step | None:
    if made is None or made.shape.channels > MAX_CHANNELS or made.shape.positions > MAX_POSITIONS:
        return None
    return Step(made, sources)


def _again(dice: Dice, steps: Sequence[Step], shapes: Sequence[Shape], first: int) -> Step | None:
    """A step whose modules serve once more, for another tensor of the same shape."""
    step = dice.pick(steps)
    wanted = [shapes[source] for source in step.sources]
    places = [[i for i, shape in enumerate(shapes) if shape == want] for want in wanted]
    return Step(step.made, [dice.pick(place) for place in places])


def without(network: Network, index: int) -> Network | None:
    """The network without one step, if what reads the step can read its source instead; with the
    same modules."""
    plan, first = network.plan, len(network.plan.inputs)
    step, place = plan.steps[index], first + index
    twins = [i for i in range(place) if plan.shapes[i] == plan.shapes[place]]
    readers = [s for s in plan.steps if place in s.sources]
    if (readers or place in plan.heads) and not twins:
        return None
    instead = twins[-1] if twins else 0
    if step.sources and step.sources[0] in twins:
        instead = step.sources[0]

    def moved(source: int) -> int:
        source = instead if source == place else source
        return source - (source > place)

    steps = [
        Step(s.made, [moved(source) for source in s.sources]) for s in plan.steps if s is not step
    ]
    shapes = tuple(shape for i, shape in enumerate(plan.shapes) if i != place)
    heads = tuple(moved(head) for head in plan.heads)
    return Network(_alive(Plan(plan.inputs, shapes, steps, plan.structure, heads, plan.frozen)))


def upto(network: Network, count: int) -> Network:
    """The first steps of a network, with one head on the last of them."""
    plan, first = network.plan, len(network.plan.inputs)
    shapes = plan.shapes[: first + count]
    return Network(
        _alive(
            Plan(plan.inputs, shapes, plan.steps[:count], "plain", (len(shapes) - 1,), plan.frozen)
        )
    )
