"""The group structure of known networks, against what the published systems state (no weights
needed)."""

import math
from collections import Counter

import numpy as np
import pytest
from helpers.states import coupling_of

from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.residual.gene_order import (
    Gene,
    eagleeye_order,
    metapruning_genes,
    residual_branches,
)


@pytest.fixture(scope="module")
def resnet50() -> Coupling:
    return coupling_of("resnet50")


@pytest.fixture(scope="module")
def resnet18() -> Coupling:
    return coupling_of("resnet18")


@pytest.fixture(scope="module")
def mobilenet_v2() -> Coupling:
    return coupling_of("mobilenet_v2")


def batch_norms(coupling: Coupling, name: str) -> set[str]:
    """The batch norms whose running mean holds channels of a group."""
    members = coupling.members(coupling.group(name))
    return {
        m.weight.name.removesuffix(".running_mean")
        for m in members
        if m.weight.name.endswith(".running_mean")
    }


def free_genes(coupling: Coupling) -> list[Gene]:
    return [gene for gene in metapruning_genes(coupling) if gene.frozen is None]


# EagleEye (5.1.2): 37 ratios; the stem, then per stage conv1 and conv2 of every block, then the
# stage's residual stream


def test_resnet50_has_eagleeyes_37_groups_in_its_order(resnet50: Coupling) -> None:
    expected = ["conv1"]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        expected += [f"layer{stage}.{block}.conv{i}" for block in range(blocks) for i in (1, 2)]
        expected.append(f"layer{stage}")
    assert len(expected) == 37
    assert [group.name for group in eagleeye_order(resnet50)] == expected


def test_resnet50_streams_are_all_conv3_and_the_projection(resnet50: Coupling) -> None:
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        made = {op.loc.module for op in resnet50.producers(resnet50.group(f"layer{stage}"))}
        assert made == {
            f"layer{stage}.0.downsample.0",
            *(f"layer{stage}.{block}.conv3" for block in range(blocks)),
        }


def test_resnet50_output_is_frozen(resnet50: Coupling) -> None:
    assert [group.name for group in resnet50.groups if group.frozen is not None] == ["fc"]


def test_mobilenet_v1_has_eagleeyes_14_groups() -> None:
    coupling = coupling_of("mobilenet_v1")
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    assert [group.width for group in eagleeye_order(coupling)] == widths
    assert len(free_genes(coupling)) == 13
    assert [gene.width for gene in metapruning_genes(coupling)] == widths


def test_mobilenet_v1_released_strategy_costs_what_is_published() -> None:
    """EagleEye's released 50 % strategy (5.3): 288.950 M of 568.740 M multiply-accumulates."""
    ratios = (
        ".34522834 .25616112 .34354134 .3639849 .35014121 .34809587 .1421153 .28915166 "
        ".30550963 .39298936 "
    )
    ratios += ".32038612 .15806762 .13184949 .39613"
    coupling = coupling_of("mobilenet_v1")
    cost = CostModel(coupling.graph, coupling)
    order = eagleeye_order(coupling)
    widths = [
        g.width - math.floor(float(r) * g.width) for g, r in zip(order, ratios.split(), strict=True)
    ]
    assert widths == [21, 48, 85, 82, 167, 167, 440, 364, 356, 311, 348, 432, 889, 619]
    plan = {group.name: np.arange(width) for group, width in zip(order, widths, strict=True)}
    assert round(float(cost.measure("flops", cost.full)) / 1e6, 3) == 568.740
    assert round(float(cost.measure("flops", cost.widths(plan))) / 1e6, 3) == 288.950


# MetaPruning (1.1.1): 1 stem, 3 stages, 16 insides; the last stage is not pruned


def test_resnet50_genes(resnet50: Coupling) -> None:
    genes = metapruning_genes(resnet50)
    assert [gene.groups for gene in genes[:4]] == [
        ("conv1",),
        ("layer1",),
        ("layer2",),
        ("layer3",),
    ]
    assert [gene.width for gene in genes[:4]] == [64, 256, 512, 1024]
    inside = [
        (f"layer{s}.{b}.conv1", f"layer{s}.{b}.conv2")
        for s, n in enumerate((3, 4, 6, 3), 1)
        for b in range(n)
    ]
    assert [gene.groups for gene in genes[4:20]] == inside
    assert len(free_genes(resnet50)) == 1 + 3 + 16
    assert genes[20:] == [Gene(("layer4",), 2048, "read by the last layer")]


def test_every_group_has_one_gene(resnet50: Coupling) -> None:
    named = Counter(name for gene in metapruning_genes(resnet50) for name in gene.groups)
    assert named == Counter(group.name for group in resnet50.free)
    for gene in metapruning_genes(resnet50):
        assert {resnet50.group(name).width for name in gene.groups} == {gene.width}


def test_mobilenet_v2_1_4_has_8_stages_and_17_insides() -> None:
    genes = metapruning_genes(coupling_of("mobilenet_v2_1_4"))
    free = [gene for gene in genes if gene.frozen is None]
    assert [gene.width for gene in free[:8]] == [44, 22, 33, 44, 88, 132, 224, 448]
    assert len(free) == 25
    assert [gene.width for gene in genes[25:]] == [1280]


def test_resnet18_branches_hold_one_group_each(resnet18: Coupling) -> None:
    assert residual_branches(resnet18) == [
        [f"layer{s}.{b}.conv1"] for s in range(1, 5) for b in (0, 1)
    ]


def test_resnext_branches_are_tied_through_grouped_layers() -> None:
    branches = residual_branches(coupling_of("resnext50_32x4d"))
    assert len(branches) == 16
    assert {len(chain) for chain in branches} == {2}


def test_a_plain_chain_ties_nothing() -> None:
    coupling = coupling_of("vgg11_bn")
    assert residual_branches(coupling) == []
    assert all(len(gene.groups) == 1 for gene in metapruning_genes(coupling))
    assert [gene.frozen is None for gene in metapruning_genes(coupling)][-1] is False


# pns (3.1.5)


def test_resnet18_has_the_four_shortcut_groups(resnet18: Coupling) -> None:
    shared = [batch_norms(resnet18, group.name) for group in resnet18.groups]
    assert [norms for norms in shared if len(norms) > 1] == [
        {"bn1", "layer1.0.bn2", "layer1.1.bn2"},
        *({f"layer{n}.0.bn2", f"layer{n}.0.downsample.1", f"layer{n}.1.bn2"} for n in (2, 3, 4)),
    ]


def test_resnet18_classifier_reads_the_last_stage(resnet18: Coupling) -> None:
    (last,) = [
        group
        for group in resnet18.groups
        if "fc" in {op.loc.module for op in resnet18.consumers(group)}
    ]
    assert "layer4.1.bn2" in batch_norms(resnet18, last.name)


def test_mobilenet_v2_has_five_shortcut_groups(mobilenet_v2: Coupling) -> None:
    shared = [batch_norms(mobilenet_v2, group.name) for group in mobilenet_v2.groups]
    projections = [
        norms
        for norms in shared
        if len(norms) > 1 and all(name.endswith(".conv.3") for name in norms)
    ]
    ranges = ((2, 3), (4, 6), (7, 10), (11, 13), (14, 16))
    assert projections == [
        {f"features.{i}.conv.3" for i in range(first, last + 1)} for first, last in ranges
    ]


def test_mobilenet_v2_has_17_depthwise_pairs(mobilenet_v2: Coupling) -> None:
    shared = [batch_norms(mobilenet_v2, group.name) for group in mobilenet_v2.groups]
    pairs = [{"features.0.1", "features.1.conv.0.1"}]
    pairs += [{f"features.{i}.conv.0.1", f"features.{i}.conv.1.1"} for i in range(2, 18)]
    assert len(pairs) == 17
    assert [norms for norms in shared if norms in pairs] == pairs


@pytest.mark.parametrize("index", [0, 15, 30])
def test_metapruning_widths_are_allowed_for_every_gene(resnet50: Coupling, index: int) -> None:
    plan = {}
    for gene in free_genes(resnet50):
        for name in gene.groups:
            plan[name] = np.arange(math.floor(gene.width * (10 + 3 * index) / 100))
    assert resnet50.kept_units(plan).any()
