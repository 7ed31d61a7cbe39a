"""Ratios: the published table of speed-ups, every way of writing them, and the rule from a ratio to
a count."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.states import coupling_of
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.plan import save_plan
from pruneopt.passes.analysis.cost.budget import parse_budget, within
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.stage_numbers import staged_layers
from pruneopt.passes.manager import PassManager
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.regularised.greg import GReg1, GReg2
from pruneopt.passes.selection.by_ratio import LayerRule, picked
from pruneopt.passes.selection.ratios import check_ratios, pruned_count


@cache
def state_of(name: str, classes: int = 1000) -> State:
    coupling = coupling_of(name, classes)
    graph = coupling.graph
    return State(
        graph, graph.copy(), coupling=coupling, cost=CostModel(coupling.graph, coupling, "greg")
    )


def widths_of(state: State, rule: LayerRule) -> np.ndarray:
    """The width vector that a rule leaves; which groups go does not matter here."""
    layers = rule.layers(state)
    counts = rule.counts(state, layers)
    scores = [torch.arange(layer.count, dtype=torch.float64) for layer in layers]
    return state.need_cost().widths(picked(state, layers, counts, scores).plan)


def removed(state: State, rule: LayerRule) -> dict[str, int]:
    """How much goes of each layer, those that lose something."""
    layers = rule.layers(state)
    counts = zip(layers, rule.counts(state, layers), strict=True)
    return {layer.name: count for layer, count in counts if count}


# Published: seeds 4.2, recomputed column; MACs are half of what GReg calls FLOPs

TABLE = [
    (
        "resnet34",
        1000,
        "[0,.5,.6,.4,0,0]",
        ("1.0", "2.0", "2.3", "3.0", "3.5"),
        1.317,
        (3.664, 2.782),
        None,
    ),
    ("resnet50", 1000, "[0,.3,.3,.3,.14,0]", (), 1.489, (4.0892, 2.746), 19.59),
    ("resnet50", 1000, "[0,.6,.6,.6,.21,0]", (), 2.308, (4.0892, 1.772), 15.89),
    ("resnet50", 1000, "[0,.74,.74,.6,.21,0]", (), 2.564, (4.0892, 1.595), 15.74),
    ("resnet50", 1000, "[0,.68,.68,.68,.5,0]", (), 3.063, (4.0892, 1.335), 11.04),
    ("resnet56", 10, "[0,.75,.75,.32,0]", (), 2.555, (0.12549, None), None),
    ("resnet56", 10, "0.5", (), 1.993, (0.12549, None), None),
    ("resnet56", 10, "[0,.7,.7,.7,0]", (), 3.593, (0.12549, None), None),
    ("resnet56", 10, "0.9", (), 11.58, (0.12549, None), None),
    ("resnet56", 10, "0.95", (), 19.85, (0.12549, None), None),
    ("vgg19_cifar", 100, "[1-15:.7]", (), 8.89, (0.39818, None), None),
]


@pytest.mark.parametrize(("name", "classes", "ratios", "skip", "speedup", "macs", "params"), TABLE)
def test_published_speed_ups(
    name: str,
    classes: int,
    ratios: str,
    skip: tuple[str, ...],
    speedup: float,
    macs: tuple[float, float | None],
    params: float | None,
) -> None:
    state = state_of(name, classes)
    cost = state.need_cost()
    choice = GReg1(ratios=ratios, skip=skip)
    kept = cost.widths(choice.decide(state, state.graph.weights).plan)
    flops = [float(cost.measure("flops", widths)) for widths in (cost.full, kept)]
    assert round(flops[0] / flops[1], 2 if speedup > 5 else 3) == speedup
    for flop, wanted in zip(flops, macs, strict=True):
        if wanted is not None:
            assert round(flop / 2e9, 4 if wanted == 4.0892 else 5 if wanted < 1 else 3) == wanted
    if params is not None:
        assert round(float(cost.measure("params", kept)) / 1e6, 2) == params
    assert round(float(cost.measure("params", cost.full)) / 1e6, 3) == 25.504 or name != "resnet50"


def test_channel_mode_prunes_the_same_inside_of_blocks() -> None:
    """Only the first convolution of a block is out of reach of channels, only the last of filters:
    the same groups."""
    state = state_of("resnet50")
    ratios = "[0,.6,.6,.6,.21,0]"
    by_filter = widths_of(state, LayerRule(ratios))
    assert (widths_of(state, LayerRule(ratios, granularity="channel")) == by_filter).all()
    assert {name.rpartition(".")[2] for name in removed(state, LayerRule(ratios))} == {
        "conv1",
        "conv2",
    }
    names = removed(state, LayerRule(ratios, granularity="channel"))
    assert {name.rpartition(".")[2] for name in names} == {"conv2", "conv3"}


def test_unstructured_sparsity_of_resnet50() -> None:
    state = state_of("resnet50")
    rule = LayerRule("[0,.827,.827,.827,.827,.827]", granularity="weight")
    layers = rule.layers(state)
    counts = rule.counts(state, layers)
    total = sum(layer.count for layer in layers)
    assert total == 25_502_912
    assert round(100 * sum(counts) / total, 2) == 82.67
    zeros = dict(zip((layer.name for layer in layers), counts, strict=True))
    assert zeros["conv1"] == 0
    assert zeros["layer1.0.downsample.0"] == math.ceil(0.827 * 64 * 256)
    assert zeros["fc"] == math.ceil(0.827 * 2048 * 1000)


# The rule


def test_counts_are_exact() -> None:
    assert pruned_count(Fraction("0.07"), 100) == 7, "in floats 0.07 * 100 is above 7"
    assert pruned_count(Fraction("0.95"), 16) == 15
    assert pruned_count(Fraction("0.999"), 1) == 0
    assert pruned_count(Fraction("0.5"), 2) == 1
    assert pruned_count(Fraction(0), 64) == 0
    for step in (1, 2, 4):
        for each in (1, 2, 3, 8):
            gone = pruned_count(Fraction("0.6"), each * step, step)
            assert gone == step * min(math.ceil(0.6 * each - 1e-12), each - 1)


def test_counts_agree_with_the_floats_of_the_released_code() -> None:
    """For the widths of the published networks and ratios of three decimals there is no
    difference."""
    for thousandth in range(1, 1000):
        ratio = thousandth / 1000
        for power in range(4, 12):
            wanted = min(math.ceil(ratio * 2**power), 2**power - 1)
            assert pruned_count(Fraction(str(ratio)), 2**power) == wanted


# Ways of writing


def test_every_way_of_writing() -> None:
    state = state_of("digits_resnet", 10)
    inside = {
        "layer1.0.conv1": 16,
        "layer1.1.conv1": 16,
        "layer2.0.conv1": 32,
        "layer2.1.conv1": 32,
    }
    inside |= {"layer3.0.conv1": 64, "layer3.1.conv1": 64}
    assert removed(state, LayerRule("0.5")) == {name: width // 2 for name, width in inside.items()}
    by_stage = {
        "layer1.0.conv1": 8,
        "layer1.1.conv1": 8,
        "layer3.0.conv1": 16,
        "layer3.1.conv1": 16,
    }
    for text in ("[0,0.5,0,1/4,0]", "[0, .5, 0, .25, 0]", "0,0.5,0,0.25,0"):
        assert removed(state, LayerRule(text)) == by_stage
    by_number = {"layer1.0.conv1": 8, "layer1.1.conv1": 8, "layer2.1.conv1": 7}
    for text in ("[0-4:0.5, 8:0.2]", "0-4:0.5,8:.2"):
        assert removed(state, LayerRule(text)) == by_number
    by_name = {"layer1.0.conv1": 8, "layer1.1.conv1": 4, "layer2.1.conv1": 4}
    assert removed(state, LayerRule("layer1:0.5,layer1.1.conv1:0.25,layer2.1:0.1")) == by_name
    shown = removed(state, LayerRule("0.5", granularity="channel"))
    assert list(shown) == [name.replace("conv1", "conv2") for name in inside]


def test_pipelines_hold_ratios() -> None:
    for text in (
        "ratios=[0,.5,.6,.4,0] skip=1.0,2.0",
        'ratios="[0-4:0.5, 7-10:0.2]"',
        "ratios=[0-4:0.5, 7-10:0.2] granularity=channel",
        "ratios=layer1:0.5,layer2:0.1",
    ):
        (step,) = parse_pipeline(f"greg2{{{text}}}")
        assert isinstance(step, GReg2)
        assert parse_pipeline(pass_text(step)) == [step]
    assert parse_pipeline("greg2{ratios=[0-4:0.5, 7:0.2]}") == [GReg2(ratios="[0-4:0.5, 7:0.2]")]
    with pytest.raises(UserError, match="this bracket is never closed"):
        parse_pipeline("greg2{ratios=[0,.5}")
    with pytest.raises(UserError, match=r"\[0 has an empty place|'\[0' is no ratio"):
        parse_pipeline(pass_text(GReg2()).replace("greg2", 'greg2{ratios="[0"}'))
    assert parse_pipeline("greg2{ratios=[0,.5,0,0,0] skip=1.0 skip=2.0}")[0] == GReg2(
        ratios="[0,.5,0,0,0]", skip=("1.0", "2.0")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty place"),
        ("[0,,0.5]", "empty place"),
        ("[0,half]", "'half' is no ratio"),
        ("1", "1 must be the share that goes"),
        ("[0,-0.5,0]", "-0.5 must be the share that goes"),
        ("0.5,1:0.2", "mixes a list and a map"),
        ("0-3:0.5,layer1:0.2", "mixes numbers and names"),
        ("4-3:0.5", "the range 4-3 runs backwards"),
        ("layer1:0.5,layer1:0.2", "gives a name twice"),
        (":0.5", "mixes numbers and names"),
    ],
)
def test_texts_that_are_no_ratios(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_ratios(text)
    with pytest.raises(UserError, match=message):
        GReg1(ratios=text)


@pytest.mark.parametrize(
    ("network", "rule", "message"),
    [
        (
            "digits_resnet",
            LayerRule("[0,0.5,0]"),
            "has 3 entries; this network takes 5: its stem, 3 stages",
        ),
        (
            "digits_resnet",
            LayerRule("[0.5,0,0,0,0]"),
            "gives 0.5 to the stem, where nothing can be pruned",
        ),
        ("digits_resnet", LayerRule("[0,0,0,0,0.5]"), "gives 0.5 to what follows the stages"),
        (
            "digits_resnet",
            LayerRule("[0-20:0.5]"),
            "names layer 20, but the layers of this network are 0 to 15",
        ),
        ("digits_resnet", LayerRule("[0-4:0.5,4:0.2]"), "gives layer 4 twice"),
        ("digits_resnet", LayerRule("[0:0.5,1:0.2]"), "nothing in layer 0 can be pruned"),
        (
            "digits_resnet",
            LayerRule("layer1.0.conv2:0.5"),
            "layer1.0.conv2 is no layer that can be pruned",
        ),
        ("digits_resnet", LayerRule("0.5", skip=("4.0.1",)), "skip=4.0.1 fits no layer"),
        (
            "digits_resnet",
            LayerRule("0.5", skip=("layr1",)),
            "skip=layr1 fits no layer: did you mean layer1",
        ),
        ("digits_resnet", LayerRule(), "there is nothing to aim at"),
        (
            "vgg19_cifar",
            LayerRule("[0,0.5,0]"),
            "the network has no residual blocks: number its layers",
        ),
    ],
)
def test_ratios_that_do_not_fit(network: str, rule: LayerRule, message: str) -> None:
    state = state_of(network, 10 if network == "digits_resnet" else 100)
    with pytest.raises(UserError, match=message):
        rule.counts(state, rule.layers(state))


class Long(nn.Module):
    """One stage of twelve blocks, so that block 1 and block 10 begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)) for _ in range(12)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x.mean((2, 3))


def test_ids_are_skipped_exactly_or_by_prefix() -> None:
    graph = capture(Long().eval(), (torch.randn(1, 1, 4, 4),))
    coupling = couple(graph)
    state = State(graph, graph.copy(), coupling=coupling, cost=CostModel(coupling.graph, coupling))
    every = {f"blocks.{block}.0" for block in range(12)}
    assert set(removed(state, LayerRule("0.5"))) == every
    assert every - set(removed(state, LayerRule("0.5", skip=("1.1",)))) == {"blocks.1.0"}
    by_prefix = every - set(removed(state, LayerRule("0.5", skip=("1.1",), compat="prefix")))
    assert by_prefix == {"blocks.1.0", "blocks.10.0", "blocks.11.0"}
    assert every - set(removed(state, LayerRule("0.5", skip=("1.1.0", "blocks.3")))) == {
        "blocks.1.0",
        "blocks.3.0",
    }
    assert every - set(removed(state, LayerRule("0.5", skip=("1.1.1",)))) == set()
    assert removed(state, LayerRule("0.5", skip=("1",))) == {}


def test_numbers_are_skipped_exactly_in_single_branch_networks() -> None:
    state = state_of("vgg19_cifar", 100)
    whole = removed(state, LayerRule("[0-15:0.5]"))
    assert len(whole) == 16
    assert set(whole) - set(removed(state, LayerRule("[0-15:0.5]", skip=("1",)))) == {"features.3"}


# Structure


def test_places_in_torchvisions_names() -> None:
    """Stage, block and convolution read from the graph are those in the names of torchvision's
    ResNets."""
    for name in ("resnet34", "resnet50"):
        for place in staged_layers(state_of(name).need_coupling().graph).layers:
            parts = place.module.split(".")
            if place.module == "conv1":
                assert place.id == "0"
            elif place.module == "fc":
                assert place.id == "5"
            else:
                conv = -1 if parts[2] == "downsample" else int(parts[2].removeprefix("conv")) - 1
                assert place.id == f"{parts[0].removeprefix('layer')}.{parts[1]}.{conv}"


class Odd(nn.Module):
    """A shortcut computed before its block, a sum inside a block, a layer between two blocks, and
    an added constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.short = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1)
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.between, self.d, self.e = nn.Conv2d(8, 8, 2), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.bias = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + 1
        short = self.short(x)
        y = torch.relu(self.a(x))
        y = y + self.b(y)
        x = self.between(short + self.c(y)) + self.bias
        x = x + self.e(torch.relu(self.d(x)))
        return self.head(x.mean((2, 3)))


def test_places_in_an_odd_network() -> None:
    places = staged_layers(capture(Odd().eval(), (torch.randn(1, 1, 4, 4),)))
    assert places.stages == 2
    ids = {place.module: place.id for place in places.layers}
    assert ids == {
        "stem": "0",
        "short": "1.0.-1",
        "a": "1.0.0",
        "b": "1.0.1",
        "c": "1.0.2",
        "between": "2",
        "d": "2.0.0",
        "e": "2.0.1",
        "head": "3",
    }


def test_whole_groups_are_beyond_the_paper() -> None:
    """With scope=coupled a group has the smallest ratio of its layers, so that one kept layer keeps
    it whole."""
    state = state_of("digits_resnet", 10)
    rule = LayerRule("[0.25,0.5,0.5,0.5,0]", scope="coupled")
    gone = removed(state, rule)
    assert gone["conv1"] == 4, "the stem is in the group of the first stage"
    assert gone["layer2"] == 16
    assert "layer1.0.conv2" not in gone
    assert "layer2" not in removed(state, LayerRule("0.5", scope="coupled", skip=("2.1.1",)))


# Budgets and plans


@pytest.mark.parametrize("budget", ["60%FLOPs", "70%params", "80%bytes"])
@pytest.mark.parametrize("scope", ["internal", "coupled"])
def test_one_ratio_meets_a_budget(budget: str, scope: str) -> None:
    base = state_of("digits_resnet", 10)
    cost = base.need_cost()
    state = State(
        base.graph, base.graph, coupling=base.coupling, cost=cost, budgets=[parse_budget(budget)]
    )
    rule = LayerRule(scope=scope)  # type: ignore[arg-type]
    layers = rule.layers(state)
    counts = rule.counts(state, layers)
    widths = widths_of(state, rule)
    assert within(state.budgets, cost, widths)
    columns = [cost.groups.index(layer.group or "") for layer in layers]
    assert (np.delete(widths, columns) == np.delete(cost.full, columns)).all()
    for column in columns:
        more = widths.copy()
        more[column] += 1
        assert widths[column] == cost.full[column] or not within(state.budgets, cost, more), (
            "there was room for more"
        )
    # One ratio: no layer is further from it than the filters that were given back.
    low = max((count - 1) / layer.count for count, layer in zip(counts, layers, strict=True))
    high = min((count + 2) / layer.count for count, layer in zip(counts, layers, strict=True))
    assert low <= high


def test_budgets_out_of_reach() -> None:
    base = state_of("digits_resnet", 10)
    for text, rule, message in (
        ("2%FLOPs", LayerRule(), "out of reach"),
        ("60%FLOPs", LayerRule("0.1"), "more than the budget '60%FLOPs' allows"),
    ):
        state = State(
            base.graph,
            base.graph,
            coupling=base.coupling,
            cost=base.cost,
            budgets=[parse_budget(text)],
        )
        with pytest.raises(BudgetError, match=message):
            rule.counts(state, rule.layers(state))
    given = State(
        base.graph,
        base.graph,
        coupling=base.coupling,
        cost=base.cost,
        budgets=[parse_budget("60%FLOPs")],
    )
    assert removed(given, LayerRule("0.6")), "ratios that meet a budget are taken as they are"


def test_rounding_and_minimum() -> None:
    state = state_of("digits_resnet", 10)
    kept = widths_of(state, LayerRule("0.6", round_to=8))
    assert not (kept % 8).any()
    cost = state.need_cost()
    column = {name: number for number, name in enumerate(cost.groups)}
    assert kept[column["layer3.0.conv1"]] == 24, "64 - ceil(0.6 * 64) = 25, rounded down"
    assert widths_of(state, LayerRule("0.9", minimum=0.5))[column["layer1.0.conv1"]] == 8


def test_ratios_of_another_plan(tmp_path: Path) -> None:
    base = state_of("digits_resnet", 10)
    coupling = base.need_coupling()
    plan = coupling.full_plan()
    plan["layer1.0.conv1"] = np.array([0, 1, 2, 3, 15])
    plan["layer3.1.conv1"] = np.arange(9, 30)
    del plan["layer2.0.conv1"]
    path = tmp_path / "plan.json"
    save_plan(path, plan, coupling)
    rule = LayerRule(str(path))
    assert removed(base, rule) == {"layer1.0.conv1": 11, "layer3.1.conv1": 43}
    same = GReg1(ratios=str(path), pick="plan").decide(base, base.graph.weights)
    for name, kept in same.plan.items():
        assert np.array_equal(kept, plan.get(name, np.arange(coupling.group(name).width)))
    plan["layer2"] = np.arange(8)
    save_plan(path, plan, coupling)
    with pytest.raises(
        UserError, match="cuts group layer2, which cannot be pruned in this way: try scope=coupled"
    ):
        rule.counts(base, rule.layers(base))
    with pytest.raises(UserError, match="which channels stay, not which weights"):
        LayerRule(str(path), granularity="weight").counts(
            base, LayerRule(granularity="weight").layers(base)
        )
    with pytest.raises(UserError, match="pick=plan takes the channels of a plan"):
        GReg1(ratios="0.5", pick="plan").decide(base, base.graph.weights)


def test_the_baselines_take_the_same_ratios() -> None:
    base = state_of("digits_resnet", 10)
    results = [
        PassManager.parse(f"couple,cost,{text}").run(base.original)
        for text in (
            "l1{ratios=[0,.5,.25,0,0] granularity=filter skip=1.0}",
            "l1{ratios=[0,.5,.25,0,0] granularity=channel skip=1.0 pick=max}",
            "random{ratios=[0,.5,.25,0,0] granularity=filter skip=1.0}",
        )
    ]
    plans = [result.plan or {} for result in results]
    assert [{name: len(kept) for name, kept in plan.items()} for plan in plans] == [
        {name: len(kept) for name, kept in plans[0].items()}
    ] * 3
    weight = base.graph.weights["layer1.1.conv1.weight"].abs().mean((1, 2, 3))
    assert plans[0]["layer1.1.conv1"].tolist() == sorted(torch.argsort(weight)[8:].tolist())
    columns = base.graph.weights["layer1.1.conv2.weight"].abs().mean((0, 2, 3))
    assert plans[1]["layer1.1.conv1"].tolist() == sorted(torch.argsort(columns)[:8].tolist())
    assert len({str(plan["layer1.1.conv1"]) for plan in plans}) == 3
