"""The threshold of Network Slimming, against the published rules written out over plain layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.models import zoo
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import parse_budget, within
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_table import LatencyTable, LayerTimes
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from pruneopt.passes.regularised.scales import (
    Rule,
    Scales,
    gamma_scales,
    ratio_threshold,
    unit_scales,
)
from pruneopt.passes.regularised.threshold import Cut, Cutter

# digits_resnet: its shortcuts tie these layers (as its source says), every other layer stands
# alone.
TIES = [
    ["bn1", "layer1.0.bn2", "layer1.1.bn2"],
    ["layer2.0.bn2", "layer2.0.project.1", "layer2.1.bn2"],
    ["layer3.0.bn2", "layer3.0.project.1", "layer3.1.bn2"],
]


class Network:
    """A captured network whose scales are random; some layers are nearly dead."""

    def __init__(self, model: nn.Module, shape: Sequence[int], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        for number, module in enumerate(model.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data = torch.randn(module.num_features, generator=generator)
                if number % 3 == 0:
                    module.weight.data *= 0.02
        self.model = model.eval()
        self.graph = capture(model, (torch.randn(2, *shape, generator=generator),))
        self.coupling = couple(self.graph)
        self.cost = CostModel(self.graph, self.coupling)
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        }
        self.gammas = {name: norm.weight.detach().abs().numpy() for name, norm in norms.items()}

    def cutter(
        self, rule: Rule | None = None, alive: Mapping[str, np.ndarray] | None = None
    ) -> Cutter:
        return Cutter(
            self.coupling, self.cost, gamma_scales(self.coupling, self.graph.weights), rule, alive
        )


@pytest.fixture(scope="module")
def digits() -> Network:
    return Network(zoo.create("digits_resnet"), (1, 8, 8))


def layers_kept(coupling: Coupling, cut: Cut) -> dict[str, set[int]]:
    """Return the channels that a plan keeps of every batch norm."""
    kept = coupling.kept_units(cut.plan)
    found = {}
    for name, value in coupling.graph.params.items():
        if name.endswith("running_mean"):
            (slot,) = coupling.slots_of(value)
            found[name.removesuffix(".running_mean")] = set(
                np.flatnonzero(kept[slot.units.reshape(-1)]).tolist()
            )
    return found


def best(gamma: np.ndarray, count: int) -> set[int]:
    return set(sorted(range(len(gamma)), key=lambda i: (-gamma[i], i))[:count])


def published(
    gammas: Mapping[str, np.ndarray],
    ratio: float,
    ties: Sequence[Sequence[str]],
    method: str = "or",
    rounding: str = "none",
    fixed: Mapping[str, float] | None = None,
) -> dict[str, set[int]]:
    """3.1.2 and 3.1.3 of the description, layer by layer."""
    everything = sorted(float(g) for gamma in gammas.values() for g in gamma)
    threshold = everything[int(len(everything) * ratio)]
    keep = {}
    for name, gamma in gammas.items():
        width = len(gamma)
        alive = {i for i in range(width) if float(gamma[i]) > threshold}
        if not alive:
            alive = best(gamma, max(int(width * 0.02), 2))
        if rounding == "eight":
            alive = best(gamma, min(math.ceil(len(alive) / 8) * 8, width))
        if rounding == "two-pow":
            alive = best(gamma, min(2 ** math.ceil(math.log2(len(alive))), width))
        if fixed and name in fixed:
            alive = best(gamma, max(int(width * (1 - fixed[name])), 2))
        keep[name] = alive
    for names in ties:
        sets = [keep[name] for name in names]
        merged = set.union(*sets) if method == "or" else set.intersection(*sets)
        for name in names:
            keep[name] = merged
    return keep


@pytest.mark.parametrize("rounding", ["none", "eight", "two-pow"])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7, 0.9])
def test_compat_is_the_published_rule(digits: Network, ratio: float, rounding: Any) -> None:
    rule = Rule(
        rounding=rounding,
        fixed={"layer2.0.bn1": 0.5, "layer3.1.bn2": 0.7},
        compat=("floor", "rounding"),
    )
    cut = digits.cutter(rule).at_ratio(ratio)
    expected = published(digits.gammas, ratio, TIES, "or", rounding, rule.fixed)
    assert layers_kept(digits.coupling, cut) == expected


def test_and_is_the_published_intersection_where_it_is_not_empty(digits: Network) -> None:
    expected = published(digits.gammas, 0.2, TIES, "and")
    assert any(expected[names[0]] for names in TIES)
    found = layers_kept(
        digits.coupling, digits.cutter(Rule(merge="and", compat=("floor",))).at_ratio(0.2)
    )
    for name, kept in expected.items():
        assert found[name] == kept or not kept


def test_an_empty_intersection_falls_back_for_the_whole_group(digits: Network) -> None:
    """Published, every layer falls back to its own best channels, and the sum of them no longer
    fits."""
    ratio = 0.9
    empty = [names for names in TIES if not published(digits.gammas, ratio, TIES, "and")[names[0]]]
    assert empty
    compat = layers_kept(
        digits.coupling, digits.cutter(Rule(merge="and", compat=("floor",))).at_ratio(ratio)
    )
    plain = layers_kept(digits.coupling, digits.cutter(Rule(merge="and")).at_ratio(ratio))
    for names in empty:
        worst = np.min([digits.gammas[name] for name in names], axis=0)
        for name in names:
            assert compat[name] == best(worst, max(int(len(worst) * 0.05), 2))
            assert plain[name] == best(worst, 2)


def test_threshold_index_is_exact() -> None:
    scales = [
        Scales("a", np.array([0.5, 0.1, 0.3]), np.arange(3)),
        Scales("b", np.array([0.2, 0.4]), np.arange(3, 5)),
    ]
    assert ratio_threshold(scales, 0.5) == 0.3  # int(5 * 0.5) = 2: the third of five goes as well
    assert ratio_threshold(scales, 0.39) == 0.2
    assert ratio_threshold(scales, 0.99) == 0.5
    for ratio in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="above 0 and below 1"):
            ratio_threshold(scales, ratio)
    with pytest.raises(UserError, match="no batch-norm scales"):
        ratio_threshold([], 0.5)


def test_survivors_are_strictly_greater(digits: Network) -> None:
    scales = gamma_scales(digits.coupling, digits.graph.weights)
    threshold = float(np.sort(np.concatenate([layer.values for layer in scales]))[200])
    kept = layers_kept(
        digits.coupling, digits.cutter(Rule(min_channels=1, min_ratio=0)).at(threshold)
    )
    alone = set(digits.gammas) - {name for names in TIES for name in names}
    for name in alone:
        survivors = set(np.flatnonzero(digits.gammas[name].astype(np.float64) > threshold).tolist())
        assert kept[name] == survivors or (not survivors and len(kept[name]) == 1)


def test_every_group_keeps_its_floor_and_says_so(digits: Network) -> None:
    cut = digits.cutter(Rule(min_channels=3, min_ratio=0.1)).at_ratio(0.99)
    for group in cut.groups:
        assert group.after >= max(3, int(group.before * 0.1))
        assert (group.reason == "floor") == (group.survivors < max(3, int(group.before * 0.1)))
    assert {"floor", "threshold"} >= {group.reason for group in cut.groups} >= {"floor"}
    values = np.concatenate(list(digits.gammas.values())).astype(np.float64)
    threshold = np.sort(values)[int(len(values) * 0.99)]
    assert set(cut.empty) == {
        name for name, gamma in digits.gammas.items() if not (gamma > threshold).any()
    }


@pytest.mark.parametrize("rounding", ["eight", "two-pow"])
def test_rounding_after_merging_holds_for_groups(digits: Network, rounding: str) -> None:
    plain = digits.cutter().at_ratio(0.6)
    cut = digits.cutter(Rule(rounding=rounding)).at_ratio(0.6)  # type: ignore[arg-type]
    for before, after in zip(plain.groups, cut.groups, strict=True):
        up = (
            math.ceil(before.after / 8) * 8
            if rounding == "eight"
            else 2 ** math.ceil(math.log2(before.after))
        )
        assert after.after == min(up, before.before)
        assert set(plain.plan[before.group]) <= set(cut.plan[before.group])
        assert (after.reason == "rounding") == (
            after.after > before.after
        ) or after.reason == "floor"


@pytest.mark.parametrize("ratio", [0.1, 0.9])
def test_fixed_groups_and_layers_ignore_the_threshold(digits: Network, ratio: float) -> None:
    stream = next(
        g.name
        for g in digits.coupling.free
        if g.width == 64 and len(digits.coupling.producers(g)) == 3
    )
    rule = Rule(fixed={stream: 0.25, "layer2.0.bn1": 0.5, "layer1.1.bn2": 0.5}, rounding="eight")
    cut = digits.cutter(rule).at_ratio(ratio)
    groups = {group.group: group for group in cut.groups}
    assert (groups[stream].after, groups[stream].reason) == (48, "fixed")
    assert (groups["layer2.0.conv1"].after, groups["layer2.0.conv1"].reason) == (16, "fixed")
    kept = layers_kept(digits.coupling, cut)
    assert kept["layer2.0.bn1"] == best(digits.gammas["layer2.0.bn1"], 16)
    # One fixed layer of a group that is merged with others: its half is in the union.
    assert best(digits.gammas["layer1.1.bn2"], 8) <= kept["bn1"]


def test_a_fixed_share_is_not_cut_short_by_floating_point() -> None:
    assert Rule().share(100, 1 - 0.8) == 20


def test_names_and_ratios_are_checked(digits: Network) -> None:
    with pytest.raises(UserError, match="fixed=layer9: no layer with scales and no channel group"):
        digits.cutter(Rule(fixed={"layer9": 0.5}))
    with pytest.raises(
        UserError, match="fixed=classifier: none of its channels may be removed, they are frozen"
    ):
        digits.cutter(Rule(fixed={"classifier": 0.5}))
    with pytest.raises(
        UserError, match=r"fixed=layer2\.0\.bn1: none of its channels .* kept whole"
    ):
        digits.cutter(Rule(fixed={"layer2.0.bn1": 0.5}, whole=frozenset({"layer2.0.conv1"})))
    with pytest.raises(UserError, match="must be above 0 and below 1"):
        Rule(fixed={"bn1": 1.0})
    with pytest.raises(UserError, match="min-channels=0 is impossible"):
        Rule(min_channels=0)
    with pytest.raises(UserError, match="min-ratio=2 must be a share"):
        Rule(min_ratio=2)


def test_bounds_and_ties_hold_whatever_survives(digits: Network) -> None:
    names = [group.name for group in digits.coupling.free]
    first, second, third = (name for name in names if digits.coupling.group(name).width == 32)
    rule = Rule(bounds={"layer1.0.conv1": (3, 5)}, tied=((first, second),))
    for cut in (
        digits.cutter(rule).at_ratio(0.7),
        digits.cutter(rule).inside([parse_budget("40%FLOPs")]),
    ):
        groups = {group.group: group for group in cut.groups}
        assert 3 <= groups["layer1.0.conv1"].after <= 5
        assert groups[first].after == groups[second].after
        assert groups[third].reason != "asked"
    free = {group.group: group.after for group in digits.cutter().at_ratio(0.7).groups}
    tied = {group.group: group.after for group in digits.cutter(rule).at_ratio(0.7).groups}
    assert tied[first] == max(free[first], free[second])


def test_groups_kept_whole_still_count_for_the_threshold(digits: Network) -> None:
    whole = frozenset({"layer3.0.conv1"})
    cut = digits.cutter(Rule(whole=whole)).at_ratio(0.7)
    assert cut.threshold == digits.cutter().at_ratio(0.7).threshold
    assert len(cut.plan["layer3.0.conv1"]) == 64
    assert {g.group for g in cut.groups if g.reason == "kept"} == whole


@pytest.mark.parametrize("rounding", ["none", "eight"])
@pytest.mark.parametrize("merge", ["or", "and"])
@pytest.mark.parametrize(
    "budgets", [["50%FLOPs"], ["30%FLOPs", "40%params"], ["55%memory"], ["60%bytes"]]
)
def test_budgets_are_met_closely(
    digits: Network, budgets: list[str], merge: str, rounding: str
) -> None:
    parsed = [parse_budget(text) for text in budgets]
    cutter = digits.cutter(Rule(merge=merge, rounding=rounding))  # type: ignore[arg-type]
    cut = cutter.inside(parsed)
    widths = digits.cost.widths(cut.plan)
    assert within(parsed, digits.cost, widths)
    shares = [float(digits.cost.measure(b.unit, widths)) / b.limit(digits.cost) for b in parsed]
    if max(shares) < 0.99:  # then no group can take its next step
        above = cutter.ladders.above(widths)
        for place in np.flatnonzero(above > widths):
            trial = widths.copy()
            trial[place] = above[place]
            assert not within(parsed, digits.cost, trial)


def test_the_solved_threshold_is_the_smallest_inside(digits: Network) -> None:
    budgets = [parse_budget("45%FLOPs")]
    cutter = digits.cutter()
    cut = cutter.inside(budgets)
    levels = np.unique(np.concatenate([layer.values for layer in cutter.scales]))
    place = int(np.searchsorted(levels, cut.threshold))
    assert levels[place] == cut.threshold
    assert within(budgets, digits.cost, digits.cost.widths(cutter.at(cut.threshold).plan))
    assert not within(
        budgets, digits.cost, digits.cost.widths(cutter.at(float(levels[place - 1])).plan)
    )
    for group in cut.groups:
        assert group.reason == "budget" or group.after == len(
            cutter.at(cut.threshold).plan[group.group]
        )


def test_a_budget_in_milliseconds() -> None:
    """Two layers whose times are given: the second is slow only while all seven channels stay."""
    network = Network(
        nn.Sequential(nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1)), (3, 4, 4)
    )
    network.graph.weights["1.weight"] = torch.tensor([0.3, 0.9, 0.1, 0.8, 0.2, 0.7, 0.4])
    first = LayerTimes(np.array([3]), np.array([1, 7]), np.array([[1.0, 7.0]]) / 1e3)
    second = LayerTimes(np.array([1, 3, 7]), np.array([5]), np.array([[1.0], [1.0], [9.0]]) / 1e3)
    table = LatencyTable("net", 1, "cpu", 1, {"0": first, "2": second})
    network.cost = CostModel(network.graph, network.coupling, latency=table)
    for budget, kept in (("16ms", 7), ("4ms", 3), ("4.5ms", 3), ("7ms", 4), ("25%latency", 3)):
        cut = network.cutter(Rule(min_channels=1)).inside([parse_budget(budget)])
        assert cut.plan["0"].tolist() == sorted([1, 3, 5, 6, 0, 4, 2][:kept])


def test_a_budget_that_needs_no_pruning_prunes_nothing(digits: Network) -> None:
    cut = digits.cutter().inside([parse_budget("100%FLOPs")])
    assert all(group.after == group.before for group in cut.groups)


def test_floors_can_put_a_budget_out_of_reach(digits: Network) -> None:
    with pytest.raises(BudgetError, match="out of reach"):
        digits.cutter(Rule(min_channels=16)).inside([parse_budget("10%FLOPs")])
    with pytest.raises(BudgetError, match="out of reach"):
        digits.cutter(Rule(compat=("floor",), min_channels=16)).inside([parse_budget("10%FLOPs")])


def test_what_is_gone_stays_gone(digits: Network) -> None:
    first = digits.cutter(Rule(rounding="eight")).at_ratio(0.4)
    second = digits.cutter(Rule(rounding="eight"), alive=first.plan).at_ratio(0.7)
    later = digits.cutter(Rule(rounding="eight"), alive=first.plan).at_ratio(0.2)
    for name, kept in first.plan.items():
        assert set(second.plan[name]) <= set(kept)
        assert set(later.plan[name]) == set(kept)


class Grouped(nn.Module):
    """A grouped convolution: its inputs and outputs are blocks of equal size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.mid, self.norm2 = nn.Conv2d(12, 12, 3, groups=3), nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.norm2(self.mid(self.norm1(self.first(x)))))


@pytest.mark.parametrize(("merge", "each"), [("or", 3), ("and", 1)])
def test_blocks_keep_equal_counts(merge: str, each: int) -> None:
    network = Network(Grouped(), (3, 8, 8))
    network.graph.weights["norm1.weight"] = torch.tensor([9.0, 8, 7, 1, 9, 8, 1, 2, 9, 1, 2, 3])
    cut = network.cutter(Rule(merge=merge, min_channels=1)).at(6.5)  # type: ignore[arg-type]
    (name,) = [
        g.name for g in network.coupling.free if "norm1.weight" in str(network.coupling.members(g))
    ]
    assert len(cut.plan[name]) == 3 * each
    (report,) = [group for group in cut.groups if group.group == name]
    assert (report.survivors, report.reason) == (6, "blocks")
    expected = {3: [0, 1, 2, 4, 5, 7, 8, 10, 11], 1: [0, 4, 8]}[each]
    assert cut.plan[name].tolist() == expected
    verify_pruned(
        network.graph,
        network.coupling,
        cut.plan,
        slice_graph(network.graph, network.coupling, cut.plan),
    )


class Dense(nn.Module):
    """A batch norm over concatenated channels: it belongs to two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(10)
        self.last = nn.Conv2d(10, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))))


def test_a_layer_over_two_groups_is_cut_in_both() -> None:
    network = Network(Dense(), (3, 8, 8))
    network.graph.weights["norm.weight"] = torch.tensor([5.0, 1, 5, 1, 5, 1, 1, 1, 1, -6])
    cut = network.cutter(Rule(min_channels=1)).at(2.0)
    assert {name: kept.tolist() for name, kept in cut.plan.items()} == {"a": [0, 2, 4], "b": [3]}


def test_a_group_without_scales_is_named() -> None:
    network = Network(
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        ),
        (3, 4, 4),
    )
    with pytest.raises(
        UserError, match=r"group 2 has no batch-norm scale .*regulariser=group-norm criterion=l2"
    ):
        network.cutter()
    cut = network.cutter(Rule(whole=frozenset({"2"}))).at_ratio(0.5)
    assert len(cut.plan["2"]) == 8


def test_scores_of_units_follow_the_same_rule() -> None:
    network = Network(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)), (3, 4, 4)
    )
    scores = {"0": np.array([0.1, 0.9, 0.5, 0.7]), "1": np.array([0.2, 0.3, 0.8, 0.05, 0.6, 0.4])}
    cutter = Cutter(
        network.coupling, network.cost, unit_scales(network.coupling, scores), Rule(min_channels=1)
    )
    cut = cutter.at_ratio(0.5)
    assert cut.threshold == 0.5  # int(10 * 0.5) = 5: the sixth of ten
    assert {name: kept.tolist() for name, kept in cut.plan.items()} == {"0": [1, 3], "1": [2, 4]}


def test_scales_that_are_not_finite_are_refused(digits: Network) -> None:
    weights = {**digits.graph.weights, "bn1.weight": torch.full((16,), float("nan"))}
    with pytest.raises(UserError, match=r"the scales of bn1 are not finite: bn1\.weight"):
        gamma_scales(digits.coupling, weights)
