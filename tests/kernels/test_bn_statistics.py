"""Closed forms against what torch's modules do, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.kernels.bn_statistics import (
    Averaging,
    BatchWeights,
    batch_statistics,
    combine,
    ema_weights,
    mean_weights,
)

CHANNELS = 3
counts = st.integers(1, 12)
seeds = st.integers(0, 10_000)


def batches(n: int, seed: int) -> list[Tensor]:
    """Batches of different sizes, off centre."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 6, (n,), generator=generator).tolist()
    return [
        torch.randn(s, CHANNELS, 2, 3, generator=generator, dtype=torch.float64) * 3 + 5
        for s in sizes
    ]


def norm(momentum: float | None, seed: int = 0) -> nn.BatchNorm2d:
    """A batch norm with a past."""
    module = nn.BatchNorm2d(CHANNELS, momentum=momentum).double().train()
    with torch.no_grad():
        for x in batches(4, seed + 1):
            module(x)
    return module


def start(module: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert module.running_mean is not None
    assert module.running_var is not None
    return module.running_mean.clone(), module.running_var.clone()


def run(module: nn.BatchNorm2d, data: list[Tensor], weights: BatchWeights) -> None:
    """The module over the data gives what the weights give."""
    initial = start(module)
    with torch.no_grad():
        for x in data:
            module(x)
    statistics = [batch_statistics(x) for x in data]
    means, variances = (torch.stack(items) for items in zip(*statistics, strict=True))
    found = combine(means, variances, weights, initial)
    for mine, theirs in zip(found, start(module), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@given(n=counts, momentum=st.floats(0.01, 1.0), seed=seeds)
@settings(max_examples=40)
def test_moving_average_from_the_old_statistics(n: int, momentum: float, seed: int) -> None:
    run(norm(momentum, seed), batches(n, seed), ema_weights(n, momentum, reset=False))


@given(n=counts, momentum=st.floats(0.01, 1.0), seed=seeds)
@settings(max_examples=40)
def test_moving_average_after_a_reset(n: int, momentum: float, seed: int) -> None:
    module = norm(momentum, seed)
    module.reset_running_stats()
    run(module, batches(n, seed), ema_weights(n, momentum, reset=True))


@given(n=counts, seed=seeds)
@settings(max_examples=40)
def test_mean_goes_on_from_the_batches_seen(n: int, seed: int) -> None:
    run(norm(None, seed), batches(n, seed), mean_weights(n, reset=False, seen=4))


@given(n=counts, seed=seeds)
@settings(max_examples=40)
def test_mean_is_update_bn(n: int, seed: int) -> None:
    module, data = norm(0.1, seed), batches(n, seed)
    statistics = [batch_statistics(x) for x in data]
    means, variances = (torch.stack(items) for items in zip(*statistics, strict=True))
    found = combine(means, variances, mean_weights(n))
    torch.optim.swa_utils.update_bn(data, nn.Sequential(module))
    for mine, theirs in zip(found, start(module), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@given(
    n=st.integers(0, 50), momentum=st.floats(0.01, 1.0), reset=st.booleans(), seen=st.integers(0, 9)
)
def test_weights_add_up_to_one(n: int, momentum: float, reset: bool, seen: int) -> None:
    for weights in (ema_weights(n, momentum, reset), mean_weights(n, reset, seen)):
        assert float(weights.batches.sum()) + weights.old + weights.fresh == pytest.approx(1.0)
        assert (weights.fresh if not reset else weights.old) == 0


def test_a_momentum_of_a_tenth_counts_like_nineteen_batches() -> None:
    assert ema_weights(1000, 0.1, reset=True).effective == pytest.approx(19, abs=0.01)
    assert ema_weights(102, 0.1, reset=False).effective == pytest.approx(19, abs=0.01)
    assert mean_weights(30).effective == pytest.approx(30)
    assert ema_weights(0, 0.1, reset=True).effective == 0


def test_no_batches_leave_what_there_was() -> None:
    old = torch.full((CHANNELS,), 7.0), torch.full((CHANNELS,), 3.0)
    none = torch.zeros(0, CHANNELS)
    kept = combine(none, none, mean_weights(0, reset=False), old)
    assert all(torch.equal(a, b) for a, b in zip(kept, old, strict=True))
    mean, variance = combine(none, none, ema_weights(0, 0.1, reset=True), old)
    assert mean.tolist() == [0] * CHANNELS
    assert variance.tolist() == [1] * CHANNELS


def test_names() -> None:
    assert str(Averaging("mean")) == "mean(reset=true)"
    assert str(Averaging("ema", 0.1, reset=False)) == "ema(momentum=0.1, reset=false)"
    assert torch.equal(
        Averaging("ema", 0.1).weights(5).batches, ema_weights(5, 0.1, reset=True).batches
    )
    assert torch.equal(
        Averaging("mean", reset=False).weights(5, 3).batches, mean_weights(5, False, 3).batches
    )


def test_what_cannot_be() -> None:
    one = torch.zeros(1, CHANNELS)
    for wrong in (
        lambda: ema_weights(3, 0.0, reset=True),
        lambda: ema_weights(3, 1.5, reset=True),
        lambda: ema_weights(-1, 0.1, reset=True),
        lambda: mean_weights(-1),
        lambda: Averaging("ema"),
        lambda: Averaging("mean", 0.1),
        lambda: batch_statistics(torch.zeros(1, CHANNELS, 1, 1)),
        lambda: combine(one, one, mean_weights(2)),
        lambda: combine(one, torch.zeros(2, CHANNELS), mean_weights(1)),
        lambda: combine(one, one, ema_weights(1, 0.1, reset=False)),
    ):
        with pytest.raises(UserError):
            wrong()
