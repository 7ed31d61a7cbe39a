"""Batch-norm statistics of a network whose widths vary: one set for every scale of the grid, or one
for all.

MetaPruning (arXiv 1903.10258, released code) keeps one batch norm for every entry of the grid at
every place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import MODE
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.sizes import gather_kept
from pruneopt.passes.analysis.channels.units import Slot
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import has_trait

__all__ = ["NormBank", "Places", "is_norm", "norm_banks"]

Places = tuple[Tensor, Tensor]
"""Which set, and which channel of it, for everything kept; int64 `[kept]` each."""


class NormBank(nn.Module):
    """Running statistics (and scales and shifts) of one batch norm, one set for every entry of the
    grid.

    Channel c takes the set of its own group's scale: ``columns[c]`` is the place of that group in
    the width vector, and -1 always takes the last set.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        names: Mapping[str, str],
        slots: list[Slot],
        columns: np.ndarray,
        sets: int,
        affine: bool,
    ) -> None:
        super().__init__()
        self.names, self.slots, self.columns = dict(names), slots, columns
        self.register_buffer("mean", torch.zeros(sets, len(columns)))
        self.register_buffer("variance", torch.ones(sets, len(columns)))
        self.weight = nn.Parameter(torch.ones(sets, len(columns))) if affine else None
        self.bias = nn.Parameter(torch.zeros(sets, len(columns))) if affine else None

    def places(self, kept: np.ndarray, scales: np.ndarray, grid: np.ndarray) -> Places:
        """Set and channel of everything kept, int64 `[kept]` each, for scales `[G]` out of ``grid``
        `[S]`."""
        if len(self.mean) == 1:
            rows = np.zeros(len(self.columns), dtype=np.int64)
        else:
            nearest = np.abs(grid[None] - scales[:, None]).argmin(axis=1)
            rows = np.append(nearest, len(grid) - 1)[self.columns]
        channels = gather_kept(torch.arange(len(rows)), self.slots, kept)
        return torch.from_numpy(rows)[channels].to(self.mean.device), channels.to(self.mean.device)

    def tensors(self, places: Places) -> Iterator[tuple[str, Tensor]]:
        """Yield what the sliced graph reads here, by its own names."""
        count = len(places[0])
        for leaf, name in self.names.items():
            if leaf in ("mean", "variance"):
                yield name, getattr(self, leaf)[places]
            elif leaf == "counter":
                yield name, torch.zeros((), dtype=torch.int64, device=self.mean.device)
            else:
                own = getattr(self, leaf)
                constant = float(leaf == "weight")
                yield (
                    name,
                    torch.full((count,), constant, device=self.mean.device)
                    if own is None
                    else own[places],
                )

    def keep(self, places: Places, weights: Mapping[str, Tensor]) -> None:
        """Store the statistics that a forward pass in training mode has updated."""
        with torch.no_grad():
            for leaf in ("mean", "variance"):
                getattr(self, leaf)[places] = weights[self.names[leaf]].to(self.mean)


def is_norm(op: Op) -> bool:
    """Return whether an op is a batch norm that learns statistics in training."""
    learns = op.attrs.get("training") == MODE and op.value(3) is not None
    return learns and has_trait(op, Trait.BATCH_NORM)


def norm_banks(
    coupling: Coupling, groups: tuple[str, ...], searched: set[str], sets: int, affine: bool
) -> dict[str, NormBank]:
    """Return the batch norms of a graph by the name of their running mean; one that several ops
    share is one.

    Args:
        groups: all free groups, in the order of width vectors.
        searched: those whose scale picks statistics.
        sets: how many there are of each.
        affine: whether they have scales and shifts.
    """
    found: dict[str, NormBank] = {}
    for op in coupling.graph.ops:
        mean = op.value(3) if is_norm(op) else None
        if mean is not None and mean.name not in found:
            columns = _columns_of(coupling, groups, searched, op, mean)
            names = _leaves(coupling.graph, op)
            found[mean.name] = NormBank(names, coupling.slots_of(mean), columns, sets, affine)
    return found


def _leaves(graph: Graph, op: Op) -> dict[str, str]:
    """Return the names of a batch norm's tensors, by what they are."""
    values = {
        "weight": op.value(1),
        "bias": op.value(2),
        "mean": op.value(3),
        "variance": op.value(4),
    }
    names = {leaf: value.name for leaf, value in values.items() if value is not None}
    counter = names["mean"].removesuffix("running_mean") + "num_batches_tracked"
    return {**names, "counter": counter} if counter in graph.params else names


def _columns_of(
    coupling: Coupling, groups: tuple[str, ...], searched: set[str], op: Op, mean: Value
) -> np.ndarray:
    """Return for every channel the place of the searched group whose scale picks its statistics,
    int64 `[C]`.

    A channel without one takes the first searched group that the layer before reads: MetaPruning's
    MobileNetV2 picks the statistics of its last convolution, which has one width, by the width of
    its input.
    """
    place = {name: number for number, name in enumerate(groups) if name in searched}
    fallback = next((place[name] for name in _read_before(coupling, op) if name in place), -1)
    number_of = [place.get(group.name, fallback) for group in coupling.groups]
    columns = np.full(mean.type.shape()[0], fallback, dtype=np.int64)
    for slot in coupling.slots_of(mean):
        units = slot.units.reshape(-1)
        columns[units >= 0] = np.array(number_of)[coupling.unit_group[units[units >= 0]]]
    return columns


def _read_before(coupling: Coupling, op: Op) -> list[str]:
    """Return the groups that the layer nearest before an op reads."""
    value = op.value(0)
    while value is not None and value.producer is not None:
        maker = value.producer
        layer = layer_weight(maker)
        if layer is not None:
            read = [slot for slot in coupling.slots_of(layer.value) if not layer.makes(slot.axes)]
            numbers = [
                number
                for slot in read
                for number in np.unique(coupling.unit_group[slot.units[slot.units >= 0]])
            ]
            return [coupling.groups[number].name for number in numbers]
        value = maker.value(0)
    return []
