"""Optuna's samplers as searchers: inside the budget, nothing judged twice, restored by replay,
better than chance."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.states import coupled, space_of

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.models import zoo
from pruneopt.passes.analysis.residual.gene_order import Gene
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.result import Result
from pruneopt.passes.search.outcome import Outcome
from pruneopt.passes.search.searchers import optuna_searchers
from pruneopt.passes.search.searchers.optuna_searchers import (
    CMAES,
    TPE,
    OptunaSearcher,
    onto_budget,
)
from pruneopt.passes.search.searchers.random_search import RandomSearch
from pruneopt.passes.search.searchers.searcher import AskTell, Searcher
from pruneopt.passes.search.searchers.space import Proposal, Space

pytest.importorskip("optuna")
pytest.importorskip("cmaes")

ALL = [TPE, CMAES]


@pytest.fixture(scope="module")
def network() -> State:
    """ResNet-20 after couple and cost: twelve channel groups."""
    torch.manual_seed(0)
    graph = capture(zoo.create("resnet20").eval(), torch.zeros(1, 3, 32, 32))
    return coupled(graph)


def target_of(space: Space, seed: int) -> Callable[[Proposal], float]:
    """Return a smooth fitness whose best structure is on the budget; 0 is the best there is."""
    rng = np.random.default_rng(seed)
    best = space.widths_of(onto_budget(space, rng.random(len(space.genes)))) / space.cost.full

    def fitness(proposal: Proposal) -> float:
        return -float(((proposal.widths / space.cost.full - best) ** 2).sum())

    return fitness


def steps(
    asker: AskTell, fitness: Callable[[Proposal], float], count: int
) -> list[tuple[list[int], float]]:
    found = []
    for _ in range(count):
        proposal = asker.ask()
        assert proposal is not None
        value = fitness(proposal)
        asker.tell(proposal, value)
        found.append((proposal.widths.tolist(), value))
    return found


# Onto the budget


@pytest.mark.parametrize("budgets", [("50%FLOPs",), ("60%FLOPs", "45%params"), ("30%FLOPs",)])
def test_vectors_are_moved_to_where_no_gene_can_grow(
    network: State, budgets: tuple[str, ...]
) -> None:
    space = space_of(network, *budgets)
    rng = np.random.default_rng(0)
    for _ in range(40):
        indices = onto_budget(space, rng.random(len(space.genes)))
        assert space.feasible(space.widths_of(indices)[None])[0]
        for gene in range(len(indices)):
            more = indices.copy()
            more[gene] += 1
            assert (
                indices[gene] == len(space.grid) - 1
                or not space.feasible(space.widths_of(more)[None])[0]
            )


def test_what_is_asked_for_keeps_its_proportions(network: State) -> None:
    """One factor for all, but for what fills the budget up; a gene that asks to lose nothing keeps
    all."""
    space = space_of(network, "60%FLOPs", grid=range(1, 101))
    ratios = np.linspace(0, 0.5, len(space.genes))
    removed = 1 - space.widths_of(onto_budget(space, ratios)) / space.cost.full
    assert removed[0] == 0
    factor = np.median(removed[1:] / ratios[1:])
    assert factor > 0.5
    channels = np.abs(removed - factor * ratios) * space.cost.full
    assert channels.max() <= 3  # rounding, and what fills the budget up


def test_twice_the_ratios_are_the_same_structure(network: State) -> None:
    space = space_of(network, "50%FLOPs")
    ratios = np.random.default_rng(1).uniform(0, 0.4, len(space.genes))
    assert onto_budget(space, ratios).tolist() == onto_budget(space, 2 * ratios).tolist()


def test_without_budgets_ratios_are_taken_as_they_are(network: State) -> None:
    space = space_of(network)
    ratios = np.linspace(0, 0.9, len(space.genes))
    wanted = [int(np.flatnonzero(space.grid <= 100 - 100 * ratio + 1e-6)[-1]) for ratio in ratios]
    assert onto_budget(space, ratios).tolist() == wanted


# Searching


@pytest.mark.parametrize("kind", ALL)
def test_every_proposal_is_new_and_inside_every_budget(
    network: State, kind: type[OptunaSearcher]
) -> None:
    space = space_of(network, "50%FLOPs", "70%params")
    asker = kind(candidates=30).open(space, 0)
    found = steps(asker, target_of(space, 0), 30)
    assert asker.ask() is None
    assert asker.total == 30
    assert len({tuple(widths) for widths, _ in found}) == 30
    assert space.feasible(np.array([widths for widths, _ in found])).all()


@pytest.mark.parametrize("kind", ALL)
def test_replaying_a_journal_restores_the_sampler(
    network: State, kind: type[OptunaSearcher]
) -> None:
    space = space_of(network, "50%FLOPs")
    fitness = target_of(space, 0)
    straight = steps(kind(candidates=40).open(space, 7), fitness, 30)
    first = steps(kind(candidates=40).open(space, 7), fitness, 15)
    again = kind(candidates=40).open(space, 7)
    answers = iter([value for _, value in first])
    assert steps(again, lambda proposal: next(answers), 15) == first
    assert first + steps(again, fitness, 15) == straight


@pytest.mark.parametrize("kind", ALL)
def test_the_seed_and_the_answers_decide(network: State, kind: type[OptunaSearcher]) -> None:
    space = space_of(network, "50%FLOPs")
    run = [
        steps(kind().open(space, seed), target_of(space, goal), 25)
        for seed, goal in ((0, 0), (1, 0), (0, 1))
    ]
    assert run[0][0][0] != run[1][0][0]
    assert run[0][0][0] == run[2][0][0]
    assert [widths for widths, _ in run[0]] != [widths for widths, _ in run[2]]


@pytest.mark.parametrize("kind", ALL)
def test_better_than_random_at_equal_evaluations(
    network: State, kind: type[OptunaSearcher]
) -> None:
    space = space_of(network, "50%FLOPs")
    evaluations = 80

    def best(searcher: Searcher, seed: int) -> float:
        found = steps(searcher.open(space, seed), target_of(space, 100 + seed), evaluations)
        return max(value for _, value in found)

    learnt = [best(kind(candidates=evaluations), seed) for seed in range(3)]
    random = [best(RandomSearch(candidates=evaluations, max_ratio=0.9), seed) for seed in range(3)]
    assert np.mean(learnt) > np.mean(random)


def test_tied_genes_keep_one_scale_and_frozen_ones_everything(network: State) -> None:
    coupling = network.need_coupling()
    names = [group.name for group in coupling.free]
    single = [Gene((name,), 1, "stays" if name == names[-1] else None) for name in names[2:]]
    genes = [Gene(tuple(names[:2]), 16), *single]
    space = space_of(network, "70%FLOPs", genes=genes)
    asker = TPE(candidates=12).open(space, 0)
    for _ in range(12):
        proposal = asker.ask()
        assert proposal is not None
        assert proposal.scales is not None
        assert proposal.scales[0] == proposal.scales[1]
        assert proposal.scales[-1] == 1.0
        assert proposal.widths[-1] == space.cost.full[-1]
        asker.tell(proposal, 0.0)


def test_an_exhausted_space_ends_the_search(network: State) -> None:
    """Two scales and two free genes leave four structures, of which the budget allows some."""
    names = [group.name for group in network.need_coupling().free]
    genes = [Gene((name,), 1, None if place < 2 else "stays") for place, name in enumerate(names)]
    space = space_of(network, "95%FLOPs", genes=genes, grid=(50, 100))
    asker = TPE(candidates=50).open(space, 0)
    found = []
    while (proposal := asker.ask()) is not None:
        found.append(tuple(proposal.widths.tolist()))
        asker.tell(proposal, float(sum(found[-1])))
    assert 1 <= len(found) == len(set(found)) <= 3


@pytest.mark.parametrize("kind", ALL)
def test_answers_that_are_no_numbers_do_not_end_the_search(
    network: State, kind: type[OptunaSearcher]
) -> None:
    space = space_of(network, "50%FLOPs")
    asker = kind(candidates=10).open(space, 0)
    values = iter([float("nan"), float("-inf"), *range(8)])
    assert len(steps(asker, lambda proposal: next(values), 10)) == 10


def test_a_window_that_nothing_meets(network: State, monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(network, "50%FLOPs", window=0.5)
    monkeypatch.setattr(space, "window", 1e-9)
    monkeypatch.setattr(optuna_searchers, "ATTEMPTS", 10)
    with pytest.raises(UserError, match="use a wider window"):
        TPE().open(space, 0).ask()


def test_optuna_stays_silent(
    network: State, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    space = space_of(network, "50%FLOPs")
    for kind in ALL:
        steps(kind(candidates=12).open(space, 0), target_of(space, 0), 12)
    assert capfd.readouterr() == ("", "")
    assert not [
        warning for warning in recwarn if "ptuna" in str(warning.category) + str(warning.filename)
    ]
    assert optuna.logging.get_verbosity() == before
    assert logging.getLogger("optuna").propagate is False


@pytest.mark.parametrize("kind", ALL)
def test_a_killed_search_ends_as_one_that_was_not(
    search: Callable[..., tuple[State, Outcome]], tmp_path: Path, kind: type[OptunaSearcher]
) -> None:
    """The pass abn with another searcher: the journal loses its last lines, and the search goes on
    from there."""
    options = {"searcher": kind(candidates=6), "finetune_epochs": 0}
    _, straight = search(tmp_path, **options)
    path = tmp_path / "search.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:10])
    state, resumed = search(tmp_path, **options)
    assert [item.widths for item in resumed.candidates] == [
        item.widths for item in straight.candidates
    ]
    assert [item.score for item in resumed.candidates] == [
        item.score for item in straight.candidates
    ]
    assert resumed.candidates[:3] == straight.candidates[:3]
    assert resumed.winner.widths == straight.winner.widths
    assert all(use.share <= 1 for use in Result.of(state).budgets)


# Options and packages


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TPE(candidates=0), "candidates=0 must be at least 1"),
        (lambda: TPE(startup=0), "startup=0 must be at least 1"),
        (lambda: CMAES(population=1), "population=1 must be at least 2"),
    ],
)
def test_refused_options(make: Callable[[], Searcher], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("kind", "package"), [(TPE, "optuna"), (CMAES, "cmaes")])
def test_a_missing_package_is_named(
    network: State, monkeypatch: pytest.MonkeyPatch, kind: type[OptunaSearcher], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"needs the package {package}: pip install 'pruneopt\[search\]'"
    ):
        kind().open(space_of(network, "50%FLOPs"), 0)


def test_optuna_is_loaded_with_the_first_search_only() -> None:
    loaded = "[name for name in ('optuna', 'cmaes') if name in sys.modules]"
    code = f"import sys, {optuna_searchers.__name__}; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
