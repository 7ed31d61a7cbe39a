"""Fresh statistics against PyTorch's own batch norm, `update_bn`, and sums over all images, in
float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation.fresh_statistics import (
    Statistics,
    fresh_statistics,
    statistic_norms,
)


class Net(nn.Module):
    """Two stages, a batch norm without scale, a norm over features, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 4, 3, stride=2)
        self.plain = nn.BatchNorm2d(4, affine=False, eps=1e-2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.last = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.drop(torch.relu(self.plain(self.second(x))).mean((2, 3)))
        return self.last(self.head(x))


def network(seed: int = 0) -> tuple[Net, Graph]:
    """Return a network with statistics of its own, in float64, and its graph."""
    torch.manual_seed(seed)
    net = Net().double()
    for norm in (net.norm, net.plain, net.last):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(3)
    return net, capture(net, torch.zeros(2, 2, 7, 7, dtype=torch.float64))


def batches(count: int, size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, 2, 7, 7, generator=generator, dtype=torch.float64) for _ in range(count)
    ]


def norms(net: Net) -> list[Any]:
    return [net.norm, net.plain, net.last]


def trained(net: Net, data: list[Tensor], momentum: float | None, reset: bool) -> dict[str, Tensor]:
    """Return the statistics of PyTorch's own modules after the batches, batch norms alone in
    training mode."""
    net.eval()
    for norm in norms(net):
        norm.train()
        norm.momentum = momentum
        if reset:
            norm.reset_running_stats()
    with torch.no_grad():
        for x in data:
            net(x)
    return dict(net.named_buffers())


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == {name for name in wanted if "running" in name or "tracked" in name}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-12, atol=1e-12)


@given(
    count=st.integers(1, 6),
    momentum=st.none() | st.floats(0.01, 1.0),
    reset=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_as_batch_norm_does(count: int, momentum: float | None, reset: bool, seed: int) -> None:
    net, graph = network(seed)
    data = batches(count, 6, seed)
    averaging = Averaging("mean" if momentum is None else "ema", momentum, reset)
    before = {name: tensor.clone() for name, tensor in graph.weights.items()}
    found = fresh_statistics(graph, graph.weights, data, averaging)
    # The graph shares the module's tensors: look before the module learns.
    assert all(torch.equal(graph.weights[name], tensor) for name, tensor in before.items())
    assert_equal(found, trained(net, data, momentum, reset))


def test_mean_is_update_bn() -> None:
    net, graph = network()
    data = batches(5, 8, 1)
    found = fresh_statistics(graph, graph.weights, data, Averaging("mean"))
    net.drop.p = 0.0  # update_bn trains dropout as well
    torch.optim.swa_utils.update_bn(data, net)
    assert_equal(found, dict(net.named_buffers()))


def test_batches_may_come_in_parts() -> None:
    _, graph = network()
    data = batches(6, 6, 2)
    for averaging in (
        Averaging("ema", 0.3),
        Averaging("mean", reset=False),
        Averaging("mean_biased"),
    ):
        so_far = Statistics()
        fresh_statistics(graph, graph.weights, data[:2], averaging, into=so_far)
        parts = fresh_statistics(graph, graph.weights, data[2:], averaging, into=so_far)
        assert so_far.batches == 6
        whole = fresh_statistics(graph, graph.weights, data, averaging)
        assert parts.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, rtol=0, atol=0)


def test_mean_biased_weighs_batches_by_their_images() -> None:
    net, graph = network()
    data = [*batches(2, 6, 3), *batches(1, 3, 4)]
    found = fresh_statistics(graph, graph.weights, data, Averaging("mean_biased"))
    with torch.no_grad():
        parts = [torch.var_mean(net.first(x), dim=(0, 2, 3), unbiased=False) for x in data]
    share = [6 / 15, 6 / 15, 3 / 15]
    variance = sum(weight * part[0] for weight, part in zip(share, parts, strict=True))
    mean = sum(weight * part[1] for weight, part in zip(share, parts, strict=True))
    torch.testing.assert_close(found["norm.running_mean"], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["norm.running_var"], variance, rtol=1e-12, atol=1e-12)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_population_is_that_of_all_images_together(sizes: list[int], seed: int) -> None:
    """Every layer's input, normalised as in inference by the layers before, over all images in one
    batch."""
    net, graph = network(seed)
    data = [batches(1, size, seed + number)[0] for number, size in enumerate(sizes)]
    if sum(sizes) < 2:
        data.append(batches(1, 2, 77)[0])
    found = fresh_statistics(graph, graph.weights, data, Averaging("population"))
    net.eval()
    everything = torch.cat(data)
    for name, norm in (("norm", net.norm), ("plain", net.plain), ("last", net.last)):
        seen: list[Tensor] = []
        with (
            norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0])),
            torch.no_grad(),
        ):
            net(everything)
        rows = seen[0].movedim(1, 0).flatten(1)
        torch.testing.assert_close(
            found[f"{name}.running_mean"], rows.mean(1), rtol=1e-11, atol=1e-12
        )
        torch.testing.assert_close(
            found[f"{name}.running_var"], rows.var(1, unbiased=False), rtol=1e-11, atol=1e-12
        )
        norm.running_mean.copy_(found[f"{name}.running_mean"])
        norm.running_var.copy_(found[f"{name}.running_var"])


def test_population_depends_neither_on_batches_nor_on_order() -> None:
    _, graph = network()
    data = torch.cat(batches(1, 12, 5))
    one = fresh_statistics(graph, graph.weights, [data], Averaging("population"))
    other = fresh_statistics(
        graph, graph.weights, [*data.flip(0).split(5)], Averaging("population")
    )
    for name in ("norm.running_mean", "last.running_var"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-13)


class Twice(nn.Module):
    """One batch norm in two places, and one in evaluation mode for good."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.BatchNorm2d(2).eval()
        self.frozen.train = lambda mode=True: self.frozen  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.norm(self.layer(self.norm(self.layer(x)))))


def test_a_batch_norm_in_two_places_learns_twice_a_batch() -> None:
    torch.manual_seed(1)
    net = Twice().double()
    graph = capture(net, torch.zeros(2, 2, 7, 7, dtype=torch.float64))
    data = batches(3, 4, 6)
    found = fresh_statistics(graph, graph.weights, data, Averaging("ema", 0.1))
    net.train()
    net.norm.momentum = 0.1
    with torch.no_grad():
        for x in data:
            net(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(
            found[f"norm.{name}"], getattr(net.norm, name), rtol=1e-12, atol=1e-12
        )
    with pytest.raises(UserError, match="applied twice"):
        fresh_statistics(graph, graph.weights, data, Averaging("population"))


def test_dropout_drops_only_in_the_whole_network() -> None:
    _, graph = network()
    data = batches(1, 6, 7)
    plain, again, dropped = (
        fresh_statistics(graph, graph.weights, data, Averaging("mean"), whole=whole)[
            "last.running_var"
        ]
        for whole in (False, False, True)
    )
    assert torch.equal(plain, again)
    assert not torch.equal(plain, dropped)


def test_a_single_value_per_channel_is_refused() -> None:
    _, graph = network()
    with pytest.raises(UserError, match=r"batch of shape \[1, 2, 7, 7\]"):
        fresh_statistics(graph, graph.weights, batches(1, 1, 0), Averaging("mean"))


def test_without_batch_norms_nothing_is_run() -> None:
    graph = capture(nn.Linear(4, 3), torch.zeros(2, 4))

    def never() -> Iterator[Tensor]:
        raise AssertionError
        yield

    assert fresh_statistics(graph, graph.weights, never(), Averaging("mean")) == {}


def test_which_norms_learn() -> None:
    _, graph = network()
    assert [norm.mean.name for norm in statistic_norms(graph).values()] == [
        "norm.running_mean",
        "plain.running_mean",
        "last.running_mean",
    ]
