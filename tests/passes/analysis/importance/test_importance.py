"""Criteria against slow re-implementations, one unit at a time."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.workloads import noise
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import Criterion, score_units
from pruneopt.passes.options.registry import part_class, part_names


class Net(nn.Module):
    """A residual sum, a depthwise layer, a grouped layer, a flatten and a transposed
    convolution."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.body_bn = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 1)
        self.wide_bn = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.grouped_bn = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.up_bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + F.relu(self.body_bn(self.body(x)))
        x = F.relu(self.grouped_bn(self.grouped(F.relu(self.wide_bn(self.wide(x))))))
        return self.head(F.relu(self.up_bn(self.up(x))).flatten(1))


def made(model: nn.Module) -> tuple[nn.Module, Coupling, dict[str, Tensor]]:
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    graph = capture(model.eval(), (torch.randn(2, 3, 4, 4),))
    return model, couple(graph), graph.weights


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Coupling, dict[str, Tensor]]:
    return made(Net())


# Which filters make up the units, by hand: group -> (layers, axis of the outputs), batch norms.
MADE_BY = {
    "stem": ["stem", "body"],
    "wide": ["wide"],
    "grouped": ["grouped"],
    "up": ["up"],
}
NORMS = {"stem": ["bn", "body_bn"], "wide": ["wide_bn"], "grouped": ["grouped_bn"], "up": ["up_bn"]}


def filters(model: nn.Module, group: str, unit: int, what: str = "weight") -> Iterator[Tensor]:
    for name in MADE_BY[group]:
        layer = model.get_submodule(name)
        tensor = layer.weight.grad if what == "grad" else layer.weight
        assert isinstance(tensor, Tensor)
        yield tensor.detach()[:, unit] if name == "up" else tensor.detach()[unit]


def group_of(coupling: Coupling, layer: str) -> str:
    (found,) = [
        g.name for g in coupling.free if layer in {op.loc.module for op in coupling.producers(g)}
    ]
    return found


def by_hand(model: nn.Module, group: str, unit: int, criterion: str) -> float:
    weights = [w.double() for w in filters(model, group, unit)]
    if criterion == "l1":
        return sum(float(w.abs().sum()) for w in weights)
    if criterion == "l2":
        return sum(float(w.square().sum()) for w in weights) ** 0.5
    if criterion == "bn-scale":
        return sum(
            float(model.get_parameter(f"{name}.weight").detach()[unit].abs())
            for name in NORMS[group]
        )
    total = 0.0
    width = {"stem": 8, "wide": 12, "grouped": 12, "up": 4}[group]
    for other in range(width):
        for mine, theirs in zip(weights, filters(model, group, other), strict=True):
            total += float((mine - theirs.double()).norm())
    return total


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn-scale", "fpgm"])
def test_against_one_unit_at_a_time(
    net: tuple[nn.Module, Coupling, dict[str, Tensor]], criterion: str
) -> None:
    model, coupling, weights = net
    scores = score_units(coupling, weights, criterion)
    assert set(scores) == {group.name for group in coupling.free}
    for group in MADE_BY:
        name = group_of(coupling, group)
        expected = [
            by_hand(model, group, unit, criterion) for unit in range(coupling.group(name).width)
        ]
        np.testing.assert_allclose(scores[name], expected, rtol=1e-6)


def workload() -> Workload:
    return noise(12, 5, size=4)


def test_taylor_against_the_users_own_gradients(
    net: tuple[nn.Module, Coupling, dict[str, Tensor]],
) -> None:
    model, coupling, weights = net
    data = workload()
    scores = score_units(coupling, weights, "taylor{batches=2}", workload=data, batch_size=5)
    expected = {
        group: np.zeros(coupling.group(group_of(coupling, group)).width) for group in MADE_BY
    }
    for inputs, targets in list(data.calibration.batches(5))[:2]:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        for group, row in expected.items():
            for unit in range(len(row)):
                pairs = zip(
                    filters(model, group, unit), filters(model, group, unit, "grad"), strict=True
                )
                row[unit] += sum(float((w * g).abs().sum()) for w, g in pairs) / 2
    for group, row in expected.items():
        np.testing.assert_allclose(scores[group_of(coupling, group)], row, rtol=1e-4)


def test_taylor_uses_all_batches_only_if_asked(
    net: tuple[nn.Module, Coupling, dict[str, Tensor]],
) -> None:
    _, coupling, weights = net
    one = score_units(coupling, weights, "taylor{batches=1}", workload=workload(), batch_size=12)
    many = score_units(coupling, weights, "taylor{batches=9}", workload=workload(), batch_size=12)
    for name, score in one.items():
        np.testing.assert_array_equal(score, many[name])


def test_leader_scores_the_first_producer_only(
    net: tuple[nn.Module, Coupling, dict[str, Tensor]],
) -> None:
    model, coupling, weights = net
    scores = score_units(coupling, weights, "l1", leader=True)
    expected = model.get_parameter("stem.weight").detach().abs().sum((1, 2, 3))
    np.testing.assert_allclose(scores[group_of(coupling, "stem")], expected, rtol=1e-6)
    wide = group_of(coupling, "wide")
    np.testing.assert_allclose(scores[wide], score_units(coupling, weights, "l1")[wide])


def needs_data(name: str) -> bool:
    found = part_class("criterion", name)
    assert issubclass(found, Criterion)
    return found.data


WITHOUT_DATA = [name for name in part_names("criterion") if not needs_data(name)]


@pytest.mark.parametrize("criterion", WITHOUT_DATA)
def test_normalised_scores_have_mean_one(
    net: tuple[nn.Module, Coupling, dict[str, Tensor]], criterion: str
) -> None:
    _, coupling, weights = net
    plain, scaled = (score_units(coupling, weights, criterion, normalise=n) for n in (False, True))
    for name, score in plain.items():
        np.testing.assert_allclose(scaled[name], score / score.mean())
        assert scaled[name].mean() == pytest.approx(1)


def test_random_depends_on_the_seed_only(
    net: tuple[nn.Module, Coupling, dict[str, Tensor]],
) -> None:
    _, coupling, weights = net
    a, b, c = (score_units(coupling, weights, "random", seed=seed) for seed in (1, 1, 2))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert not np.array_equal(a[name], c[name])


def test_a_group_without_norm_has_no_norm_scale() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    graph = capture(Bare().eval(), (torch.randn(2, 3),))
    with pytest.raises(UserError, match="group a has no batch-norm scale"):
        score_units(couple(graph), graph.weights, "bn-scale")


def test_units_of_raw_parameters_are_scored_over_them() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.tensor([[3.0, -1.0, 2.0]]))
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table * x.mean())

    graph = capture(Raw().eval(), (torch.randn(2, 3),))
    scores = score_units(couple(graph), graph.weights, "l1")
    for score in scores.values():
        assert (score > 0).all()


def test_a_shared_weight_counts_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(self.twice(self.twice(x).relu()))

    model = Shared().eval()
    graph = capture(model, (torch.randn(2, 3),))
    (score,) = score_units(couple(graph), graph.weights, "l1").values()
    expected = model.first.weight.detach().abs().sum(1) + model.twice.weight.detach().abs().sum(1)
    np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_mistakes(net: tuple[nn.Module, Coupling, dict[str, Tensor]]) -> None:
    _, coupling, weights = net
    with pytest.raises(UserError, match="no criterion 'L1'"):
        score_units(coupling, weights, "L1")
    with pytest.raises(UserError, match="taylor needs data"):
        score_units(coupling, weights, "taylor")
    with pytest.raises(UserError, match="use at least 1"):
        score_units(coupling, weights, "taylor{batches=0}", workload=workload())
    broken = {
        name: tensor * float("nan") if name == "wide.weight" else tensor
        for name, tensor in weights.items()
    }
    with pytest.raises(UserError, match="the l1 scores of group wide are not finite"):
        score_units(coupling, broken, "l1")
