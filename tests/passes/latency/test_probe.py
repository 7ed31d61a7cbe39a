"""Measuring for real: a file made at any widths is the one that is exported, and every region gets
its ops."""

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.latency_fakes import cost_of
from torch import Tensor, nn

from pruneopt.passes.latency import ort_times, torch_times
from pruneopt.passes.latency.choose import random_widths
from pruneopt.passes.latency.onnx_family import OnnxFamily, _exported, _numbers
from pruneopt.passes.latency.ort_times import layer_nodes
from pruneopt.passes.latency.probe import Probe, op_times
from pruneopt.passes.latency.regions import find_regions
from pruneopt.passes.latency.sample import NodeTime, Sample, undisturbed
from pruneopt.passes.targets.ort_targets import OrtCPU
from pruneopt.passes.targets.target import parse_target


class Mixed(nn.Module):
    """A depthwise convolution (its groups are written down), and attention (its sizes are)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.point = nn.Conv2d(24, 32, 1)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depth(self.stem(x).relu()).relu()).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(x.mean(1))


def test_a_file_at_any_widths_is_the_one_that_is_exported() -> None:
    cost, target = cost_of(Mixed()), OrtCPU()

    def write(graph: object, path: object) -> None:
        target.write(graph, graph.weights, path)  # type: ignore[attr-defined, arg-type]

    family = OnnxFamily(cost, write)
    for seed in range(2):
        widths = random_widths(cost, np.random.default_rng(seed))
        exported, made = _exported(cost, widths, write), onnx.load_from_string(family.at(widths))
        wanted = dict(_numbers(exported))
        assert {
            place: size for place, size in _numbers(made) if wanted.get(place, 1) != size
        } == {}, "all sizes"
        assert [node.op_type for node in made.graph.node] == [
            node.op_type for node in exported.graph.node
        ]
        onnx.checker.check_model(made, full_check=True)
    assert len(layer_nodes(family.model)) == len(find_regions(cost)) - 1


@pytest.mark.parametrize("text", ["ort-cpu", "torch-cpu", "torch-cpu{format=channels-last}"])
def test_every_layer_gets_its_time(text: str) -> None:
    cost = cost_of()
    probe = Probe(cost, parse_target(text), seconds=0.01)
    regions = find_regions(cost)
    for widths in (cost.full, random_widths(cost, np.random.default_rng(1))):
        sample = probe(widths)
        assert sample.seconds > 0
        times = sample.by_region(len(regions))
        assert (times[1:] > 0).all(), "a layer in each"
        assert times.sum() == pytest.approx(sum(node.seconds for node in sample.nodes))
        session = probe.session(widths)
        assert session.outputs()[0].shape == (1, 10)
        session.close()


@pytest.mark.parametrize("text", ["ort-cpu", "torch-cpu"])
def test_the_whole_has_its_median(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As budgets are held against: runs of which some are disturbed are not counted as faster than
    they were."""
    times = itertools.cycle([1.0, 4.0, 5.0, 1.0, 6.0])
    module = {"ort-cpu": ort_times, "torch-cpu": torch_times}[text]
    run = module._timed

    def timed(*args: Any) -> float:
        run(*args)
        return next(times)

    monkeypatch.setattr(module, "_timed", timed)
    cost = cost_of()
    sample = op_times(parse_target(text), cost.graph, cost.graph.weights, seconds=10.0)
    assert sample.seconds == 4
    assert {node.region for node in sample.nodes} >= set(range(1, len(find_regions(cost))))
    assert text != "ort-cpu" or "Gemm" in {node.kind for node in sample.nodes}
    assert sum(node.seconds for node in sample.nodes) < 1


def test_disturbed_runs_do_not_count() -> None:
    times = np.ones((20, 3))
    times[::3] *= 30
    times[::3, 1] = 0.1  # even where one op of a disturbed run was quick
    assert undisturbed(times).tolist() == [1, 1, 1]


def test_a_region_adds_up_its_ops() -> None:
    nodes = tuple(NodeTime(str(n), "Conv", n % 2, float(n), ((1,),), 1) for n in range(4))
    assert Sample(9.0, nodes).by_region(3).tolist() == [2, 4, 0]
