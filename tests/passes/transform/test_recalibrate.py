"""Recomputed statistics: the right numbers, nothing else touched, every mode back where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.kernels.bn_statistics import Averaging, batch_statistics, combine
from pruneopt.models.workload import TensorSplit, Workload
from pruneopt.passes.evaluation.resident_images import calibration_inputs
from pruneopt.passes.evaluation.settings import MEAN
from pruneopt.passes.manager import PassManager
from pruneopt.passes.selection.prune import Uniform
from pruneopt.passes.transform.recalibrate import (
    PAPER,
    Recalibrate,
    RecalibrateReport,
    recalibrate,
    recalibrate_on,
)
from pruneopt.passes.transform.stages import Cost, Couple, Slice, Verify


class Frozen(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.first = nn.BatchNorm2d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(4)
        self.frozen = Frozen(4)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.free = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(self.conv(x)))
        out: Tensor = self.free(self.instance(self.frozen(self.second(x))))
        return out


def network() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 1, 6, 6) + 1)
    return net


def inputs(count: int = 6) -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.randn(8, 1, 6, 6) * 2 - 1 for _ in range(count)]


@pytest.mark.parametrize(
    "averaging",
    [MEAN, PAPER, Averaging("ema", 0.2), Averaging("mean", reset=False)],
    ids=lambda item: str(item),
)
def test_statistics_are_the_closed_form(averaging: Averaging) -> None:
    net, seen = network().double(), []
    before = net.first.running_mean.clone(), net.first.running_var.clone()
    net.first.register_forward_pre_hook(lambda module, args: seen.append(batch_statistics(args[0])))
    done = recalibrate(
        net, [x.double() for x in inputs()], momentum=averaging.momentum, reset=averaging.reset
    )
    assert done == 6
    means, variances = (torch.stack(items) for items in zip(*seen, strict=True))
    wanted = combine(means, variances, averaging.weights(6, seen=3), before)
    torch.testing.assert_close(
        (net.first.running_mean, net.first.running_var), wanted, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("whole", [False, True])
def test_only_statistics_change_and_modes_come_back(whole: bool) -> None:
    net = network()
    net.drop.eval()
    net.second.eval()
    modes = [part.training for part in net.modules()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    recalibrate(net, inputs(), whole=whole)
    assert [part.training for part in net.modules()] == modes
    assert (net.first.momentum, net.second.momentum) == (0.3, 0.1)
    changed = {
        name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])
    }
    statistics = {
        f"{norm}.{leaf}" for norm in ("first", "second") for leaf in ("running_mean", "running_var")
    }
    counters = {"first.num_batches_tracked", "second.num_batches_tracked"}
    own = {name for name in changed if name.startswith("instance.")}
    assert changed - own == statistics | counters
    assert bool(own) == whole, "an instance norm learns only when the whole network trains"


def test_modes_come_back_when_a_batch_does_not_fit() -> None:
    net = network().eval()
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.zeros(2, 3, 6, 6)])
    assert not any(part.training for part in net.modules())
    assert net.first.momentum == 0.3


def test_dropout_is_off_unless_asked_for() -> None:
    def second(whole: bool) -> Tensor:
        net = network()
        torch.manual_seed(1)
        recalibrate(net, inputs(), whole=whole)
        assert net.second.running_var is not None
        return net.second.running_var.clone()

    assert torch.allclose(second(False), torch.ones(4), atol=0.1), (
        "normalised by the first batch norm"
    )
    assert (second(True) > 1.5).all(), "dropout doubles what it leaves"


def test_a_network_without_batch_norm_is_left_alone() -> None:
    def never(module: nn.Module, x: Tensor) -> None:
        raise AssertionError

    assert recalibrate(nn.Linear(3, 3), [torch.zeros(2, 3)], forward=never) == 0


def test_functional_batch_norm_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))

    with pytest.raises(UserError, match=r"running_mean belong.*function call"):
        recalibrate(Bare(), [])


# Batches


def numbered(count: int) -> TensorSplit:
    return TensorSplit(torch.arange(100.0)[:, None], torch.zeros(100), torch.arange(count))


def drawn(count: int, batches: int, size: int, seed: int = 0) -> list[list[int]]:
    return [
        x.flatten().int().tolist()
        for x in calibration_inputs(numbered(count), batches, size, seed=seed, device="cpu")
    ]


def test_batches_are_whole_repeatable_and_shuffled() -> None:
    found = drawn(50, 4, 8)
    assert [len(batch) for batch in found] == [8] * 4
    assert sorted(x for batch in found for x in batch) == list(range(32)), (
        "the first, class-balanced images"
    )
    assert found == drawn(50, 4, 8)
    assert found != drawn(50, 4, 8, seed=1)


def test_a_small_split_is_passed_over_again() -> None:
    found = drawn(20, 5, 8)
    assert [len(batch) for batch in found] == [8] * 5
    assert found[:2] != found[2:4], "shuffled anew"
    assert [len(batch) for batch in drawn(5, 3, 8)] == [5] * 3


# On a workload


def test_calibration_and_scores_share_no_image(workload: Workload) -> None:
    calibration, scored = (
        set(workload.calibration.indices.tolist()),
        set(workload.subval.indices.tolist()),
    )
    assert calibration
    assert not calibration & scored
    assert calibration <= set(workload.train.indices.tolist())


def test_recalibration_on_a_workload_is_repeatable(trained: Graph, workload: Workload) -> None:
    def once(seed: int) -> Tensor:
        module = build_module(trained, trained.weights)
        recalibrate_on(module, workload, batches=3, batch_size=16, seed=seed)
        assert not module.training
        return torch.cat([b for name, b in module.named_buffers() if name.endswith("mean")])

    state = torch.get_rng_state()
    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_pass_delivers_fresh_statistics(
    trained: Graph, workload: Workload, tmp_path: Path
) -> None:
    steps = [Couple(), Cost(), Uniform(budget=("60%FLOPs",)), Slice(), Verify()]
    before = PassManager(steps).run(trained, workload=workload).graph.weights
    result = PassManager([*steps, Recalibrate(batches=5, batch_size=32)]).run(
        trained, workload=workload
    )
    changed = {
        name
        for name, tensor in result.graph.weights.items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {name for name in before if "running_" in name or "num_batches" in name}
    report = result.records["recalibrate"]
    assert isinstance(report, RecalibrateReport)
    assert report.after > report.before + 0.1
    assert report.after == workload.score(result.module)
    assert (report.averaging, report.batches) == ("mean(reset=true)", 5)


@pytest.mark.parametrize("wrong", [{"batches": 0}, {"batch_size": 1}])
def test_impossible_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="recalibrate needs"):
        Recalibrate(**wrong)


def test_the_pass_needs_data(trained: Graph) -> None:
    with pytest.raises(UserError, match="recalibrate cannot run here: it needs data: give --data"):
        PassManager([Recalibrate()]).run(trained)


def test_batches_of_one_value_are_refused_in_one_sentence(workload: Workload) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    lonely = replace(workload, calibration=workload.calibration.head(1))
    with pytest.raises(UserError, match="does not take a batch"):
        recalibrate_on(flat, lonely, batches=1, batch_size=2)
