"""How large hypernetworks are: the published parameter counts, the smaller forms, and the memory of
training."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.models import zoo
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.gene_order import metapruning_genes
from pruneopt.passes.search.pruning_net import training as pruning_net_training
from pruneopt.passes.search.pruning_net.generated_weights import META
from pruneopt.passes.search.pruning_net.hypernet import (
    Chunked,
    Full,
    Generated,
    LowRank,
    Sizes,
    generated_weights,
    hypernetwork,
)
from pruneopt.passes.search.pruning_net.memory import Footprint, available_memory
from pruneopt.passes.search.pruning_net.pruning_network import PruningNet, parameter_count
from pruneopt.passes.search.pruning_net.training import Settings, checked_footprint
from pruneopt.passes.search.searchers.space import Space
from pruneopt.passes.training.recipe import SGD, AdamW


@cache
def coupling_of(name: str) -> Coupling:
    if name in zoo.names():
        module, shape = zoo.create(name), zoo.entry(name).input_shape
    else:
        module, shape = torchvision.models.get_model(name, weights=None), (1, 3, 64, 64)
    return couple(capture(module.eval(), torch.randn(shape)))


def searched(coupling: Coupling) -> list[str]:
    """MetaPruning's free groups."""
    return [
        name for gene in metapruning_genes(coupling) if gene.frozen is None for name in gene.groups
    ]


def space_of(coupling: Coupling) -> Space:
    cost = CostModel(coupling.graph, coupling)
    return Space(coupling, cost, [], {}, genes=metapruning_genes(coupling))


# The published networks, weight by weight from the table of the released code


def perceptron(inputs: int, hidden: int, numel: int) -> int:
    """Parameters of ``Linear(inputs, hidden) -> ReLU -> Linear(hidden, numel)`` with biases."""
    return inputs * hidden + hidden + hidden * numel + numel


def mobilenet_v1() -> int:
    widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    total = perceptron(1, 32, 32 * 3 * 9)
    for inp, out in pairwise(widths):
        total += perceptron(2, 32, inp * 9) + perceptron(2, 32, out * inp)
    return total


def mobilenet_v2() -> int:
    stages = ((22, 1), (33, 2), (44, 3), (88, 4), (132, 3), (224, 3), (448, 1))
    total, inp, expansion = perceptron(1, 32, 44 * 3 * 9), 44, 1
    for out, repeats in stages:
        for _ in range(repeats):
            mid = inp * expansion
            total += sum(perceptron(3, 64, numel) for numel in (mid * inp, mid * 9, out * mid))
            inp, expansion = out, 6
    return total + perceptron(1, 32, 1280 * inp)


def resnet50() -> int:
    total, inp = perceptron(1, 32, 64 * 3 * 49), 64
    for mid, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        out = 4 * mid
        for block in range(blocks):
            total += sum(
                perceptron(3, 32, numel) for numel in (mid * inp, mid * mid * 9, out * mid)
            )
            total += perceptron(3, 32, out * inp) if block == 0 else 0
            inp = out
    return total


@pytest.mark.parametrize(
    ("name", "count", "millions", "classifier"),
    [
        ("mobilenet_v1", mobilenet_v1(), 105.1, 1024 * 1000 + 1000),
        ("mobilenet_v2_1_4", mobilenet_v2(), 240.7, 1280 * 1000 + 1000),
        ("resnet50", resnet50(), 774.0, 2048 * 1000 + 1000),
    ],
)
def test_published_counts(name: str, count: int, millions: float, classifier: int) -> None:
    assert round(count / 1e6, 1) == millions
    coupling = coupling_of(name)
    with torch.device("meta"):
        hypernets = hypernetwork(generated_weights(coupling, searched(coupling)), Sizes())
    assert sum(parameter.numel() for parameter in hypernets.parameters()) == count
    assert (
        parameter_count(coupling, searched(coupling), 31, Sizes(), "bank", False)
        == count + classifier
    )


def test_published_memory_of_training() -> None:
    """Weights, gradients and momentum of ResNet-50's PruningNet: 9.3 GB, before activations."""
    coupling = coupling_of("resnet50")
    count = parameter_count(coupling, searched(coupling), 31, Sizes(), "bank", False)
    assert round(Footprint.of(count, META).bytes / 1e9, 1) == 9.3


@pytest.mark.parametrize("norms", ["bank", "recalibrate"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("form", ["full", "low-rank", "chunked"])
def test_the_count_is_that_of_the_network(norms: Any, affine: bool, form: str) -> None:
    coupling = coupling_of("digits_resnet")
    groups, sizes = [group.name for group in coupling.free], Sizes(form)  # type: ignore[arg-type]
    net = PruningNet(
        coupling,
        groups,
        searched(coupling),
        [0.5, 1.0],
        sizes=sizes,
        norms=norms,
        affine=affine,
    )
    wanted = sum(parameter.numel() for parameter in net.parameters())
    assert parameter_count(coupling, searched(coupling), 2, sizes, norms, affine) == wanted


# The forms


WEIGHT = Generated("w", (12, 5, 3, 3), ("a", "b"), 16)


def test_a_full_weight_varies_with_the_scales() -> None:
    torch.manual_seed(0)
    net = Full(WEIGHT)
    a, b = net(torch.tensor([0.1, 1.0])), net(torch.tensor([0.9, 0.4]))
    assert a.shape == (12, 5, 3, 3)
    assert not torch.allclose(a, b)


def test_a_low_rank_weight_has_that_rank_and_as_much_variance() -> None:
    torch.manual_seed(0)
    net = LowRank(WEIGHT, 4)
    made = net(torch.tensor([0.3, 0.7]))
    assert made.shape == (12, 5, 3, 3)
    assert torch.linalg.matrix_rank(made.detach().double().reshape(12, -1), atol=1e-5) == 4
    other = net(torch.tensor([0.9, 0.1]))
    stacked = torch.cat([made, other]).detach().double().reshape(24, -1)
    assert torch.linalg.matrix_rank(stacked, atol=1e-5) == 4, (
        "the right factor is the same for all widths"
    )
    ratio = float(other.detach().std() / Full(WEIGHT)(torch.tensor([0.9, 0.1])).detach().std())
    assert 0.5 < ratio < 2
    assert (
        sum(parameter.numel() for parameter in net.parameters())
        == (2 * 16 + 16) + 17 * 12 * 4 + 4 * 45
    )


def test_low_rank_is_no_more_than_the_weight_has() -> None:
    net = LowRank(Generated("w", (12, 1, 3, 3), ("a",), 8), 64)
    assert net.basis.shape == (9, 9)


def test_chunks_make_up_every_weight() -> None:
    torch.manual_seed(0)
    weights = [WEIGHT, Generated("v", (7, 3), ("a",), 8)]
    net = Chunked(weights, chunk=100, embedding=5)
    scales = [torch.tensor([0.3, 0.7]), torch.tensor([0.5])]
    first, second = net(scales)
    assert (first.shape, second.shape) == ((12, 5, 3, 3), (7, 3))
    rows = net.embedding.weight
    assert len(rows) == math.ceil(540 / 100) + math.ceil(21 / 100)
    # By hand: chunk 2 of the first weight, and the only one of the second, whose missing scale
    # counts as 0.
    for row, scale, wanted in (
        (2, [0.3, 0.7], first.reshape(-1)[200:300]),
        (6, [0.5, 0.0], second.reshape(-1)),
    ):
        hidden = torch.relu(net.first(torch.cat([torch.tensor(scale), rows[row]])))
        torch.testing.assert_close(net.second(hidden)[: len(wanted)], wanted)
    count = 7 * 5 + (7 * 16 + 16) + (16 * 100 + 100)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_hidden_sizes_are_options() -> None:
    coupling = coupling_of("mobilenet_v2_1_4")
    made = generated_weights(coupling, searched(coupling), Sizes(hidden=5, inverted=7))
    assert {weight.hidden for weight in made if weight.name.startswith("blocks.")} == {7}
    assert {weight.hidden for weight in made if not weight.name.startswith("blocks.")} == {5}


# Memory


@pytest.mark.parametrize(
    ("recipe", "copies"),
    [
        (SGD(momentum=0.9), 3),
        (SGD(momentum=0.0), 2),
        (AdamW(), 4),
        (SGD(momentum=0.9, ema=0.99), 4),
    ],
)
def test_memory_counts_what_the_optimiser_holds(recipe: SGD | AdamW, copies: int) -> None:
    """Parameters, gradients, momentum; a mean and a mean square for AdamW; a moving average."""
    assert Footprint.of(1000, recipe).bytes == 4 * 1000 * copies


def test_available_memory_is_plausible() -> None:
    found = available_memory("cpu")
    assert found is None or 2**20 < found < 2**50
    assert available_memory("meta") is None


def test_too_little_memory_is_said_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_net_training, "available_memory", lambda device: 9_000_000_000)
    space = space_of(coupling_of("resnet50"))
    settings = Settings(Sizes(), "bank", False, META)
    with pytest.raises(UserError) as caught:
        checked_footprint(space, settings, "cpu")
    text = str(caught.value)
    assert "9.313 GB" in text
    assert "9 GB are free on cpu" in text
    assert "layer=low-rank (" in text
    assert "layer=chunked (" in text
    checked_footprint(space, Settings(Sizes("low-rank"), "bank", False, META), "cpu")


def test_memory_that_nobody_knows_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning_net_training, "available_memory", lambda device: None)
    settings = Settings(Sizes(), "bank", False, META)
    assert checked_footprint(space_of(coupling_of("digits_resnet")), settings, "cpu").parameters > 0
