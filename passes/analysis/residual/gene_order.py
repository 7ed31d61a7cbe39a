"""Structure that searches of published systems tie widths by, read from the channel groups alone.

MetaPruning gives one width to every residual stage and one to the inside of every bottleneck;
EagleEye lists its ratios in the order in which the groups are complete. Both follow from which
layers produce and consume a group; no network is named here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.groups import Coupling, Group

__all__ = [
    "Gene",
    "Structure",
    "eagleeye_order",
    "is_depthwise",
    "metapruning_genes",
    "output_layers",
    "residual_branches",
]


@dataclass(frozen=True, slots=True)
class Gene:
    """Groups that share one width; ``width`` is the full width of each. ``frozen`` says why it is
    not searched."""

    groups: tuple[str, ...]
    width: int
    frozen: str | None = None


class Structure:
    """Which layers make a group's channels and which read them; depthwise layers, which do both,
    count as neither."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.made: dict[str, list[Op]] = {}
        self.read: dict[str, list[Op]] = {}
        self.deep: dict[str, bool] = {}
        self.output_of: dict[Op, list[str]] = {}
        for group in coupling.groups:
            made = coupling.producers(group)
            depthwise = {op for op in made if is_depthwise(op)}
            self.made[group.name] = [op for op in made if op not in depthwise]
            self.read[group.name] = [op for op in coupling.consumers(group) if op not in depthwise]
            self.deep[group.name] = bool(depthwise)
            for op in self.made[group.name]:
                self.output_of.setdefault(op, []).append(group.name)

    def internal(self, name: str) -> bool:
        """Whether one layer alone makes the group: it is not summed with anything."""
        return len(self.made[name]) == 1 and self.coupling.group(name).frozen is None

    def next(self, name: str) -> str | None:
        """The group that the only reader of a group makes, if there is one such reader and
        group."""
        readers = self.read[name]
        made = self.output_of.get(readers[0], []) if len(readers) == 1 else []
        return made[0] if len(made) == 1 and made[0] != name else None


def is_depthwise(op: Op) -> bool:
    """Whether a convolution reads exactly one channel for each that it makes."""
    weight = op.value(1)
    groups = op.attrs.get("groups", 1)
    return (
        weight is not None
        and isinstance(groups, int)
        and groups > 1
        and groups == weight.type.shape()[0]
    )


def residual_branches(coupling: Coupling) -> list[list[str]]:
    """The insides of residual branches, in graph order: groups that one layer makes and one layer
    reads, chained up to the layer that makes a sum.

    Neighbours A, B in a chain are tied to one width (MetaPruning's rule): A's only reader makes B,
    neither is summed, and they are equally wide. ResNet-50 has 16 of two groups each, ResNet-18
    eight of one.
    """
    structure = Structure(coupling)
    chains: list[list[str]] = []
    inside: set[str] = set()
    for group in reversed(coupling.free):
        after = structure.next(group.name)
        if after is None or not structure.internal(group.name):
            continue
        if len(structure.made[after]) > 1:
            chains.append([group.name])
            inside.add(group.name)
        elif after in inside and coupling.group(after).width == group.width:
            next(chain for chain in chains if chain[0] == after).insert(0, group.name)
            inside.add(group.name)
    return chains[::-1]


def metapruning_genes(coupling: Coupling) -> list[Gene]:
    """The genes of MetaPruning's network encoding: first the widths of stems and stages, then those
    inside blocks.

    A block's inside is a residual branch or the expansion around a depthwise layer. The group that
    the last layer reads is frozen and comes last; the output has no gene. ResNet-50: 1 + 3 + 16
    free genes.
    """
    structure = Structure(coupling)
    last = _read_by_output(coupling, structure)
    branches = residual_branches(coupling)
    tied = {name: tuple(chain) for chain in branches for name in chain}
    outer: list[Gene] = []
    inner: dict[tuple[str, ...], Gene] = {}
    for group in coupling.free:
        names = tied.get(group.name, (group.name,))
        frozen = "read by the last layer" if group.name in last else None
        gene = Gene(names, group.width, frozen)
        if group.name in tied or structure.deep[group.name]:
            inner.setdefault(names, gene)
        else:
            outer.append(gene)
    genes = [*outer, *inner.values()]
    return sorted(genes, key=lambda gene: gene.frozen is not None)


def output_layers(coupling: Coupling, structure: Structure) -> set[Op]:
    """The layers that make the channels of the network's outputs."""
    outputs: set[str] = set()
    for value in coupling.graph.output_values:
        for slot in coupling.slots_of(value):
            numbers = np.unique(coupling.unit_group[slot.units[slot.units >= 0]])
            outputs.update(coupling.groups[number].name for number in numbers)
    return {op for name in outputs for op in structure.made[name]}


def _read_by_output(coupling: Coupling, structure: Structure) -> set[str]:
    """The groups that the layers which make the network's outputs read."""
    makers = output_layers(coupling, structure)
    return {name for name, readers in structure.read.items() if makers & set(readers)}


def eagleeye_order(coupling: Coupling) -> list[Group]:
    """The free groups in the order of EagleEye's ratio vectors: by the last layer that makes each
    group's channels.

    For ResNet-50: the stem, then per stage conv1 and conv2 of every block, then the stage's
    residual stream.
    """
    place = {op: number for number, op in enumerate(coupling.graph.ops)}
    structure = Structure(coupling)
    return sorted(
        coupling.free,
        key=lambda group: max((place[op] for op in structure.made[group.name]), default=-1),
    )
