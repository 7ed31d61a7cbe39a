"""Regions: nothing is counted twice or left out, alike layers share a key, and lengths follow the
widths."""

import numpy as np
from helpers.latency_fakes import Stack, cost_of

from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.latency.choose import random_widths
from pruneopt.passes.latency.onnx_family import leading_plan
from pruneopt.passes.latency.regions import find_regions


def test_regions_cover_every_op_once_and_count_its_work() -> None:
    cost = cost_of()
    regions = find_regions(cost)
    assert sorted(op.result.name for r in regions for op in r.ops) == sorted(
        op.result.name for op in cost.graph.ops
    )
    rows = np.array([random_widths(cost, np.random.default_rng(seed)) for seed in range(5)])
    flops = sum(region.flops(region.lengths(rows)) for region in regions)
    assert (flops == cost.measure("flops", rows)).all()


def test_alike_layers_share_a_key_and_others_do_not() -> None:
    regions = {region.name: region for region in find_regions(cost_of())}
    assert regions["blocks.0.2"].key == regions["blocks.2.2"].key
    assert (
        len(
            {
                regions[name].key
                for name in ("stem.0", "blocks.0.0", "blocks.0.2", "down", "depth", "head")
            }
        )
        == 6
    )
    other = {region.name: region for region in find_regions(cost_of(size=32))}
    assert regions["blocks.0.2"].key != other["blocks.0.2"].key, "the size of images belongs to it"


def test_lengths_are_those_of_the_cut_weights() -> None:
    cost = cost_of(Stack())
    widths = random_widths(cost, np.random.default_rng(3))
    cut = slice_graph(cost.graph, cost.coupling, leading_plan(cost, widths))
    for region in find_regions(cost):
        if region.name.startswith("blocks") and region.name.endswith("0"):
            outputs, inputs = cut.params[f"{region.name}.weight"].type.shape()[:2]
            assert region.lengths(widths[None]).tolist() == [[inputs, outputs]]


def test_the_batch_is_part_of_the_work() -> None:
    cost = cost_of()
    one, four = (find_regions(cost, batch) for batch in (1, 4))
    full = cost.full[None]
    for a, b in zip(one, four, strict=True):
        assert 4 * a.flops(a.lengths(full)) == b.flops(b.lengths(full))
        assert (a.key != b.key) == bool(a.ops)
