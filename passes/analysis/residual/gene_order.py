"""The genes of published searches: which groups share a width, and in which order they are listed.

MetaPruning gives one width to every residual stage and one to the inside of every bottleneck;
EagleEye lists its ratios in the order in which the groups are complete.
"""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.passes.analysis.channels.groups import Coupling, Group
from pruneopt.passes.analysis.residual.structure import ResidualStructure

__all__ = ["Gene", "eagleeye_order", "metapruning_genes", "residual_branches"]


@dataclass(frozen=True, slots=True)
class Gene:
    """Groups that share one width; ``width`` is the full width of each. ``frozen`` says why it is
    not searched."""

    groups: tuple[str, ...]
    width: int
    frozen: str | None = None


def residual_branches(coupling: Coupling) -> list[list[str]]:
    """Return the groups inside every residual branch; see `ResidualStructure.chains`."""
    return ResidualStructure(coupling).chains()


def metapruning_genes(coupling: Coupling) -> list[Gene]:
    """Return the genes of MetaPruning's network encoding: first the widths of stems and stages,
    then those inside blocks.

    A block's inside is a residual branch or the expansion around a depthwise layer. The group that
    the last layer reads is frozen and comes last; the output has no gene. ResNet-50: 1 + 3 + 16
    free genes.
    """
    structure = ResidualStructure(coupling)
    output_layers = structure.output_layers()
    tied = {name: tuple(chain) for chain in structure.chains() for name in chain}
    outer: list[Gene] = []
    inner: dict[tuple[str, ...], Gene] = {}
    for group in coupling.free:
        names = tied.get(group.name, (group.name,))
        last = not output_layers.isdisjoint(structure.read[group.name])
        gene = Gene(names, group.width, "read by the last layer" if last else None)
        if group.name in tied or structure.deep[group.name]:
            inner.setdefault(names, gene)
        else:
            outer.append(gene)
    genes = [*outer, *inner.values()]
    return sorted(genes, key=lambda gene: gene.frozen is not None)


def eagleeye_order(coupling: Coupling) -> list[Group]:
    """Return the free groups in the order of EagleEye's ratio vectors: by the last layer that makes
    each group's channels.

    For ResNet-50: the stem, then per stage conv1 and conv2 of every block, then the stage's
    residual stream.
    """
    structure = ResidualStructure(coupling)
    order = structure.flow.order
    return sorted(
        coupling.free,
        key=lambda group: max((order[op] for op in structure.made[group.name]), default=-1),
    )
