"""HRank: average ranks of feature maps against numpy, on hooks of the plain module, and what the
pass makes of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.workloads import workload_of
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.models.data import load_data
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.result import Result
from pruneopt.passes.selection.hrank import HRank, HRankPass
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train


def low_rank(count: int, channels: int, size: int, ranks: Sequence[int], seed: int = 0) -> Tensor:
    """Random images whose channels have the given ranks in turn."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for number in range(count * channels):
        rank = ranks[number % len(ranks)]
        left, right = (torch.randn(size, rank, generator=generator) for _ in range(2))
        maps.append(left @ right.T)
    return torch.stack(maps).reshape(count, channels, size, size)


def average(maps: Tensor) -> np.ndarray:
    """Average ranks `[C]` of maps `[N, C, H, W]`, by numpy."""
    return np.linalg.matrix_rank(maps.detach().numpy()).mean(0)


def scores_of(
    module: nn.Module, images: Tensor, criterion: HRank, **options: Any
) -> dict[str, np.ndarray]:
    coupling = couple(capture(module.eval(), images[:1]))
    return score_units(
        coupling, coupling.graph.weights, criterion, workload=workload_of(images), **options
    )


# Ranks


def test_maps_of_known_rank() -> None:
    """A 1x1 convolution copies, negates, adds a constant to, or erases an image; behind it nothing
    but the mean."""
    module = nn.Sequential(
        OrderedDict(
            copy=nn.Conv2d(1, 4, 1),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(4, 3),
        )
    )
    with torch.no_grad():
        module.copy.weight.copy_(torch.tensor([1.0, -2.0, 1.0, 0.0]).reshape(4, 1, 1, 1))
        module.copy.bias.copy_(torch.tensor([0.0, 0.0, 0.5, 0.0]))
    images = low_rank(6, 1, 8, ranks=[1, 3, 5])
    scores = scores_of(module, images, HRank(images=6))["copy"]
    assert scores.tolist() == [3.0, 3.0, 4.0, 0.0]


def test_only_so_many_images_count() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    images = low_rank(6, 1, 8, ranks=[1, 3, 5, 5, 5, 5])
    assert scores_of(module, images, HRank(images=2))["0"].tolist() == [2.0] * 3
    assert scores_of(module, images, HRank())["0"].tolist() == [4.0] * 3


# Networks, against hooks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0, self.relu0 = (
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        )
        self.conv1, self.norm1, self.relu1 = (
            nn.Conv2d(6, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
        )
        self.conv2, self.norm2, self.relu2 = (
            nn.Conv2d(5, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu0(self.norm0(self.stem(x)))
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.head(self.relu2(y + x).mean((2, 3)))


class Inverted(nn.Module):
    """MobileNetV2's block: a linear projection, added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0, self.relu0 = (
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
        )
        self.expand, self.norm1, self.relu1 = nn.Conv2d(6, 9, 1), nn.BatchNorm2d(9), nn.ReLU6()
        self.deep, self.norm2, self.relu2 = (
            nn.Conv2d(9, 9, 3, padding=1, groups=9),
            nn.BatchNorm2d(9),
            nn.ReLU6(),
        )
        self.project, self.norm3 = nn.Conv2d(9, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu0(self.norm0(self.stem(x)))
        y = self.relu2(self.norm2(self.deep(self.relu1(self.norm1(self.expand(x))))))
        return self.head((self.norm3(self.project(y)) + x).mean((2, 3)))


class Concat(nn.Module):
    """Branches that are joined; one has no norm, and nothing but the join follows the other's
    convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        self.right = nn.Conv2d(2, 3, 1)
        self.last, self.act = nn.Conv2d(7, 5, 3, stride=2), nn.SiLU()
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.relu(self.left(x)), self.right(x)], 1)
        return self.head(self.act(self.last(x)).mean((2, 3)))


EXPECTED = {
    Residual: {"conv1": ["relu1"], "stem": ["relu0", "relu2"]},
    Inverted: {"expand": ["relu1", "relu2"], "stem": ["relu0", "norm3"]},
    Concat: {"left": ["relu"], "right": ["right"], "last": ["act"]},
}
"""Layer of a group -> the modules whose outputs are the maps of its channels."""


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("leader", [False, True])
def test_against_hooks(kind: type[nn.Module], leader: bool) -> None:
    torch.manual_seed(0)
    module = kind()
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.1 * ("var" in name))
    images = low_rank(9, 2, 8, ranks=[1, 2, 3, 8])
    coupling = couple(capture(module.eval(), images[:1]))
    maps: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        part.register_forward_hook(lambda _, __, output, name=name: maps.__setitem__(name, output))
    module(images)

    scores = score_units(
        coupling, coupling.graph.weights, HRank(), leader=leader, workload=workload_of(images)
    )
    for layer, hooked in EXPECTED[kind].items():
        group = group_of(coupling, layer)
        ranks = [average(maps[name]) for name in (hooked[:1] if leader else hooked)]
        assert scores[group] == pytest.approx(np.mean(ranks, axis=0))
        # Without a norm in front of an activation, maps tend to full rank.
        assert kind is Concat or len(np.unique(scores[group])) > 1


def group_of(coupling: Coupling, layer: str) -> str:
    """The group of the channels that a layer makes."""
    return next(
        g.name for g in coupling.free if any(op.loc.module == layer for op in coupling.producers(g))
    )


def test_batches_make_no_difference() -> None:
    torch.manual_seed(0)
    module, images = Residual(), low_rank(9, 2, 8, ranks=[1, 4])
    coupling = couple(capture(module.eval(), images[:1]))
    found = [
        score_units(
            coupling, coupling.graph.weights, HRank(), workload=workload_of(images), batch_size=size
        )
        for size in (2, 9)
    ]
    for name in found[0]:
        assert (found[0][name] == found[1][name]).all()


def test_a_network_of_fixed_batch() -> None:
    torch.manual_seed(0)
    module, images = Residual(), low_rank(9, 2, 8, ranks=[1, 4])
    free, fixed = (
        couple(capture(module.eval(), images[:4], dynamic_batch=dynamic))
        for dynamic in (True, False)
    )
    # Two whole batches of four.
    few = workload_of(images[:8])
    a, b = (score_units(c, c.graph.weights, HRank(), workload=few) for c in (free, fixed))
    assert all((a[name] == b[name]).all() for name in a)
    with pytest.raises(UserError, match="takes batches of 4, but there are 3 calibration images"):
        score_units(fixed, fixed.graph.weights, HRank(images=3), workload=workload_of(images))


# What has no maps


class Hidden(nn.Module):
    """A hidden linear layer, and a convolution whose maps are single numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 6, 3), nn.AdaptiveAvgPool2d(1)
        self.point = nn.Conv2d(6, 5, 1)
        self.hidden, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.pool(torch.relu(self.conv(x)))).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def test_vectors_are_refused_or_scored_by_norm() -> None:
    torch.manual_seed(0)
    module, images = Hidden(), low_rank(3, 2, 8, ranks=[2])
    with pytest.raises(
        UserError, match=r"group point has no feature map with rows and columns .* use flat=l1"
    ):
        scores_of(module, images, HRank())
    scores = scores_of(module, images, HRank(flat="l1"))
    norms = module.hidden.weight.abs().sum(1).detach().numpy()
    assert scores["hidden"] == pytest.approx(norms)
    assert scores["conv"] == pytest.approx(average(torch.relu(module.conv(images))))


def test_what_loses_nothing_needs_no_map() -> None:
    torch.manual_seed(0)
    module, images = Hidden(), low_rank(3, 2, 8, ranks=[2])
    result = run(module, images, "hrank{ratios=conv:0.5}")
    assert {name: len(kept) for name, kept in (result.plan or {}).items()} == {
        "conv": 3,
        "point": 5,
        "hidden": 8,
    }
    skipping = run(module, images, "hrank{ratios=0.5 skip=point skip=hidden}")
    assert {name: len(kept) for name, kept in (skipping.plan or {}).items()} == {
        "conv": 3,
        "point": 5,
        "hidden": 8,
    }
    with pytest.raises(UserError, match="group hidden has no feature map"):
        run(module, images, "hrank{ratios=0.5 skip=point}")


# The pass


def run(module: nn.Module, images: Tensor, text: str) -> Result:
    steps = parse_pipeline(f"couple,cost,{text},slice,verify")
    return PassManager(steps, verify_ir=True).run(
        capture(module.eval(), images[:1]), workload=workload_of(images)
    )


def test_the_lowest_ranks_go() -> None:
    torch.manual_seed(2)
    module, images = Residual(), low_rank(9, 2, 8, ranks=[1, 2, 3, 8])
    with torch.no_grad():
        module.norm1.bias.copy_(torch.tensor([2.0, -0.8, 0.0, -0.4, -1.2]))
    result = run(module, images, "hrank{ratios=conv1:0.6}")
    ranks = average(
        module.relu1(module.norm1(module.conv1(module.relu0(module.norm0(module.stem(images))))))
    )
    assert len(np.unique(ranks)) == 5
    assert result.plan is not None
    # ceil(0.6 * 5) of them go.
    assert sorted(result.plan["conv1"]) == sorted(np.argsort(-ranks)[:2])
    record = result.records["hrank"]
    assert (record.images, record.removed) == (9, {"conv1": 3})  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def digits() -> tuple[Workload, Graph]:
    """The digits, and a small network trained on them."""
    workload = load_data("digits?subval=300&calibration=400", input_shape=(1, 1, 8, 8))
    torch.manual_seed(0)
    network = DigitsResNet((8, 16, 24))
    train(network, workload, SGD(epochs=5, lr=0.1, batch_size=64))
    return workload, capture(network.eval(), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    "text",
    [
        "hrank{images=40 budget=50%FLOPs budget=60%params}",
        "hrank{images=40 ratios=0.4}",
        "prune{criterion=hrank{images=40} budget=50%FLOPs}",
    ],
)
def test_digits_from_end_to_end(digits: tuple[Workload, Graph], text: str) -> None:
    workload, graph = digits
    steps = parse_pipeline(
        f"couple,cost,{text},slice,verify,finetune{{epochs=3 lr=0.1 batch-size=64}}"
    )
    result = PassManager(steps).run(graph, workload=workload)
    assert result.verification is not None
    assert all(use.share <= 1 for use in result.budgets)
    assert workload.score(result.module, "subval") > 0.6  # by chance 0.1
    if "ratios" in text:
        assert result.plan is not None
        assert result.coupling is not None
        widths = {group.name: group.width for group in result.coupling.free}
        assert all(len(kept) < widths[name] for name, kept in result.plan.items())


def test_refused() -> None:
    with pytest.raises(UserError, match="images=0 must be at least 1"):
        HRankPass(images=0)
    graph = capture(Residual().eval(), torch.zeros(1, 2, 8, 8))
    with pytest.raises(UserError, match=r"hrank.*needs data"):
        PassManager(parse_pipeline("couple,cost,hrank{ratios=0.5}")).run(graph)
    with pytest.raises(UserError, match="nothing to aim at"):
        run(Residual(), low_rank(2, 2, 8, ranks=[2]), "hrank")
    broken = Residual()
    with torch.no_grad():
        broken.conv1.weight.fill_(3e38)  # finite, and the maps are not
    with pytest.raises(UserError, match=r"the feature maps of .* are not finite"):
        run(broken, low_rank(2, 2, 8, ranks=[2]), "hrank{ratios=0.5}")
