"""FLOPs and parameter counts of published structures, matched to the digits printed.

Every width vector is put together from the groups that coupling finds on the plain network, by
group order and the tying rule of the paper; nothing is built small by hand. Sources: MetaPruning
(arXiv 1903.10258) and Rewarded Meta-Pruning (arXiv 2301.11063) with their released logs, GReg
(arXiv 2012.09243), EagleEye (arXiv 2007.02491).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from helpers.states import coupling_of

from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.residual.gene_order import metapruning_genes
from pruneopt.passes.search.searchers.space import Space

FULL = 30
"""The index of the largest scale, 1.00."""


def cost_of(name: str, convention: str, classes: int = 1000) -> CostModel:
    coupling = coupling_of(name, classes)
    return CostModel(coupling.graph, coupling, convention)


def conv_macs(cost: CostModel, widths: np.ndarray) -> float:
    """Millions of MACs of the convolutions alone."""
    return sum(row.flops for row in cost.describe(widths) if row.op.base == "conv2d") / 1e6


def millions(cost: CostModel, unit: str, widths: np.ndarray) -> float:
    return float(cost.measure(unit, widths)) / 1e6


# MetaPruning: from network encoding vectors to width vectors

MBV2_REPEATS = (1, 1, 2, 3, 4, 3, 3, 1)


def vector(cost: CostModel, genes: Sequence[int]) -> np.ndarray:
    """The widths of a network encoding vector, by MetaPruning's genes on its grid."""
    space = Space(cost.coupling, cost, [], {}, genes=metapruning_genes(cost.coupling))
    assert len(genes) == len(space.genes)
    return space.widths_of(np.array(genes))


def mobilenet_v2_genes(outputs: Sequence[int], middles: Sequence[int]) -> list[int]:
    """18 output genes, equal within a stage, and 17 middle genes, as one gene for each stage and
    each middle.

    Coupling gives a stage's outputs one group, as the paper does. Where the pruned widths of two
    stages collide, the released code adds a shortcut across them, which no pruning can make;
    additions are free in this count.
    """
    starts = np.cumsum((0, *MBV2_REPEATS[:-1]))
    assert all(len(set(outputs[i : i + n])) == 1 for i, n in zip(starts, MBV2_REPEATS, strict=True))
    assert len(middles) == 17
    return [*(outputs[i] for i in starts), *middles]


@pytest.mark.parametrize(
    ("genes", "convolutions", "total"),
    [
        ([FULL] * 20, 4087.14, 4111.71),
        (
            [17, 22, 19, 20, 16, 12, 21, 18, 23, 23, 20, 20, 17, 20, 22, 14, 23, 16, 22, 13],
            1955.62,
            1973.21,
        ),
        (
            [23, 17, 16, 17, 16, 16, 18, 20, 18, 25, 11, 29, 22, 18, 13, 27, 17, 23, 23, 20],
            1987.88,
            2004.81,
        ),
        (
            [19, 9, 15, 13, 10, 9, 10, 6, 9, 13, 11, 12, 7, 18, 7, 13, 12, 10, 19, 18],
            1025.51,
            1038.43,
        ),
        # Rewarded Meta-Pruning's winner
        (
            [14, 14, 16, 22, 21, 22, 20, 19, 16, 22, 16, 20, 22, 12, 25, 18, 15, 21, 21, 21],
            None,
            1950.24,
        ),
    ],
)
def test_metapruning_resnet50(genes: list[int], convolutions: float | None, total: float) -> None:
    cost = cost_of("resnet50", "metapruning")
    widths = vector(cost, genes)
    assert round(millions(cost, "flops", widths), 2) == total
    if convolutions is not None:
        assert round(conv_macs(cost, widths), 2) == convolutions


@pytest.mark.parametrize(
    ("scale", "convolutions", "total", "consistent"),
    [
        (1.0, 567.72, 573.83, 573.83),
        (0.75, 324.63, 329.49, 329.22),
        (0.5, 148.99, 152.58, 152.04),
        (0.25, 40.77, 43.11, 42.30),
    ],
)
def test_metapruning_mobilenet_v1_uniform(
    scale: float, convolutions: float, total: float, consistent: float
) -> None:
    """The printed totals take pooling and classifier at 1024 channels whatever the last convolution
    gives.

    In MetaPruning's search space the last block is always full, and these two never change. A
    network whose last convolution is narrower has to have a narrower classifier too, so that it
    costs a little less than printed.
    """
    cost = cost_of("mobilenet_v1", "metapruning")
    widths = (cost.full * scale).astype(int)
    assert round(conv_macs(cost, widths), 2) == convolutions
    assert round(millions(cost, "flops", widths), 2) == consistent
    pooled, classes = 7 * 7, 1000
    missing = (cost.full[-1] - widths[-1]) * (pooled + classes) / 1e6
    assert round(millions(cost, "flops", widths) + missing, 2) == total


def test_mobilenet_v1_published_macs() -> None:
    """569 M counts the classifier; 325, 149 and 41 M of the narrow ones do not: they count
    convolutions only."""
    cost = cost_of("mobilenet_v1", "macs")
    assert round(millions(cost, "flops", cost.full), 2) == 568.74
    narrow = [conv_macs(cost, (cost.full * scale).astype(int)) for scale in (0.75, 0.5, 0.25)]
    assert [round(value) for value in narrow] == [325, 149, 41]


@pytest.mark.parametrize(
    ("genes", "search", "trained"),
    [
        ([28, 18, 10, 23, 23, 22, 22, 13, 17, 28, 17, 25, 29], 316.80, 315.58),
        ([19, 21, 7, 14, 21, 13, 24, 19, 22, 28, 23, 22, 20], 295.61, 295.34),
    ],
)
def test_metapruning_mobilenet_v1_searched(genes: list[int], search: float, trained: float) -> None:
    """The search gives block i gene i; the released final model gives it gene i - 1, and the stem
    the last gene."""
    cost = cost_of("mobilenet_v1", "metapruning")
    widths = vector(cost, genes)
    assert round(millions(cost, "flops", widths), 2) == search
    shifted = vector(cost, [genes[-1], *genes[:-1]])
    assert round(millions(cost, "flops", shifted), 2) == trained


def test_metapruning_mobilenet_v1_widths() -> None:
    cost = cost_of("mobilenet_v1", "metapruning")
    genes = [28, 18, 10, 23, 23, 22, 22, 13, 17, 28, 17, 25, 29]
    widths = vector(cost, genes)
    assert widths.tolist() == [30, 40, 51, 101, 202, 194, 389, 250, 312, 481, 312, 435, 993, 1024]
    shifted = vector(cost, [genes[-1], *genes[:-1]])
    assert shifted.tolist() == [31, 60, 81, 51, 202, 202, 389, 389, 250, 312, 481, 312, 870, 1024]


@pytest.mark.parametrize(
    ("outputs", "middles", "convolutions", "total"),
    [
        ([FULL] * 18, [FULL] * 17, 568.24, 579.30),
        (
            [7, 0, 22, 22, 8, 8, 8, 24, 24, 24, 24, 25, 25, 25, 20, 20, 20, 14],
            [17, 6, 13, 16, 28, 8, 16, 5, 24, 22, 7, 0, 16, 4, 16, 17, 19],
            181.89,
            187.72,
        ),
        (
            [14, 12, 11, 11, 8, 8, 8, 7, 7, 7, 7, 8, 8, 8, 14, 14, 14, 8],
            [6, 5, 2, 15, 7, 17, 14, 5, 11, 12, 12, 11, 6, 16, 14, 13, 14],
            103.59,
            108.40,
        ),
        (
            # Rewarded Meta-Pruning's winner
            [7, 10, 16, 16, 18, 18, 18, 16, 16, 16, 16, 12, 12, 12, 18, 18, 18, 14],
            [17, 11, 12, 24, 15, 12, 19, 25, 24, 14, 16, 10, 8, 21, 24, 21, 21],
            None,
            199.83,
        ),
    ],
)
def test_metapruning_mobilenet_v2(
    outputs: list[int], middles: list[int], convolutions: float | None, total: float
) -> None:
    cost = cost_of("mobilenet_v2_1_4", "metapruning")
    widths = vector(cost, mobilenet_v2_genes(outputs, middles))
    assert round(millions(cost, "flops", widths), 2) == total
    if convolutions is not None:
        assert round(conv_macs(cost, widths), 2) == convolutions


# GReg: ratios per stage; the last convolution of a block, shortcuts and the stem stay


def kept(width: int, ratio: float) -> int:
    """``C - min(ceil(ratio * C), C - 1)``"""
    return width - min(math.ceil(ratio * width), width - 1)


def greg_widths(cost: CostModel, stages: Sequence[float], skip: Sequence[str] = ()) -> np.ndarray:
    """``stages`` are the ratios of the stem, the stages, and the classifier; ``skip`` lists
    prefixes `stage.block`.

    What is pruned are the groups inside a block, whose one producer another convolution of the same
    block reads. Groups of the residual stream have several producers, or readers in other blocks.
    """
    widths = cost.full.copy()
    for i, name in enumerate(cost.groups):
        match = re.fullmatch(r"layer(\d)\.(\d+)\.conv[12]", name)
        readers = cost.coupling.consumers(cost.coupling.group(name))
        inside = match is not None and all(
            op.loc.module.startswith(name.rpartition(".")[0] + ".") for op in readers
        )
        if match and inside and f"{match[1]}.{match[2]}" not in skip:
            widths[i] = kept(int(cost.full[i]), stages[int(match[1])])
    return widths


def speed_up(cost: CostModel, widths: np.ndarray) -> float:
    return float(cost.measure("flops", cost.full)) / float(cost.measure("flops", widths))


def gmacs(cost: CostModel, widths: np.ndarray) -> float:
    """The convention counts two FLOPs for a MAC."""
    return float(cost.measure("flops", widths)) / 2e9


def test_greg_resnet34() -> None:
    cost = cost_of("resnet34", "greg")
    widths = greg_widths(cost, [0, 0.5, 0.6, 0.4, 0, 0], skip=["1.0", "2.0", "2.3", "3.0", "3.5"])
    assert round(speed_up(cost, widths), 3) == 1.317
    assert round(gmacs(cost, widths), 3) == 2.782
    assert round(gmacs(cost, cost.full), 3) == 3.664


@pytest.mark.parametrize(
    ("stages", "speed", "giga", "params"),
    [
        ([0, 0.3, 0.3, 0.3, 0.14, 0], 1.489, 2.746, 19.59),
        ([0, 0.6, 0.6, 0.6, 0.21, 0], 2.308, 1.772, 15.89),
        ([0, 0.74, 0.74, 0.6, 0.21, 0], 2.564, 1.595, 15.74),
        ([0, 0.68, 0.68, 0.68, 0.5, 0], 3.063, 1.335, 11.04),
    ],
)
def test_greg_resnet50(stages: list[float], speed: float, giga: float, params: float) -> None:
    cost = cost_of("resnet50", "greg")
    widths = greg_widths(cost, stages)
    assert round(speed_up(cost, widths), 3) == speed
    assert round(gmacs(cost, widths), 3) == giga
    assert round(millions(cost, "params", widths), 2) == params


def test_greg_resnet50_base() -> None:
    cost = cost_of("resnet50", "greg")
    assert round(gmacs(cost, cost.full), 4) == 4.0892
    assert round(millions(cost, "params", cost.full), 3) == 25.504


@pytest.mark.parametrize(
    ("stages", "speed"),
    [
        ([0, 0.75, 0.75, 0.32, 0], 2.555),
        ([0, 0.5, 0.5, 0.5, 0], 1.993),
        ([0, 0.7, 0.7, 0.7, 0], 3.593),
        ([0, 0.9, 0.9, 0.9, 0], 11.58),
        ([0, 0.95, 0.95, 0.95, 0], 19.85),
    ],
)
def test_greg_resnet56(stages: list[float], speed: float) -> None:
    cost = cost_of("resnet56", "greg", 10)
    digits = 3 if speed < 10 else 2
    assert round(speed_up(cost, greg_widths(cost, stages)), digits) == speed
    assert round(1e3 * gmacs(cost, cost.full), 2) == 125.49


def test_greg_vgg19() -> None:
    """Layers 1 to 15 of 17 (16 convolutions and the classifier) lose 70 %: every group but the
    first."""
    cost = cost_of("vgg19_cifar", "greg", 100)
    widths = np.array([cost.full[0], *(kept(int(width), 0.7) for width in cost.full[1:])])
    assert round(speed_up(cost, widths), 2) == 8.89
    assert round(1e3 * gmacs(cost, cost.full), 2) == 398.18


def test_greg_resnet50_unstructured_sparsity() -> None:
    """82.67 % of the weights are zero when every layer but the stem loses 82.7 % of them.

    Single weights are no channels, so no width vector says this; the layers' sizes in the cost
    table do.
    """
    cost = cost_of("resnet50", "eagleeye")
    sizes = {row.location.module: row.params for row in cost.describe()}
    stem = sizes.pop("conv1")
    zeros = sum(math.ceil(0.827 * size) for size in sizes.values())
    assert round(100 * zeros / (stem + sum(sizes.values())), 2) == 82.67


# EagleEye; its released strategies have a file of their own


def test_eagleeye_full() -> None:
    cost = cost_of("resnet50", "eagleeye")
    assert round(millions(cost, "flops", cost.full) / 1e3, 4) == 4.0892
    assert round(millions(cost, "params", cost.full), 2) == 25.50
    cost = cost_of("resnet56", "eagleeye", 10)
    assert round(millions(cost, "flops", cost.full), 2) == 125.49


def test_eagleeye_resnet50_has_37_ratios() -> None:
    """Stem; then of each stage the inner convolutions block by block, followed by one ratio for the
    outputs.

    Coupling finds the same 37 groups; it lists a stage's outputs where they are first computed, in
    the first block.
    """
    cost = cost_of("resnet50", "eagleeye")
    inner: Mapping[int, int] = {1: 3, 2: 4, 3: 6, 4: 3}
    order = ["conv1"]
    for stage, blocks in inner.items():
        order += [
            f"layer{stage}.{block}.conv{number}" for block in range(blocks) for number in (1, 2)
        ]
        order.append(f"layer{stage}")
    assert len(order) == 37
    assert sorted(order) == sorted(cost.groups)
