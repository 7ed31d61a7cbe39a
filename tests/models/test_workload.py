"""Splits are disjoint, balanced and repeatable; scores leave the network as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruneopt.errors import UserError
from pruneopt.models.workload import (
    DatasetSplit,
    TensorSplit,
    Workload,
    balanced_order,
    cross_entropy,
    cut,
    top1,
)


def small_workload(**changes: object) -> Workload:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    whole = TensorSplit(inputs, torch.arange(60) % 3, torch.arange(60))
    train, calibration, subval = cut(np.arange(60) % 3, 60, seed=0)
    parts = [whole.select(torch.from_numpy(part)) for part in (train, calibration, subval)]
    fields = {
        "name": "small",
        "num_classes": 3,
        **dict(zip(("train", "calibration", "subval"), parts, strict=True)),
    }
    return Workload(**{**fields, "test": whole.head(30), **changes})  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=20, max_size=200), st.integers(0, 5))
def test_cut_is_disjoint_and_spares_rare_classes(labels: list[int], seed: int) -> None:
    array = np.asarray(labels)
    train, calibration, subval = cut(array, len(array), seed=seed, subval=3, calibration=4)
    assert sorted([*train, *subval]) == list(range(len(array)))
    assert set(calibration) <= set(train)
    assert set(array[train]) == set(labels)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5), st.integers(1, 60))
def test_every_prefix_is_balanced(labels: list[int], seed: int, size: int) -> None:
    array = np.asarray(labels)
    order = balanced_order(array, len(array), seed)
    assert sorted(order) == list(range(len(array)))
    taken = {label: list(array[order[:size]]).count(label) for label in set(labels)}
    most = max(taken.values())
    assert all(
        count in (most, most - 1) or count == labels.count(label) for label, count in taken.items()
    )


def test_cut_balances_both_parts() -> None:
    labels = np.arange(1000) % 10
    train, calibration, subval = cut(labels, 1000, seed=3)
    assert (len(train), len(calibration), len(subval)) == (800, 200, 200)
    assert set(np.bincount(labels[subval])) == set(np.bincount(labels[calibration])) == {20}


def test_cut_too_small() -> None:
    with pytest.raises(UserError, match="a training set of 4 samples cannot give"):
        cut(np.arange(4), 4, seed=0)


def test_batches_are_repeatable() -> None:
    train = small_workload().train
    first, again = (torch.cat([x for x, _ in train.batches(7, seed=5)]) for _ in range(2))
    other = torch.cat([x for x, _ in train.batches(7, seed=6)])
    in_order = torch.cat([x for x, _ in train.batches(7)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.sort(0).values, in_order.sort(0).values)


def test_batches_do_not_touch_the_global_generator() -> None:
    class Noisy(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.randn(3), index

    split = DatasetSplit(Noisy(), torch.arange(8))
    before = torch.get_rng_state()
    first, again = (next(split.batches(4, seed=1))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


def test_drop_last_and_bad_batch_size() -> None:
    train = small_workload().train
    assert [len(x) for x, _ in train.batches(20)] == [20, 20, 8]
    assert [len(x) for x, _ in train.batches(20, drop_last=True)] == [20, 20]
    with pytest.raises(UserError, match="batch size of 0"):
        next(train.batches(0))


def test_score_is_the_mean_over_samples_and_restores_modes() -> None:
    linear = nn.Linear(4, 3).eval()
    module = nn.Sequential(linear, nn.Dropout(0.9))
    workload = small_workload()
    inputs, targets = next(workload.test.batches(30))
    expected = top1(linear(inputs), targets).mean().item()
    assert workload.score(module, "test", batch_size=7) == pytest.approx(expected)
    assert (module.training, linear.training, module[1].training) == (True, False, True)
    assert not linear.weight.is_inference()


def test_score_limit() -> None:
    workload = small_workload()
    module = nn.Linear(4, 3)
    inputs, targets = next(workload.test.batches(10))
    assert workload.score(module, "test", limit=10) == pytest.approx(
        top1(module(inputs), targets).mean().item()
    )


def test_own_evaluate_decides_on_the_whole_test_split() -> None:
    workload = small_workload(evaluate=lambda module: 0.25 if not module.training else 1.0)
    module = nn.Linear(4, 3)
    assert workload.score(module, "test") == 0.25
    assert workload.score(module, "test", limit=30) != 0.25


def test_exported_program_can_be_scored() -> None:
    module = nn.Sequential(nn.Linear(4, 3)).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        module, (torch.randn(4, 4),), dynamic_shapes=({0: batch},)
    ).module()
    assert small_workload().score(program) == small_workload().score(module)


def test_network_that_does_not_fit() -> None:
    workload = small_workload()
    with pytest.raises(UserError, match=r"does not take a batch of shape \[12, 4\] from small"):
        workload.score(nn.Linear(5, 3))
    with pytest.raises(UserError, match=r"output has shape \[12, 9\] but small has 3 classes"):
        workload.score(nn.Linear(4, 9))
    with pytest.raises(UserError, match="there is no split 'val'"):
        workload.score(nn.Linear(4, 3), "val")
    with pytest.raises(UserError, match="limit of 0"):
        workload.score(nn.Linear(4, 3), limit=0)


def test_bad_metric_and_evaluate() -> None:
    with pytest.raises(UserError, match=r"one score per sample, \[12\], not \[\]"):
        small_workload(metric=lambda outputs, targets: outputs.mean()).score(nn.Linear(4, 3))
    with pytest.raises(UserError, match="must return one number"):
        small_workload(evaluate=lambda module: "good").score(nn.Linear(4, 3), "test")


def test_outputs_of_other_kinds() -> None:
    logits, targets = torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, 1])
    assert (
        top1({"out": logits}, targets).tolist()
        == top1((logits, None), targets).tolist()
        == [1.0, 0.0]
    )
    assert cross_entropy((logits,), targets) == nn.functional.cross_entropy(logits, targets)
    dense = logits[:, :, None].expand(2, 2, 5)
    assert top1(dense, targets[:, None].expand(2, 5)).tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match="without a main tensor"):
        top1({"boxes": logits}, targets)


def test_describe_names_the_cut() -> None:
    described = small_workload().describe()
    assert described["sizes"] == {"train": 48, "calibration": 12, "subval": 12, "test": 30}
    assert described == small_workload().describe()
    assert len(str(described["subval_sha256"])) == 64
