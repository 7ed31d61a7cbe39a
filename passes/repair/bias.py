"""Repair by bias: what removed channels contributed to a layer on average is added to its outputs
as a constant.

Measured in the original network: every layer that reads removed channels is run once more on these
alone, and the mean of that, per output channel, over images and positions, is what its cut twin
lacks. At the border of a zero-padded convolution removed channels contribute less than inside; the
mean counts every output position once, so the outputs' mean is restored exactly, and a single
position only where the contribution is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneopt.ir.graph import Op
from pruneopt.ir.interpreter import Interpreter
from pruneopt.passes.repair.context import RepairContext
from pruneopt.passes.repair.layers import BiasTarget, Site, add_constant

__all__ = ["BiasShift", "fold_means"]


@dataclass(frozen=True, slots=True)
class BiasShift:
    """A constant that was folded: its root mean square over the output channels, and where it
    went."""

    layer: str
    shift: float
    into: str


@dataclass
class _Mean:
    """A mean per output channel: the sum so far, and over how many outputs."""

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, outputs: Tensor, axis: int) -> None:
        rest = [other for other in range(outputs.dim()) if other != axis]
        self.total = self.total + (outputs.double().sum(rest) if rest else outputs.double())
        self.count += outputs.numel() // outputs.shape[axis]

    @property
    def value(self) -> Tensor:
        return torch.as_tensor(self.total) / self.count


def fold_means(context: RepairContext) -> list[BiasShift]:
    """Fold the mean contribution of removed channels into the layers of ``context.cut``."""
    sites = [site for site in context.sites if context.removed(site.old.value(site.x))]
    means = _measure(context, [site for site in sites if not _is_batched(context, site)])
    targets: dict[BiasTarget, tuple[list[Site], _Mean]] = {}
    for site in means:
        if not bool(means[site].value.any()):
            continue  # depthwise: what reads a removed channel is removed with it
        target = context.bias_target_of(site)
        if isinstance(target, str):
            context.leave(site.name, target)
            continue
        calls, mean = targets.setdefault(target, ([], _Mean()))
        calls.append(site)
        mean.total = mean.total + means[site].total
        mean.count += means[site].count
    folded = []
    for target, (calls, mean) in targets.items():
        add_constant(context.cut, target, mean.value)
        folded.append(
            BiasShift(calls[0].name, float(mean.value.square().mean().sqrt()), target.value.name)
        )
    return folded


def _is_batched(context: RepairContext, site: Site) -> bool:
    values = (site.old.value(site.x), site.old.result)
    batched = any(context.along_batch(value) for value in values)
    if batched:
        context.leave(site.name, "its channels lie along the batch axis")
    return batched


@torch.no_grad()
def _measure(context: RepairContext, sites: list[Site]) -> dict[Site, _Mean]:
    """Return the mean contribution of removed channels to the kept outputs of every layer."""
    means = {site: _Mean() for site in sites}
    of = {site.old: site for site in sites}

    def contribution(op: Op, operands: list[Any], compute: Callable[[], Any]) -> None:
        site = of.get(op)
        if site is None:
            return
        given = list(operands)
        x = given[site.x]
        stays = torch.ones((), dtype=torch.bool, device=x.device)
        for part in context.removed(op.value(site.x)):
            stays = stays & part.to(x.device)
        operands[site.x] = torch.where(stays, torch.zeros((), dtype=x.dtype, device=x.device), x)
        if site.bias is not None and given[site.bias] is not None:
            operands[site.bias] = torch.zeros_like(given[site.bias])
        means[site].add(context.keep(op.result, compute()), site.out_axis)
        operands[:] = given

    network = Interpreter(context.original, contribution)
    for number, inputs in enumerate(context.batches(), 1):
        network.run(context.weights, inputs)
        context.progress("measuring removed channels", number)
    return means
