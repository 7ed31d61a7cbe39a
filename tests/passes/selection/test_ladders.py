"""Ties and bounds: groups with the same width, and widths that a user asks for."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import parse_budget, within
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.analysis.residual.gene_order import Gene
from pruneopt.passes.search.searchers.sampling import WidthSampler
from pruneopt.passes.search.searchers.space import Space, tied_genes
from pruneopt.passes.selection.ladders import ladders
from pruneopt.passes.selection.select import is_filled, select

Net = tuple[Coupling, CostModel, dict[str, np.ndarray]]
GROUPS = ("a", "b", "c", "d", "e")
relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Chain(nn.Module):
    """Five free groups in a row: two of 24, one of 24 in two blocks, one of 32 and one of 40."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, padding=1)
        self.c, self.d = nn.Conv2d(24, 24, 1, groups=2), nn.Conv2d(24, 32, 1)
        self.e, self.head = nn.Conv2d(32, 40, 1), nn.Conv2d(40, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c, self.d, self.e):
            x = torch.relu(layer(x))
        return self.head(x)


@pytest.fixture(scope="module")
def chain() -> Net:
    torch.manual_seed(0)
    graph = capture(Chain().eval(), (torch.randn(2, 3, 6, 6),))
    coupling = couple(graph)
    cost = CostModel(graph, coupling)
    assert cost.groups == GROUPS
    return coupling, cost, score_units(coupling, graph.weights, "l1", normalise=True)


ties = st.lists(st.lists(st.sampled_from(GROUPS), min_size=2, max_size=3, unique=True), max_size=2)


def assert_tied(widths: np.ndarray, tied: Sequence[Sequence[str]]) -> None:
    for names in tied:
        assert len({int(widths[GROUPS.index(name)]) for name in names}) == 1, names


@given(
    tied=ties,
    flops=st.integers(8, 100),
    scope=st.sampled_from(["local", "global", "random"]),
    round_to=st.sampled_from([1, 4, 8]),
    least=st.integers(1, 12),
    most=st.integers(16, 40),
)
@relaxed
def test_tied_groups_never_differ_and_no_move_is_left(
    chain: Net, tied: list[list[str]], flops: int, scope: str, round_to: int, least: int, most: int
) -> None:
    coupling, cost, scores = chain
    budgets = [parse_budget(f"{flops}%FLOPs")]
    options = {"round_to": round_to, "tied": tied, "bounds": {"b": (least, most)}}
    try:
        steps = ladders(coupling, cost, **options)  # type: ignore[arg-type]
        plan = select(scores, coupling, cost, budgets, scope=scope, **options)  # type: ignore[arg-type]
    except BudgetError:
        return
    coupling.kept_units(plan)
    widths = cost.widths(plan)
    assert_tied(widths, tied)
    assert least <= widths[1] <= most
    assert within(budgets, cost, widths)
    assert is_filled(widths, steps, budgets, cost)


@given(
    tied=ties,
    flops=st.integers(20, 100),
    index=st.integers(0, 99),
    aimed=st.booleans(),
    floor=st.booleans(),
)
@relaxed
def test_samples_and_proposals_of_a_search_obey_ties(
    chain: Net, tied: list[list[str]], flops: int, index: int, aimed: bool, floor: bool
) -> None:
    coupling, cost, scores = chain
    budgets = [parse_budget(f"{flops}%FLOPs")]
    try:
        space = Space(coupling, cost, budgets, scores, tied=tied, bounds={"d": (8, 24)})
        sampler = WidthSampler(
            coupling,
            cost,
            budgets if aimed else (),
            scores,
            max_ratio=0.8,
            tied=tied,
            bounds={"d": (8, 24)},
            floor=floor,
        )
    except BudgetError:
        return
    assert space.untied
    widths = space.widths_of(space.uniform(np.random.default_rng(index)))
    for found in (widths, sampler.draw(index).widths):
        assert_tied(found, tied)
        assert 8 <= found[3] <= 24


def test_ties_of_unequal_groups_leave_the_widths_that_all_have(chain: Net) -> None:
    coupling, cost, _ = chain
    found = ladders(coupling, cost, round_to=8, tied=[("c", "e"), ("e", "d"), ("a",)])
    assert found.tied == ((2, 3, 4),)
    assert [rungs.tolist() for rungs in found.rungs[2:]] == [[8, 16, 24]] * 3
    assert [columns.tolist() for columns in found.moves] == [[0], [1], [2, 3, 4]]


def test_a_single_width_is_taken_as_it_is(chain: Net) -> None:
    coupling, cost, scores = chain
    options = {"round_to": 8, "minimum": 0.5, "bounds": {"a": (5, 5), "e": (17, 39)}}
    rungs = ladders(coupling, cost, **options).rungs  # type: ignore[arg-type]
    assert rungs[0].tolist() == [5]
    assert rungs[4].tolist() == [24, 32]
    plan = select(scores, coupling, cost, [parse_budget("50%FLOPs")], **options)  # type: ignore[arg-type]
    assert len(plan["a"]) == 5


def test_a_tied_set_gets_the_width_of_one(chain: Net) -> None:
    coupling, cost, _ = chain
    rungs = ladders(coupling, cost, round_to=8, bounds={"a": (10, 10)}, tied=[("a", "b")]).rungs
    assert [rung.tolist() for rung in rungs[:2]] == [[10], [10]]


def test_genes_that_a_tie_joins_are_one() -> None:
    genes = [Gene(("a", "b"), 24), Gene(("c",), 24), Gene(("d",), 24, "read by the last layer")]
    assert tied_genes(genes, [("b", "c")]) == [Gene(("a", "b", "c"), 24), genes[2]]
    assert tied_genes(genes, [("c", "d")]) == [
        genes[0],
        Gene(("c", "d"), 24, "read by the last layer"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bounds": {"a": (9, 15)}, "round_to": 8},
            r"group a cannot keep from 9 to 15 channels: it may keep 8, 16, 24",
        ),
        (
            {"bounds": {"a": (25, 25)}},
            r"group a cannot keep 25 channels: it may keep 1, 2, 3, 4, \.\.\., 24",
        ),
        ({"bounds": {"c": (7, 7)}}, "group c cannot keep 7 channels: it may keep 2, 4, 6"),
        ({"bounds": {"a": (8, 4)}}, "cannot have from 8 to 4 channels"),
        (
            {"bounds": {"a": (8, 8)}, "ignore": ["a"]},
            "group a cannot keep 8 channels: it may keep 24",
        ),
        ({"bounds": {"x": (8, 8)}}, "has no channel group of this name"),
        ({"bounds": {"head": (2, 2)}}, "group head cannot be given a width: it is frozen, "),
        ({"tied": [("a", "x")]}, "group x cannot be tied"),
        (
            {"tied": [("a", "d")], "ignore": ["d"]},
            "no width suits all of them: a may keep 1, 2, .*; d may keep 32",
        ),
        (
            {"tied": [("a", "b")], "bounds": {"a": (8, 8), "b": (12, 12)}},
            "at least 12 and another at most 8",
        ),
    ],
)
def test_what_leaves_no_width_is_refused(
    chain: Net, options: dict[str, object], message: str
) -> None:
    coupling, cost, _ = chain
    with pytest.raises(UserError, match=message):
        ladders(coupling, cost, **options)  # type: ignore[arg-type]
