"""Layers as GReg speaks of them: sets of weight groups of which some are pruned.

The groups are filters (rows of the layers that make a channel), channels (columns of the layers
that read it) or single weights. With the scope ``internal``, as in the paper, only channels inside
residual branches and single-branch chains are pruned: those that one layer makes, which are summed
with nothing. With ``coupled`` every channel group is one layer in this sense, over all its members.
Only weights of convolutions and linear layers count; norms and biases do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.groups import Coupling, groups_in
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.residual.stage_numbers import StagedLayer, StagedLayers
from pruneopt.passes.analysis.residual.structure import ResidualStructure

__all__ = ["Granularity", "Prunable", "Reach", "Share", "prunable_groups", "prunable_weights"]

Granularity = Literal["filter", "channel", "weight"]
Reach = Literal["internal", "coupled"]


@dataclass(frozen=True, eq=False)
class Share:
    """The part of one weight that belongs to the groups of a layer.

    ``units`` has the weight's number of axes, of size 1 where it does not vary, and holds the
    number of the group or -1; None: every element is a group of its own.
    """

    weight: str
    units: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Prunable:
    """A layer in GReg's sense.

    Attributes:
        name: of the layer, or of the channel group where several layers share it.
        group: the channel group; None for single weights.
        count: how many groups of weights it has.
        blocks: the ranks that must keep equal numbers.
        shares: its weights.
        places: the layers whose ratios apply.
    """

    name: str
    group: str | None
    count: int
    blocks: tuple[np.ndarray, ...]
    shares: tuple[Share, ...]
    places: tuple[StagedLayer, ...]

    def magnitudes(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the mean absolute weight of groups, float64 `[count]`, on the weights' device."""
        first = self.shares[0]
        if first.units is None:
            return weights[first.weight].detach().double().abs().reshape(-1)
        total = torch.zeros(self.count, dtype=torch.float64, device=weights[first.weight].device)
        number = torch.zeros_like(total)
        for share in self.shares:
            assert share.units is not None
            tensor = weights[share.weight].detach()
            units = torch.from_numpy(share.units.reshape(-1)).to(tensor.device)
            mine = units >= 0
            each = tensor.numel() / share.units.size
            total.index_add_(0, units[mine], _sums(tensor, share.units)[mine])
            number.index_add_(0, units[mine], torch.full_like(total[units[mine]], each))
        return total / number


def _sums(tensor: Tensor, units: np.ndarray) -> Tensor:
    """Return the absolute values summed over axes along which units do not vary, float64, flat."""
    axes = [axis for axis, size in enumerate(units.shape) if size == 1]
    magnitude = tensor.abs().double()
    return (magnitude.sum(axes) if axes else magnitude).reshape(-1)


def prunable_weights(places: StagedLayers) -> tuple[Prunable, ...]:
    """Return every convolution and linear layer with its single weights."""
    found = []
    for place in places.layers:
        count = int(np.prod(place.weight.type.shape()))
        share = Share(place.weight.name, None)
        found.append(Prunable(place.module, None, count, (np.arange(count),), (share,), (place,)))
    return tuple(found)


def prunable_groups(
    coupling: Coupling,
    places: StagedLayers,
    granularity: Literal["filter", "channel"],
    reach: Reach,
) -> tuple[Prunable, ...]:
    """Return the channel groups to prune by filters or channels, in the order of their layers."""
    structure = ResidualStructure(coupling)
    found = []
    for group in coupling.free:
        ops = _layers_of(structure, group.name, granularity, reach, places)
        shares = [share for op in ops for share in _shares(coupling, group.name, op, granularity)]
        known = [place for place in (places.of(op) for op in ops) if place is not None]
        # What makes queries and keys is read by no weight: such units have no weights to score or
        # to penalise.
        if known and _covered(shares, group.width):
            name = known[0].module if reach == "internal" else group.name
            ruling = tuple(dict.fromkeys(known)) if reach == "coupled" else (known[0],)
            found.append(
                Prunable(name, group.name, group.width, group.blocks, tuple(shares), ruling)
            )
    return tuple(sorted(found, key=lambda item: item.places[0].index))


def _covered(shares: list[Share], count: int) -> bool:
    """Return whether every group of weights has some."""
    ranks = [share.units.reshape(-1) for share in shares if share.units is not None]
    return len(np.intersect1d(np.arange(count), np.concatenate(ranks))) == count if ranks else False


def _layers_of(
    structure: ResidualStructure,
    group: str,
    granularity: Literal["filter", "channel"],
    reach: Reach,
    places: StagedLayers,
) -> list[Op]:
    """Return the layers whose weights belong to a group's channels; none where it is not pruned."""
    coupling = structure.coupling
    whole = coupling.group(group)
    ops = coupling.producers(whole) if granularity == "filter" else coupling.consumers(whole)
    if reach == "coupled":
        return ops
    makers, readers = structure.made[group], structure.read[group]
    # Part of a layer's output: the rest of it is summed with something, or padded.
    alone = structure.internal(group) and structure.output_of[makers[0]] == (group,)
    if not alone or (granularity == "channel" and len(readers) != 1):
        return []
    # The layer that gives its name and ratio comes first; depthwise layers go along.
    first = makers if granularity == "filter" else readers
    return [*first, *(op for op in ops if op not in first)]


def _shares(
    coupling: Coupling, group: str, op: Op, granularity: Literal["filter", "channel"]
) -> list[Share]:
    """Return a layer's weights along the axis on which it makes, or reads, a group's channels."""
    layer = layer_weight(op)
    if layer is None or layer.value.kind != "param" or layer.in_axis is None:
        return []
    number = coupling.groups.index(coupling.group(group))
    slots = [
        slot
        for slot in coupling.slots_of(layer.value)
        if layer.makes(slot.axes) == (granularity == "filter")
    ]
    found = []
    for slot in slots:
        if number in groups_in(slot, coupling.unit_group):
            mine = (slot.units >= 0) & (coupling.unit_group[slot.units] == number)
            found.append(
                Share(layer.value.name, np.where(mine, coupling.unit_rank[slot.units], -1))
            )
    return found
