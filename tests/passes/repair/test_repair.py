"""The pass: its options, its place in a pipeline, and what every method has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from helpers.workloads import images, workload_of
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.data import load_data
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.workload import TensorSplit, Workload
from pruneopt.passes.manager import PassManager
from pruneopt.passes.repair.repair import METHODS, Repair, RepairReport
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train
from pruneopt.passes.transform.recalibrate import recalibrate
from pruneopt.tools.commands.arguments import REPAIRS

CutState = Callable[..., Any]

IMAGES = images(50, seed=1)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.body, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm2(self.body(F.relu(self.norm(self.stem(x))))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(Small().eval(), (images(2, seed=1),))


@pytest.fixture
def workload() -> Workload:
    return workload_of(IMAGES, classes=4)


def test_the_methods_are_named_alike_everywhere() -> None:
    assert set(get_args(get_type_hints(Repair)["method"])) == set(METHODS)
    assert REPAIRS == METHODS


@pytest.mark.parametrize("methods", [("bias",), ("lstsq",), ("bn",), ("bias", "lstsq", "bn")])
def test_every_repair_follows_the_proof(
    graph: Graph, workload: Workload, methods: tuple[str, ...]
) -> None:
    repairs = ",".join(f"repair{{method={method} batch-size=16}}" for method in methods)
    manager = PassManager.parse(f"couple,cost,l1{{budget=50%FLOPs}},slice,verify,{repairs}")
    result = manager.run(graph, workload=workload)
    plain = PassManager.parse("couple,cost,l1{budget=50%FLOPs},slice,verify").run(
        graph, workload=workload
    )
    assert list(result.timings)[5:] == [f"repair-{method}" for method in methods]
    for method in methods:
        report = result.records[f"repair-{method}"]
        assert isinstance(report, RepairReport)
        assert report.images == 50
    assert not torch.equal(result.module(IMAGES), plain.module(IMAGES))
    # What is proved is the cut, whose weights the repair does not change in place.
    assert result.verification == plain.verification


def test_bn_is_recalibration_on_the_first_images(cut_state: CutState) -> None:
    state = cut_state(Small(), IMAGES, {"stem": [0, 1]})
    module = build_module(state.graph, state.graph.weights)
    assert Repair(method="bn", images=30, batch_size=16).run(state)
    # 30 images in two batches of 15, in the order of the seed; the mean over equal batches does not
    # feel the order.
    recalibrate(module, [IMAGES[:30]])
    expected, found = module.state_dict(), state.graph.weights
    torch.testing.assert_close(
        found["norm.running_mean"], expected["norm.running_mean"], rtol=1e-5, atol=1e-6
    )
    assert found["norm.num_batches_tracked"] == 2
    assert torch.equal(found["body.weight"], expected["body.weight"])


def test_bn_without_batch_norm_does_nothing(cut_state: CutState) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    state = cut_state(net, IMAGES, {"0": [0]})
    assert not Repair(method="bn").run(state)
    assert not state.trained_after_slice


def test_a_repair_of_an_uncut_plan_changes_nothing(cut_state: CutState) -> None:
    for method in ("bias", "lstsq"):
        state = cut_state(Small(), IMAGES, {})
        before = dict(state.graph.weights)
        assert not Repair(method=method).run(state)
        assert all(state.graph.weights[name] is tensor for name, tensor in before.items())


def test_images_come_in_batches_of_nearly_equal_size(cut_state: CutState) -> None:
    sizes = []

    class Counting(TensorSplit):
        def fetch(self, positions: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            sizes.append(positions.tolist())
            return super().fetch(positions, **options)

        def select(self, positions: Tensor) -> Counting:
            return Counting(self._inputs, self._targets, self.indices[positions], self._prepare)

    state = cut_state(Small(), IMAGES, {"stem": [0]})
    assert state.workload is not None
    state.workload.calibration = Counting(IMAGES, torch.zeros(50), torch.arange(50))
    Repair(method="bias", images=40, batch_size=16).run(state)
    assert [len(batch) for batch in sizes] == [14, 14, 12]
    assert sorted(position for batch in sizes for position in batch) == list(range(40))


def test_a_network_of_a_fixed_batch_gets_whole_batches(cut_state: CutState) -> None:
    class Fixed(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(2, 3, 8, 8))

    state = cut_state(Fixed(), images(25, seed=1), {"stem": [0, 1]})
    assert not state.graph.dynamic_batch
    Repair(method="lstsq", images=25).run(state)
    report = state.records["repair-lstsq"]
    assert isinstance(report, RepairReport)
    assert report.images == 24
    with pytest.raises(
        UserError, match="takes batches of 2 images, repair has 1: give more images"
    ):
        Repair(method="lstsq", images=1).run(state)


def test_networks_with_several_inputs_are_refused(cut_state: CutState) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x) + self.a(y)))

    state = cut_state(Small(), IMAGES, {"stem": [0]})
    state.graph = capture(Two().eval(), (torch.randn(2, 3), torch.randn(2, 3)))
    with pytest.raises(UserError, match="one input; Two takes 2"):
        Repair(method="bias").run(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("images=0", "images and batch-size must be at least 1"),
        ("method=bn batch-size=1", "method=bn needs at least 2 images"),
        ("method=bn ridge=0.1", "ridge is for method=lstsq"),
        ("method=bias positions=9", "positions is for method=lstsq"),
        ("method=bias cut-only", "cut-only is for method=lstsq"),
        ("ridge=-1", "ridge=-1 is impossible"),
        ("positions=0", "positions=0 is impossible"),
        ("memory=0", "memory=0 is impossible"),
        ("method=magic", "must be one of bn, bias, lstsq, not 'magic'"),
    ],
)
def test_options_that_do_not_fit(options: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PassManager.parse(f"repair{{{options}}}")


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (
            "couple,cost,l1,repair",
            "repair cannot run here: there is nothing to repair yet: run slice and verify first",
        ),
        (
            "couple,cost,l1,slice,repair{method=bn},repair{method=bias}",
            "method=bias must come first",
        ),
        (
            "couple,cost,l1,slice,repair{method=bn},repair",
            "norm.running_mean|norm.running_var has changed since",
        ),
        ("couple,cost,l1,slice,repair,verify", "training changed the weights since slice"),
    ],
)
def test_pipelines_out_of_order(
    graph: Graph, workload: Workload, pipeline: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        PassManager.parse(pipeline).run(graph, workload=workload, budgets=["50%FLOPs"])


def test_without_data_there_is_no_repair(graph: Graph) -> None:
    with pytest.raises(UserError, match="repair cannot run here: it needs data"):
        PassManager.parse("couple,cost,l1{budget=50%FLOPs},slice,repair").run(graph)


def test_a_network_rebuilt_since_the_cut_is_refused(cut_state: CutState) -> None:
    state = cut_state(Small(), IMAGES, {"stem": [0]})
    state.graph = capture(build_module(state.graph, state.graph.weights), (images(2, seed=1),))
    state.graph.ops[3].results[0].name = "another"
    with pytest.raises(UserError, match="was rebuilt since it was cut"):
        Repair(method="lstsq").run(state)


class AlongBatch(nn.Module):
    """Every channel goes through one filter as an image of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.each, self.last = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(1, 1, 3, padding=1),
            nn.Conv2d(6, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.each(x.reshape(-1, 1, 8, 8)).reshape(-1, 6, 8, 8)
        return self.last(torch.sigmoid(x))


@pytest.mark.parametrize("method", ["bias", "lstsq"])
def test_channels_along_the_batch_are_left_and_the_rest_repaired(
    cut_state: CutState, method: Any
) -> None:
    state = cut_state(AlongBatch(), IMAGES, {"stem": [2, 3]})
    assert state.graph.params["last.weight"].type.shape()[1] == 4
    assert Repair(method=method).run(state)
    report = state.records[f"repair-{method}"]
    assert isinstance(report, RepairReport)
    assert [item.layer for item in report.left] == ["each"]
    assert [item.layer for item in report.layers] == ["last"]
    with torch.no_grad():
        wanted = build_module(state.original, state.original.weights)(IMAGES).mean((0, 2, 3))
        mine = build_module(state.graph, state.graph.weights)(IMAGES).mean((0, 2, 3))
    torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=1e-2)


def test_a_trained_network_gets_its_accuracy_back() -> None:
    """Digits at 50 % of the FLOPs, 200 images: what is lost comes back but for a few points."""
    data = load_data("digits?subval=300&calibration=400", input_shape=(1, 1, 8, 8))
    torch.manual_seed(0)
    network = DigitsResNet((8, 12, 16))
    train(network, data, SGD(epochs=6, lr=0.1, batch_size=64))
    graph = capture(network, torch.zeros(2, 1, 8, 8))
    scores = {"original": data.score(network, "test")}
    for method in ("", "bias", "lstsq"):
        repair = f",repair{{method={method} images=200}}" if method else ""
        result = PassManager.parse(f"couple,cost,l1{{budget=50%FLOPs}},slice,verify{repair}").run(
            graph, workload=data
        )
        scores[method or "stale"] = data.score(result.module, "test")
    assert scores["lstsq"] > scores["bias"] + 0.1 > scores["stale"]
    assert scores["lstsq"] > scores["original"] - 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["bias", "lstsq"])
def test_a_gpu_repairs_alike(cut_state: CutState, method: Any) -> None:
    found = []
    for device in ("cpu", "cuda"):
        state = cut_state(Small(), IMAGES, {"stem": [0, 1], "body": [3]})
        state.device = device
        Repair(method=method).run(state)
        assert {tensor.device.type for tensor in state.graph.weights.values()} == {"cpu"}
        found.append(build_module(state.graph, state.graph.weights)(IMAGES))
    # Convolutions on a GPU round more.
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-2)
