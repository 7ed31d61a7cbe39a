"""MetaPruning's evolution against the published algorithm, written out naively: operators, archive,
and statistics.

Ours is watched from outside: what it asks, generation by generation, is compared with what the
naive one makes.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.naive_evolution import GENES, Fitness, Key, Naive, peaks, slow_macs
from helpers.states import space_of

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.gene_order import Gene, metapruning_genes
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.search_loop import JOURNAL
from pruneopt.passes.search.searchers.evolution import Evolution, Evolving
from pruneopt.passes.search.searchers.random_search import RandomSearch
from pruneopt.passes.search.searchers.searcher import AskTell
from pruneopt.passes.search.searchers.space import Proposal

Chain = Callable[[Sequence[int]], State]


# Ours, watched from outside


@pytest.fixture(scope="module")
def network(chain: Chain) -> State:
    """Twenty groups of 40 channels: every scale has a width of its own."""
    return chain([40] * GENES)


def genes_of(proposal: Proposal) -> Key:
    """Return the grid indices of a proposal, from its scales alone."""
    assert proposal.scales is not None
    return tuple(round((100 * scale - 10) / 3) for scale in proposal.scales.tolist())


def run(asker: AskTell, fitness: Fitness, count: int | None = None) -> list[Key]:
    """Return what was asked, in order, until the search ends or ``count`` were answered."""
    asked: list[Key] = []
    while len(asked) != count and (proposal := asker.ask()) is not None:
        asked.append(genes_of(proposal))
        asker.tell(proposal, fitness(asked[-1]))
    return asked


def generations(asked: list[Key], size: int = 50) -> list[list[Key]]:
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def best(asked: Sequence[Key], fitness: Fitness, count: int) -> list[Key]:
    """Return the best so far, the older of equals first."""
    return sorted(asked, key=lambda item: -fitness(item))[:count]


def nearest(child: Key, parents: Sequence[Key]) -> Key:
    return min(parents, key=lambda parent: sum(a != b for a, b in zip(child, parent, strict=True)))


def changes(child: Key, parents: Sequence[Key]) -> list[int]:
    """By how much, round the grid, the genes of a mutation differ from those of its parent; 0 where
    they do not."""
    return [(a - b) % 31 for a, b in zip(child, nearest(child, parents), strict=True)]


def test_a_generation_is_25_mutations_and_25_crossovers(network: State) -> None:
    """Without a constraint nothing is rejected, and the children come in this order: no random ones
    are left to make.

    A child that equals its parent is known, so the rate is 0.1 / (1 - 0.9^20) = 0.1138 for those
    that are left.
    """
    moved: list[int] = []
    shares: list[float] = []
    for seed in range(40):
        space = space_of(network)
        first, second = generations(run(Evolution(iterations=2).open(space, seed), peaks))
        assert len(first) == len(second) == 50
        parents = best(first, peaks, 10)
        for child in second[:25]:
            moved += changes(child, parents)
        for child in second[25:]:
            pair = [
                (one, two)
                for one, two in itertools.combinations(parents, 2)
                if all(gene in both for gene, *both in zip(child, one, two, strict=True))
            ]
            assert pair, "every gene is that of one of two parents"
            one, two = pair[0]
            apart = [gene == a for gene, a, b in zip(child, one, two, strict=True) if a != b]
            shares.append(sum(apart) / len(apart))
    rate = sum(change != 0 for change in moved) / len(moved)
    assert abs(rate - 0.1 / (1 - 0.9**GENES)) < 0.008, "20,000 genes: 3.5 standard deviations"
    assert abs(np.mean(shares) - 0.5) < 0.012
    # Each gene for itself: a binomial of some 19 genes that differ.
    assert abs(np.std(shares) - 0.5 / np.sqrt(19.4)) < 0.012
    counts = np.bincount([change for change in moved if change], minlength=31)
    assert counts[0] == 0
    expected = counts.sum() / 30
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 58, "uniform over the 30 other values"


def test_mutations_and_crossovers_are_those_of_the_naive_search(network: State) -> None:
    """The same statistics of both, over many runs: how far children are from their parents, by
    kind."""

    def statistics(first: list[Key], mutated: list[Key], crossed: list[Key]) -> list[list[float]]:
        parents = best(first, peaks, 10)
        far = [float(sum(change != 0 for change in changes(child, parents))) for child in mutated]
        size = [
            float(abs(a - b))
            for child in mutated
            for a, b in zip(child, nearest(child, parents), strict=True)
        ]
        spread = [
            float(sum(a != b for a, b in zip(child, nearest(child, parents), strict=True)))
            for child in crossed
        ]
        used = [float(parents.index(nearest(child, parents))) for child in [*mutated, *crossed]]
        return [far, size, spread, used]

    ours: list[list[float]] = [[], [], [], []]
    theirs: list[list[float]] = [[], [], [], []]
    for seed in range(30):
        first, second = generations(
            run(Evolution(iterations=2).open(space_of(network), seed), peaks)
        )
        naive = Naive(lambda genes: True, peaks, random.Random(seed))
        naive.run(iterations=2)
        made = naive.made[1]
        for total, values in zip(ours, statistics(first, second[:25], second[25:]), strict=True):
            total += values
        for total, values in zip(
            theirs,
            statistics(naive.made[0]["random"], made["mutation"], made["crossover"]),
            strict=True,
        ):
            total += values
    for mine, naive_values in zip(ours, theirs, strict=True):
        a, b = np.array(mine), np.array(naive_values)
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error
        assert 0.85 < a.std() / b.std() < 1.18


def test_what_is_drawn_in_vain(network: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mutations those that change nothing, 0.9^20 = 12 %; of crossovers none, for the two
    parents are different."""
    taken: dict[str, list[bool]] = {"_mutate": [], "_cross": []}
    take = Evolving._take

    def spy(self: Evolving, *args: Any) -> bool:
        result = take(self, *args)
        caller = sys._getframe(1).f_code.co_name
        if caller in taken:
            taken[caller].append(result)
        return result

    monkeypatch.setattr(Evolving, "_take", spy)
    for seed in range(30):
        run(Evolution(iterations=2, parents=2).open(space_of(network), seed), peaks)
    assert sum(taken["_mutate"]) == sum(taken["_cross"]) == 30 * 25
    assert abs(1 - np.mean(taken["_mutate"]) - 0.9**GENES) < 0.04
    assert np.mean(taken["_cross"]) > 0.99


def test_whole_searches_end_as_the_naive_ones_do(network: State) -> None:
    """Under a constraint and by rejection: as many of each kind on average, and as good after
    twenty generations."""
    space = space_of(network, "45%FLOPs")
    limit = space.budgets[0].limit(space.cost)
    assert float(space.cost.measure("flops", space.widths_of(np.arange(GENES)))) == slow_macs(
        tuple(range(GENES))
    )
    ours, theirs, ours_random, theirs_random = [], [], [], []
    for seed in range(6):
        asker = Evolution(reject=True).open(space, seed)
        drawn = Drawn(asker)
        asked = run(asker, peaks)
        assert len(asked) == len(set(asked)) == 1000
        assert all(slow_macs(genes) <= limit for genes in asked)
        ours.append(max(map(peaks, asked)))
        ours_random.append(sum(drawn.random) - 50)
        naive = Naive(lambda genes: slow_macs(genes) <= limit, peaks, random.Random(seed))
        naive.run()
        assert len(naive.judged) == 1000
        theirs.append(max(naive.judged.values()))
        theirs_random.append(sum(len(made["random"]) for made in naive.made) - 50)
    assert abs(np.mean(ours) - np.mean(theirs)) < 2.5 * np.sqrt((np.var(ours) + np.var(theirs)) / 5)
    assert np.mean(ours_random) == pytest.approx(np.mean(theirs_random), rel=0.5, abs=15)


class Drawn:
    """Counts how many of every generation are random."""

    def __init__(self, asker: Evolving) -> None:
        self.random: list[int] = []
        fill = asker._fill

        def counted(children: dict[Key, int]) -> None:
            before = len(children)
            fill(children)
            self.random.append(len(children) - before)

        asker._fill = counted  # type: ignore[method-assign]


# The archive, the constraints and the counts


def test_1000_structures_in_twenty_generations_none_twice(network: State) -> None:
    space = space_of(network, "50%FLOPs", window=0.05)
    asker = Evolution().open(space, 0)
    assert asker.total == 1000
    asked = run(asker, peaks)
    assert asker.ask() is None
    assert asker.generation == 20
    assert len(asked) == len(set(asked)) == len(asker.judged) == 1000
    limit = space.budgets[0].limit(space.cost)
    used = [slow_macs(genes) / limit for genes in asked]
    assert min(used) >= 0.95
    assert max(used) <= 1


def test_the_archive_holds_the_best_50_and_its_first_10_are_parents(network: State) -> None:
    asker = Evolution(iterations=6).open(space_of(network, "60%FLOPs"), 3)
    asked: list[Key] = []
    for number in range(1, 7):
        asked += run(asker, peaks, 50)
        assert asker.archive == best(asked, peaks, 50)
        assert asker.parents == best(asked, peaks, 10)
        assert asker.generation == number


def test_children_come_from_the_best_10_alone(network: State) -> None:
    """In a search without constraints, in every generation."""
    asked = run(Evolution(iterations=5).open(space_of(network), 1), peaks)
    for number, generation in enumerate(generations(asked)[1:], 1):
        parents = best(asked[: 50 * number], peaks, 10)
        for child in generation[:25]:
            assert sum(change != 0 for change in changes(child, parents)) <= 9, "P(more) is 1e-6"
        for child in generation[25:]:
            assert any(
                all(gene in both for gene, *both in zip(child, one, two, strict=True))
                for one, two in itertools.combinations(parents, 2)
            )


def test_fewer_children_leave_room_for_random_ones(network: State) -> None:
    options = Evolution(population=12, iterations=4, parents=3, mutations=3, crossovers=2)
    asker = options.open(space_of(network), 0)
    drawn = Drawn(asker)
    asked = run(asker, peaks)
    assert drawn.random == [12, 7, 7, 7]
    assert [len(generation) for generation in generations(asked, 12)] == [12] * 4


def test_without_children_it_is_random_search(network: State) -> None:
    asker = Evolution(population=10, iterations=3, mutations=0, crossovers=0).open(
        space_of(network), 0
    )
    drawn = Drawn(asker)
    assert len(run(asker, peaks)) == 30
    assert drawn.random == [10, 10, 10]


@pytest.mark.parametrize(
    ("options", "children"),
    [
        ({}, (25, 25)),
        ({"population": 20}, (10, 10)),
        ({"population": 5}, (2, 2)),
        ({"population": 1}, (0, 0)),
        ({"mutations": 40}, (40, 10)),
        ({"crossovers": 40}, (10, 40)),
        ({"mutations": 0}, (0, 25)),
        ({"population": 4, "mutations": 2, "crossovers": 1}, (2, 1)),
    ],
)
def test_half_of_a_generation_is_made_in_each_way(
    options: dict[str, Any], children: tuple[int, int]
) -> None:
    assert Evolution(**options).children == children


def test_more_parents_than_structures_in_a_generation(network: State) -> None:
    asker = Evolution(population=4, iterations=5, parents=10).open(space_of(network), 0)
    asked = run(asker, peaks)
    assert asker.parents == best(asked, peaks, 10)


def test_a_gene_always_changes_to_another_value(network: State) -> None:
    """With probability 1 every gene of every mutation is another one."""
    options = Evolution(population=20, iterations=2, parents=1, mutations=20, probability=1.0)
    first, second = generations(run(options.open(space_of(network), 0), peaks), 20)
    parent = best(first, peaks, 1)[0]
    assert all(a != b for child in second for a, b in zip(child, parent, strict=True))


def test_one_parent_cannot_be_crossed(network: State) -> None:
    asker = Evolution(population=6, iterations=3, parents=1, mutations=0, crossovers=6).open(
        space_of(network), 0
    )
    drawn = Drawn(asker)
    assert len(run(asker, peaks)) == 18
    assert drawn.random == [6, 6, 6]


def test_tied_genes_move_together(network: State) -> None:
    names = [group.name for group in network.need_coupling().free]
    genes = [
        Gene(tuple(names[:3]), 40),
        Gene((names[5], names[3]), 40),
        Gene((names[7],), 40, "because"),
    ]
    genes += [Gene((name,), 40) for name in names if name not in {*names[:4], names[5], names[7]}]
    space = space_of(network, "60%FLOPs", genes=genes, window=0.2)
    place = {name: number for number, name in enumerate(space.cost.groups)}
    asked = run(Evolution(population=20, iterations=8).open(space, 0), peaks)
    assert len(asked) == 160
    for found in asked:
        assert len({found[place[name]] for name in names[:3]}) == 1
        assert found[place[names[3]]] == found[place[names[5]]]
        assert found[place[names[7]]] == 30
    assert len({found[place[names[0]]] for found in asked}) > 5


@pytest.mark.parametrize("window", [None, 0.03])
@pytest.mark.parametrize("reject", [True, False])
def test_one_and_two_sided_constraints(network: State, window: float | None, reject: bool) -> None:
    space = space_of(network, "40%FLOPs", window=window)
    limit = space.budgets[0].limit(space.cost)
    asked = run(Evolution(population=20, iterations=6, reject=reject).open(space, 0), peaks)
    used = [slow_macs(genes) / limit for genes in asked]
    assert len(asked) == 120
    assert max(used) <= 1
    assert min(used) >= (0.97 if window else 0)
    assert window is not None or min(used) < 0.9


def test_low_and_high_bound_random_structures_and_no_others(network: State) -> None:
    for reject in (True, False):
        space = space_of(network, "45%FLOPs", window=0.1)
        asked = run(
            Evolution(population=40, iterations=3, low=12, high=23, reject=reject).open(space, 0),
            peaks,
        )
        first = np.array(asked[:40])
        assert first.min() == 12
        assert first.max() == 23
        later = np.array(asked[40:])
        assert later.min() < 12
        assert later.max() > 23


def test_narrow_widths_are_judged_once(chain: Chain) -> None:
    """Six channels have six widths for thirty-one scales."""
    space = space_of(chain([6, 6, 6, 40]), "80%FLOPs")
    asker = Evolution(population=30, iterations=10).open(space, 0)
    seen = []
    while (proposal := asker.ask()) is not None:
        seen.append(tuple(proposal.widths.tolist()))
        asker.tell(proposal, -float(sum(seen[-1])))
    assert len(seen) == len(set(seen)) == 300


# ResNet-50, as published


@pytest.fixture(scope="module")
def resnet50() -> State:
    graph = capture(torchvision.models.resnet50(weights=None).eval(), torch.zeros(1, 3, 224, 224))
    coupling = couple(graph)
    return State(graph, graph, coupling, cost=CostModel(graph, coupling, "metapruning"))


def test_resnet50_is_drawn_as_published(resnet50: State) -> None:
    """1950 to 2050 M, indices 12 to 23: about 3.8 % of the vectors fit, and their mean is 1729
    M."""
    genes = metapruning_genes(resnet50.need_coupling())
    space = space_of(resnet50, "2050MFLOPs", genes=genes, window=1 - 1950 / 2050)
    assert len(space.genes) == 20
    rng = np.random.default_rng(0)
    widths = space.widths_of(np.stack([space.uniform(rng, 12, 23) for _ in range(20_000)]))
    millions = space.cost.measure("flops", widths) / 1e6
    assert abs(millions.mean() - 1729) < 5
    inside = (millions >= 1950) & (millions <= 2050)
    assert abs(inside.mean() - 0.038) < 0.004
    assert (space.feasible(widths) == inside).all()


def test_resnet50_by_rejection(resnet50: State) -> None:
    genes = metapruning_genes(resnet50.need_coupling())
    space = space_of(resnet50, "2050MFLOPs", genes=genes, window=1 - 1950 / 2050)
    asker = Evolution(population=150, iterations=2, reject=True, low=12, high=23).open(space, 0)
    attempts, number = 0, 0
    while (proposal := asker.ask()) is not None:
        millions = float(space.cost.measure("flops", proposal.widths)) / 1e6
        assert 1950 <= millions <= 2050
        attempts += proposal.attempts if number < 150 else 0
        number += 1
        asker.tell(proposal, float(np.sin(proposal.widths).sum()))
    assert number == 300
    assert 150 / attempts == pytest.approx(0.038, rel=0.25), (
        "the standard deviation of 150 waiting times is 8 %"
    )


# Does it learn


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_random_search_of_as_many_structures(network: State, seed: int) -> None:
    space = space_of(network, "50%FLOPs", window=0.05)
    evolved = run(Evolution().open(space, seed), peaks)
    assert len(evolved) == 1000

    def widths_fitness(widths: np.ndarray) -> float:
        return peaks(tuple(((100 * widths / 40 - 10) / 3).tolist()))

    found = []
    asker = RandomSearch(candidates=1000, max_ratio=0.9).open(space_of(network, "50%FLOPs"), seed)
    while (proposal := asker.ask()) is not None:
        found.append(widths_fitness(proposal.widths))
    assert len(found) == 1000
    scores = [peaks(genes) for genes in evolved]
    assert max(scores) > max(found) + 20
    bests = [np.mean(sorted(scores[:count])[-10:]) for count in (50, 250, 1000)]
    assert bests[0] + 10 < bests[1] < bests[2] - 10


# Continuing


@pytest.mark.parametrize("count", [1, 9, 10, 11, 35])
def test_asking_and_telling_again_restores_it(network: State, count: int) -> None:
    space = space_of(network, "50%FLOPs", window=0.1)
    options = Evolution(population=10, iterations=5, parents=4)
    whole = run(options.open(space, 7), peaks)
    again = options.open(space, 7)
    answers = iter([peaks(genes) for genes in whole])
    assert run(again, lambda genes: next(answers), count) == whole[:count]
    assert run(again, peaks) == whole[count:]


def test_the_seed_and_the_answers_decide(network: State) -> None:
    space = space_of(network, "50%FLOPs")
    options = Evolution(population=10, iterations=3)
    one, other = run(options.open(space, 0), peaks), run(options.open(space, 1), peaks)
    told = run(options.open(space, 0), lambda genes: -peaks(genes))
    assert not {*one} & {*other}
    assert one[:10] == told[:10]
    assert one[10:] != told[10:]


SMALL = "evolution{population=4 iterations=3 parents=2 mutations=2 crossovers=1}"


@pytest.mark.parametrize("race", ["", " race=20"])
def test_a_journal_cut_at_every_line_gives_the_same(
    search: Callable[..., tuple[State, Any]], tmp_path: Path, race: str
) -> None:
    options: dict[str, Any] = {"searcher": SMALL, "finetune_epochs": 0}
    evaluator: dict[str, Any] = {
        "evaluator": f"abn{{calibration-batches=2 batch-size=32 subval-limit=100{race}}}"
    }

    def results(folder: str) -> tuple[list[tuple[Any, float]], Any]:
        _, outcome = search(tmp_path / folder, **options, **evaluator)
        return [(item.widths, item.fitness) for item in outcome.candidates], outcome.winner.widths

    whole = results("whole")
    assert len(whole[0]) == 12
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    assert len(lines) == 13
    for number in range(1, len(lines)):
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        (folder / JOURNAL).write_bytes(b"".join(lines[:number]) + lines[number][:20])
        assert results(folder.name) == whole
        assert (folder / JOURNAL).read_bytes().splitlines()[:number] == [
            line.rstrip(b"\n") for line in lines[:number]
        ]


# The ends of it


@pytest.mark.parametrize("race", [None, 20])
def test_a_generation_side_by_side_is_the_generation_one_by_one(
    search: Callable[..., tuple[State, Any]], monkeypatch: pytest.MonkeyPatch, race: int | None
) -> None:
    """Without a race scores do not depend on it, in a race groups do not depend on time."""
    evaluator = (
        "abn{calibration-batches=2 batch-size=32 subval-limit=100"
        + (f" race={race}" if race else "")
        + "}"
    )
    options: dict[str, Any] = {"searcher": SMALL, "finetune_epochs": 0, "evaluator": evaluator}
    found = []
    for patience in (0.0, 1e9):
        monkeypatch.setattr("pruneopt.passes.search.search_loop.MAX_LOST_SECONDS", patience)
        _, outcome = search(**options)
        found.append([(item.widths, item.score, item.fitness) for item in outcome.candidates])
    assert found[0] == found[1]


def test_an_exhausted_space_ends_the_search(chain: Chain) -> None:
    """Two scales and four genes: every structure inside the budget is asked for, once, and then it
    is over."""
    space = space_of(chain([40] * 4), "60%FLOPs", grid=(50, 100))
    every = list(itertools.product((0, 1), repeat=4))
    widths = space.widths_of(np.array(every))
    inside = {tuple(row.tolist()) for row in widths[space.feasible(widths)]}
    assert 4 < len(inside) < 16
    for reject in (False, True):
        asker = Evolution(population=5, iterations=50, parents=3, reject=reject).open(space, 0)
        seen = []
        while (proposal := asker.ask()) is not None:
            seen.append(tuple(proposal.widths.tolist()))
            asker.tell(proposal, float(sum(seen[-1])))
            if reject:
                # Rejecting 100,000 takes a while.
                asker.options = Evolution(population=5, iterations=50, parents=3)
        assert len(seen) == len(inside)
        assert set(seen) == inside
        assert asker.ask() is None


def test_one_scale_is_one_structure(chain: Chain) -> None:
    space = space_of(chain([40] * 3), grid=(100,))
    asker = Evolution(population=3, iterations=3).open(space, 0)
    proposal = asker.ask()
    assert proposal is not None
    assert proposal.widths.tolist() == [40, 40, 40]
    asker.tell(proposal, 1.0)
    assert asker.ask() is None


def test_nothing_fits(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """One group of 10 or 20 channels: half of the FLOPs, or all."""
    monkeypatch.setattr("pruneopt.passes.search.searchers.evolution.ATTEMPTS", 500)
    space = space_of(chain([20]), "75%FLOPs", window=0.1, grid=(50, 100))
    with pytest.raises(
        UserError, match=r"none of 500 random structures .* use a wider window, or leave reject out"
    ):
        Evolution(reject=True).open(space, 0).ask()
    with pytest.raises(
        UserError, match=r"none of 1040 random structures .* use a wider window, or a larger budget"
    ):
        Evolution(population=2).open(space, 0).ask()


def test_ranges_that_hold_nothing_are_refused_at_once(network: State) -> None:
    with pytest.raises(BudgetError, match="random structures with low=25 do not reach 30%FLOPs"):
        Evolution(low=25).open(space_of(network, "30%FLOPs"), 0)
    with pytest.raises(
        UserError, match=r"random structures with high=5 use at most .* let them be larger"
    ):
        Evolution(high=5).open(space_of(network, "50%FLOPs", window=0.1), 0)


def test_answers_that_are_no_numbers_are_the_worst(network: State) -> None:
    asker = Evolution(population=6, iterations=4, parents=2).open(space_of(network), 0)
    numbers = itertools.count()
    odd = (float("nan"), float("-inf"))

    def fitness(genes: Key) -> float:
        number = next(numbers)
        return odd[number % 2] if number % 3 else float(number)

    assert len(run(asker, fitness)) == 24
    values = [asker.judged[genes] for genes in asker.archive]
    assert values[0] == 21.0
    assert asker.judged[asker.parents[0]] == 21.0
    assert all(np.isfinite(asker.judged[genes]) for genes in asker.parents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population=0 must be at least 1"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"parents": 0}, "parents=0 must be at least 1"),
        ({"mutations": -1}, "must not be negative"),
        ({"crossovers": -1}, "must not be negative"),
        ({"mutations": 51}, "51 mutations and 0 crossovers are more than population=50"),
        (
            {"mutations": 30, "crossovers": 30},
            "30 mutations and 30 crossovers are more than population=50",
        ),
        ({"probability": 0.0}, "probability=0 must be above 0 and at most 1"),
        ({"probability": 1.1}, "probability=1.1 must be above 0 and at most 1"),
        ({"probability": float("nan")}, "probability must be a number, not nan"),
        ({"low": -1}, "are no range"),
        ({"low": 5, "high": 4}, "from grid index 5 to 4 are no range"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Evolution(**options)


@pytest.mark.parametrize("options", [{"low": 31}, {"high": 31}])
def test_the_range_is_one_of_the_grid(network: State, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="indices into a grid of 31 scales"):
        Evolution(**options).open(space_of(network), 0)


def test_it_says_what_it_is(network: State) -> None:
    asker = Evolution().open(space_of(network), 0)
    assert asker.describe() == "evolution, 20 generations of 50, 20 genes of 31 scales"
