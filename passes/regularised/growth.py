"""The state machine of GReg (Wang et al., ICLR 2021, arXiv 2012.09243): a penalty that grows until
weights are gone.

Every layer has a penalty per group of weights, which adds ``reg * W`` to the gradient. Every
`interval` iterations, from iteration 0, it grows:

- GReg-1 (early): what goes is picked before training; the penalty on it grows by `grow`.
- GReg-2 (late): the penalty on all groups of a layer grows by `pick_grow` until it is at least
  `pick_ceiling`; then what goes is picked. From the next time on it grows by `grow` on what was
  picked, and is `recover` on the rest.

A layer is finished when its penalty exceeds `ceiling`, or when what stays has become `limit` times
as large as what goes (a moving average; in GReg-1 every layer's must have, in GReg-2 the layer's
own). When all are, the penalties stay as they are for `stabilise` more iterations, and the machine
is done.

All picked groups of a layer have one penalty, which is counted in updates and never added up in
floats: 10,000 times 0.0001 is 1 here. (In single precision it is 1.0000535, and 1,000 times 0.00001
falls short of 0.01.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.selection.prunable import Prunable

__all__ = ["Growth", "LayerGrowth", "Rates"]

Removed = Sequence[Tensor]
"""For every layer, which of its groups go: bool `[count]` on the CPU."""
OLD = 0.9
"""The weight of the old value in the moving average of magnitude ratios."""


@dataclass(frozen=True)
class Rates:
    """The constants of the schedule; penalties are exact decimals. See the module's text."""

    interval: int
    stabilise: int
    pick_grow: Fraction
    grow: Fraction
    recover: Fraction
    pick_ceiling: Fraction
    ceiling: Fraction
    limit: float

    def updates(self, early: bool) -> int:
        """Return how often the penalty grows when no magnitude ratio ends it before."""
        if early:
            return math.floor(self.ceiling / self.grow) + 1
        picks = max(1, math.ceil(self.pick_ceiling / self.pick_grow))
        left = self.ceiling - picks * self.pick_grow
        return picks + (math.floor(left / self.grow) + 1 if left >= 0 else 0)

    def iterations(self, early: bool) -> int:
        """Return how long the machine runs at most: growth and stabilisation."""
        return (self.updates(early) - 1) * self.interval + 1 + self.stabilise

    def fitted(self, iterations: int, early: bool) -> Rates:
        """Return the same schedule in at most so many iterations (beyond the paper): growth and
        stabilisation shrink alike, the penalties grow in larger steps. The interval, the ceilings
        and the recovery value stay.

        Raises:
            UserError: too few iterations for one update of every kind.
        """
        whole = self.iterations(early)
        if iterations >= whole:
            return self
        for share in (iterations * (whole - self.stabilise) // whole, iterations):
            room = max(0, share - 1) // self.interval + 1
            for updates in range(room, 0, -1):
                scale = Fraction(self.updates(early), updates)
                faster = replace(
                    self, pick_grow=self.pick_grow * scale, grow=self.grow * scale, stabilise=0
                )
                if faster.iterations(early) <= share:
                    return replace(
                        faster, stabilise=min(iterations - faster.iterations(early), self.stabilise)
                    )
        raise UserError(
            f"iterations={iterations} is too short: a penalty that grows every {self.interval} "
            "iterations takes at "
            f"least {1 if early else 1 + self.interval}; give more, or a smaller interval"
        )


@dataclass
class LayerGrowth:
    """The progress of one layer.

    Attributes:
        raised, pushed: how often its penalty grew by `pick_grow` and by `grow`.
        removed: the groups that were picked, bool `[count]` on the CPU; None before.
        ratio: the moving average of its magnitude ratio; None without.
        finished: the iteration at which it finished; None before.
    """

    raised: int = 0
    pushed: int = 0
    removed: Tensor | None = None
    ratio: float | None = None
    finished: int | None = None


class Growth:
    """The machine over some layers.

    Args:
        layers: what is penalised. Single weights have no magnitude ratio: that would take too long.
        rates: the constants.
        early: GReg-1; else GReg-2.
        decide: weights by name -> what goes, for every layer.
    """

    def __init__(
        self,
        layers: Sequence[Prunable],
        rates: Rates,
        *,
        early: bool,
        decide: Callable[[Mapping[str, Tensor]], Removed],
    ) -> None:
        self.layers, self.rates, self.early, self._decide = tuple(layers), rates, early, decide
        self.state: Literal["update", "stabilise"] = "update"
        self.since: int | None = None
        """The iteration of the last update."""
        self.of = {layer.name: LayerGrowth() for layer in layers}
        self._penalties: list[tuple[str, Tensor]] | None = None
        self._places: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Pick by the weights as they are before the first iteration (GReg-1)."""
        if self.early:
            self._pick(weights)

    def due(self, iteration: int) -> bool:
        """Return whether `update` has something to do in an iteration, counted from 0."""
        return self.state == "update" and iteration % self.rates.interval == 0

    def update(self, iteration: int, weights: Mapping[str, Tensor]) -> None:
        """Update the penalty between forward and backward of an iteration, counted from 0."""
        if not self.due(iteration):
            return
        growing = [
            (layer, self.of[layer.name])
            for layer in self.layers
            if self.of[layer.name].finished is None
        ]
        # In this order: a penalty that reaches its ceiling picks in the same update, and whether a
        # layer is finished is asked of this update's ratio.
        for _, at in growing:
            if at.removed is None:
                at.raised += 1
            else:
                at.pushed += 1
        if any(
            at.removed is None and self.largest(at) >= self.rates.pick_ceiling for _, at in growing
        ):
            self._pick(weights)
        self._average([(layer, at) for layer, at in growing if at.removed is not None], weights)
        for at in [at for _, at in growing if self._finished(at)]:
            at.finished = iteration
        if all(at.finished is not None for at in self.of.values()):
            self.state, self.since = "stabilise", iteration
        self._penalties = None

    def done(self, iterations: int) -> bool:
        """Return whether all is over after so many iterations; at once where nothing goes."""
        if self.state == "update" or self.since is None:
            return False
        return (
            not any(map(_any, self.of.values())) or iterations > self.since + self.rates.stabilise
        )

    def largest(self, at: LayerGrowth) -> Fraction:
        """Return the largest penalty of a layer; before anything is picked it is that of all its
        groups."""
        return at.raised * self.rates.pick_grow + at.pushed * self.rates.grow

    def values(self, at: LayerGrowth) -> tuple[Fraction, Fraction]:
        """Return the penalties of a layer on what goes and on what stays."""
        if at.removed is None:
            return self.largest(at), self.largest(at)
        if not _any(at):
            return Fraction(0), Fraction(0)
        if self.early:
            return self.largest(at), Fraction(0)
        # In the update that picked, the penalty is still that of all groups.
        return self.largest(at), self.rates.recover if at.pushed else self.largest(at)

    def penalise(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Add ``reg * W`` to the gradients."""
        if self._penalties is None:
            self._penalties = [
                pair for layer in self.layers for pair in self._spread(layer, parameters)
            ]
        for name, penalty in self._penalties:
            parameter = parameters[name]
            if parameter.grad is None:
                parameter.grad = penalty * parameter.detach()
            else:
                parameter.grad.addcmul_(penalty, parameter.detach())

    def _spread(
        self, layer: Prunable, parameters: Mapping[str, torch.nn.Parameter]
    ) -> list[tuple[str, Tensor]]:
        """Return the penalties of a layer in the shapes of its weights, or in shapes that spread to
        them."""
        goes, stays = (float(value) for value in self.values(self.of[layer.name]))
        found = []
        for number, share in enumerate(layer.shares):
            parameter = parameters[share.weight]
            inside, mine = self._members(layer, number, parameter)
            spread = torch.where(
                inside, parameter.new_tensor(goes), parameter.new_tensor(stays)
            ).detach()
            found.append((share.weight, spread if mine is None else spread * mine))
        return found

    def _members(
        self, layer: Prunable, number: int, parameter: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return which elements of a weight go, and which belong to the layer's groups (None: all);
        kept on the device."""
        key = (layer.name, number)
        if key not in self._places:
            share, removed = layer.shares[number], self.of[layer.name].removed
            inside, mine = torch.zeros((), dtype=torch.bool), None
            if share.units is None:
                inside = inside if removed is None else removed.reshape(parameter.shape)
            else:
                units = torch.from_numpy(share.units)
                mine = None if bool((units >= 0).all()) else (units >= 0).to(parameter.device)
                # Number -1 stands for elements of other groups.
                inside = inside if removed is None else torch.cat([removed, inside[None]])[units]
            self._places[key] = (inside.to(parameter.device), mine)
        return self._places[key]

    def _pick(self, weights: Mapping[str, Tensor]) -> None:
        for layer, removed in zip(self.layers, self._decide(weights), strict=True):
            if self.of[layer.name].removed is None:
                self.of[layer.name].removed = removed
        self._penalties, self._places = None, {}

    def _average(
        self, growing: Sequence[tuple[Prunable, LayerGrowth]], weights: Mapping[str, Tensor]
    ) -> None:
        """Take one step of the moving averages."""
        pruned = [(layer, at) for layer, at in growing if layer.group is not None and _any(at)]
        if not pruned:
            return
        # One reading from the device for all layers.
        now = torch.stack([_ratio(layer, at, weights) for layer, at in pruned]).tolist()
        for (_, at), ratio in zip(pruned, now, strict=True):
            at.ratio = ratio if at.ratio is None else OLD * at.ratio + (1 - OLD) * ratio

    def _finished(self, at: LayerGrowth) -> bool:
        if at.removed is None:
            return False
        if not _any(at):
            return True
        looked = [other for other in self.of.values() if _any(other)] if self.early else [at]
        apart = all(other.ratio is not None and other.ratio >= self.rates.limit for other in looked)
        return apart or self.largest(at) > self.rates.ceiling

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {
            "state": self.state,
            "since": self.since,
            "layers": {name: dict(vars(at)) for name, at in self.of.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if state["layers"].keys() != self.of.keys():
            raise InternalError("the state of a growing penalty is that of other layers")
        self.state, self.since = state["state"], state["since"]
        self.of = {name: LayerGrowth(**state["layers"][name]) for name in self.of}
        self._penalties, self._places = None, {}


def _any(at: LayerGrowth) -> bool:
    """Return whether anything was picked in a layer."""
    return at.removed is not None and bool(at.removed.any())


def _ratio(layer: Prunable, at: LayerGrowth, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the mean magnitude of what stays over that of what goes, a float64 number."""
    magnitude = layer.magnitudes(weights)
    assert at.removed is not None
    goes = at.removed.to(magnitude.device)
    return magnitude[~goes].mean() / magnitude[goes].mean()
