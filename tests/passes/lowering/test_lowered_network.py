"""A search keeps statistics and scores of candidates as each gives them by itself, lowered
once."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from helpers.random_candidates import batches, cut, lively
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.lowering import lowered_network
from pruneopt.passes.lowering.backends import ReferenceKernels
from pruneopt.passes.lowering.lower_statistics import LoweredStatistics, lower_statistics
from pruneopt.passes.lowering.prepared import image_bytes
from pruneopt.passes.lowering.run_statistics import run_statistics

EXACT = ReferenceKernels(torch.float64)


def test_candidates_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three at a time and then fewer, on more and more batches, of which memory takes two at
    once."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU()),
        *(nn.Conv2d(20, 24, 1), nn.BatchNorm2d(24), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)),
    )
    graph = capture(lively(net), torch.zeros(1, 3, 9, 9, dtype=torch.float64))
    folded = fold_batch_norms(graph)
    memory = 3 * 9 * image_bytes(lower_statistics(graph).graph, EXACT)
    lowered: list[object] = []

    def noted(own: Graph) -> LoweredStatistics:
        lowered.append(own)
        return lower_statistics(own)

    monkeypatch.setattr(lowered_network, "lower_statistics", noted)
    found = lowered_network.LoweredNetworkCache(graph, folded.graph, 3, EXACT, memory)
    assert str(found) == ""
    some, given = cut(graph, [0.3, 0.9, 0.05]), batches(9, 4, 4, 4, 3)
    for racing, part in ((some, given[:1]), (some, given[1:]), (some[1:], given)):
        wanted = run_statistics(
            [lower_statistics(one) for one in racing], [one.weights for one in racing], part, EXACT
        )
        got = found.statistics(racing, [one.weights for one in racing], part)
        for left, right in zip(got, wanted, strict=True):
            for one, other in zip(left, right, strict=True):
                assert [(item.name, item.count) for item in one] == [
                    (item.name, item.count) for item in other
                ]
                for item, exact in zip(one, other, strict=True):
                    torch.testing.assert_close(item.mean, exact.mean)
                    torch.testing.assert_close(item.variance, exact.variance)
        parts = [fold_batch_norms(one) for one in racing]
        weights = [own.weights(one.weights) for own, one in zip(parts, racing, strict=True)]
        run = found.networks([own.graph for own in parts], weights)
        for x in part:
            with torch.no_grad():
                for logits, graph_of in zip(run(x), racing, strict=True):
                    wanted_logits = Interpreter(graph_of).run(graph_of.weights, x)
                    torch.testing.assert_close(logits, wanted_logits, rtol=1e-9, atol=1e-9)
    assert [id(one) for one in lowered] == [id(graph), *map(id, some)]
    lowered.clear()
    del racing, one, graph_of
    gone = weakref.ref(some.pop())
    found.statistics(some[:1], [some[0].weights], given[:1])
    gc.collect()
    assert gone() is None  # a candidate is not held longer than it is judged
    assert found._statistics.launches.bytes <= memory
    assert str(found) == "statistics by 4 launches, scores by 3 launches"
