"""The benchmark of judging: its rivals compute the function of the same plan, and rows that are not
measured again keep what they were measured by."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt import build_module, capture, load_model
from pruneopt.extend import slice_graph

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_rival_cut_by_torch_pruning_computes_what_the_sliced_network_computes() -> None:
    pytest.importorskip("torch_pruning")
    from evaluate_setups import with_plans

    torch.manual_seed(0)
    module: Any = load_model("torchvision:mobilenet_v2").module
    workload: Any = None
    case = with_plans(
        "mobilenet_v2", capture(module.eval(), torch.zeros(2, 3, 64, 64)), workload, 2, 0
    )
    whole = build_module(case.graph, case.graph.weights)
    inputs = torch.randn(4, 3, 64, 64)
    for index, plan in enumerate(case.plans):
        small = slice_graph(case.graph, case.coupling, plan)
        ours = build_module(small, small.weights)
        theirs = case.cut(copy.deepcopy(whole), index)
        assert numbers(theirs) == numbers(ours) < numbers(whole)
        torch.testing.assert_close(answers(theirs, inputs), answers(ours, inputs))
        assert answers(ours, inputs).abs().max() > 1e-2  # a network of zeros would prove nothing


def numbers(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
def answers(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return outputs with the batch's statistics: with random weights they fade without."""
    copied = copy.deepcopy(network).train()
    copied(inputs)
    outputs: Tensor = copied.eval()(inputs)
    return outputs


def test_rivals_read_and_run_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluate import Loaders, collated, masked_way, tool_way
    from evaluate_setups import with_plans
    from torch.utils.data import DataLoader, TensorDataset

    workload: Any = None
    module: Any = load_model("zoo:resnet20").module
    case = with_plans("resnet20", capture(module.eval(), torch.zeros(2, 3, 32, 32)), workload, 1, 0)
    images, classes = torch.randn(8, 3, 32, 32), torch.arange(8)
    first = collated([(images[0], classes[0]), (images[1], classes[1])])
    torch.testing.assert_close(first[0], images[:2])
    torch.testing.assert_close(first[1], classes[:2])
    loaders = Loaders(
        DataLoader(TensorDataset(images), 4, collate_fn=collated),
        DataLoader(TensorDataset(images, classes), 4, collate_fn=collated),
    )
    seen: list[bool] = []

    def watched(inputs: Tensor, weight: Tensor, *others: Any) -> Tensor:
        layout = torch.channels_last
        seen.append(all(x.is_contiguous(memory_format=layout) for x in (inputs, weight)))
        return plain(inputs, weight, *others)

    plain = nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", watched)
    with torch.no_grad():
        for way in (masked_way, tool_way):
            way(case, loaders)(0)
            assert seen
            assert all(seen)
            seen.clear()
