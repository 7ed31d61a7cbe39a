"""Hypernetworks: which weights of a network are generated, from which widths, and by what.

MetaPruning (Liu et al., ICCV 2019, arXiv 1903.10258, section 3.1 and its released code) gives every
convolution a private perceptron ``Linear(d, h) -> ReLU -> Linear(h, numel)`` that turns the width
scales of the weight's own block into the full-width weight. That is one fully connected layer as
wide as the network has weights, times the hidden size: 774 M parameters for ResNet-50. Two smaller
forms are here as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.residual.hypernet_blocks import layer_places

__all__ = [
    "Chunked",
    "Form",
    "Full",
    "Generated",
    "LowRank",
    "Sizes",
    "generated_weights",
    "hypernetwork",
]

Form = Literal["full", "low-rank", "chunked"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large hypernetworks are.

    Attributes:
        form: what the second layer of a hypernetwork is, see `Full`, `LowRank` and `Chunked`.
        hidden, inverted: the hidden size, and that for inverted residuals.
        rank: of the low-rank form.
        chunk, embedding: of the chunked form: weights that one pass gives, and the size of a
            chunk's embedding.
    """

    form: Form = "full"
    hidden: int = 32
    inverted: int = 64
    rank: int = 8
    chunk: int = 4096
    embedding: int = 64


@dataclass(frozen=True, slots=True)
class Generated:
    """A weight that is generated: its name, shape, the groups whose scales decide it, and the
    hidden size."""

    name: str
    shape: tuple[int, ...]
    groups: tuple[str, ...]
    hidden: int

    @property
    def numel(self) -> int:
        """Elements of the full-width weight."""
        return math.prod(self.shape)


def generated_weights(
    coupling: Coupling, searched: Collection[str], sizes: Sizes = Sizes()
) -> list[Generated]:
    """Return the weights of layers that depend on a searched group, in graph order.

    A layer in a block sees the scales of ``(mid, in, out)``, or ``(in, out)`` of a separable
    convolution, fixed ones included; a layer outside any block those of the searched groups that it
    touches. The layers that make the outputs, and layers whose block has no searched group, keep
    ordinary weights.

    Args:
        searched: the groups whose width varies.
    """
    found: dict[str, Generated] = {}
    for place in layer_places(coupling):
        groups = (
            place.groups
            if place.block
            else tuple(name for name in place.groups if name in searched)
        )
        if place.role == "output" or place.weight.name in found or not set(groups) & set(searched):
            continue
        hidden = sizes.inverted if place.inverted else sizes.hidden
        found[place.weight.name] = Generated(
            place.weight.name, place.weight.type.shape(), groups, hidden
        )
    return list(found.values())


class Full(nn.Module):
    """``Linear(d, h) -> ReLU -> Linear(h, numel)``: scales `[d]` to the full-width weight."""

    def __init__(self, weight: Generated) -> None:
        super().__init__()
        self.shape = weight.shape
        self.first = nn.Linear(len(weight.groups), weight.hidden)
        self.second = nn.Linear(weight.hidden, weight.numel)

    def forward(self, scales: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(scales))).reshape(self.shape)
        return out


class LowRank(nn.Module):
    """``W = U(s) V``: the perceptron gives U `[out, rank]`; V `[rank, rest]` is learned and the
    same for all widths.

    V starts with variance 1 / rank, so that W starts with the variance that `Full` has.
    """

    def __init__(self, weight: Generated, rank: int) -> None:
        super().__init__()
        self.shape = weight.shape
        out, rest = weight.shape[0], weight.numel // weight.shape[0]
        self.rank = min(rank, out, rest)
        self.first = nn.Linear(len(weight.groups), weight.hidden)
        self.second = nn.Linear(weight.hidden, out * self.rank)
        self.basis = nn.Parameter(torch.randn(self.rank, rest) / math.sqrt(self.rank))

    def forward(self, scales: Tensor) -> Tensor:
        left = self.second(torch.relu(self.first(scales))).reshape(-1, self.rank)
        out: Tensor = (left @ self.basis).reshape(self.shape)
        return out


class Chunked(nn.Module):
    """One perceptron for all weights, which emits them in chunks (Ha et al. 2016, arXiv 1609.09106,
    section 3.1).

    Its input is a weight's scales (zeros behind them where there are fewer than the most) and a
    learned embedding of the chunk.
    """

    def __init__(self, weights: Sequence[Generated], chunk: int, embedding: int) -> None:
        super().__init__()
        self.made = tuple(weights)
        self.counts = [-(-weight.numel // chunk) for weight in self.made]
        self.inputs = max(len(weight.groups) for weight in self.made)
        self.embedding = nn.Embedding(sum(self.counts), embedding)
        hidden = max(weight.hidden for weight in self.made)
        self.first = nn.Linear(self.inputs + embedding, hidden)
        self.second = nn.Linear(hidden, chunk)

    def forward(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Return all weights, from the scales `[d]` of each."""
        padded = [nn.functional.pad(own, (0, self.inputs - len(own))) for own in scales]
        rows = torch.cat(
            [own.expand(count, -1) for own, count in zip(padded, self.counts, strict=True)]
        )
        chunks = self.second(
            torch.relu(self.first(torch.cat([rows, self.embedding.weight], dim=1)))
        )
        parts = chunks.split(self.counts)
        pairs = zip(parts, self.made, strict=True)
        return [part.reshape(-1)[: weight.numel].reshape(weight.shape) for part, weight in pairs]


def hypernetwork(weights: Sequence[Generated], sizes: Sizes) -> nn.Module:
    """Return the hypernetworks of all weights: a `Chunked`, or a list of `Full` or `LowRank`, one
    for each weight."""
    if sizes.form == "chunked":
        return Chunked(weights, sizes.chunk, sizes.embedding)
    if sizes.form == "low-rank":
        return nn.ModuleList(LowRank(weight, sizes.rank) for weight in weights)
    return nn.ModuleList(Full(weight) for weight in weights)
