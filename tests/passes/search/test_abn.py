"""The search on digits: repeatable, continued after any kill, stopped by hand, and honest about
what is wrong."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import entries_of

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.cost.budget import within
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.evaluation.evaluate import Evaluation
from pruneopt.passes.evaluation.settings import EvaluationSettings
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.abn import AdaptiveBN
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.search.outcome import Candidate, Finalist, Outcome
from pruneopt.passes.search.search_loop import JOURNAL
from pruneopt.passes.selection.masks import masked, slice_masks
from pruneopt.passes.transform.recalibrate import Recalibrate
from pruneopt.passes.transform.stages import Cost, Couple, Slice, Verify

Run = Callable[..., tuple[State, Outcome]]


def essence(outcome: Outcome) -> list[object]:
    """Return all of an outcome but the seconds."""
    items: list[Candidate | Finalist] = [*outcome.candidates, *outcome.finalists]
    return [
        {key: value for key, value in asdict(item).items() if key != "seconds"} for item in items
    ]


def same_plan(a: State, b: State) -> bool:
    assert a.plan is not None
    assert b.plan is not None
    return a.plan.keys() == b.plan.keys() and all(
        np.array_equal(a.plan[name], b.plan[name]) for name in a.plan
    )


# What it finds


def test_the_winner_is_inside_the_budget_and_the_best(search: Run) -> None:
    state, outcome = search(stale=True)
    cost = state.need_cost()
    assert len(outcome.candidates) == 5
    assert len(outcome.finalists) == 2
    assert state.plan is not None
    assert within(state.budgets, cost, cost.widths(state.plan))
    assert (
        dict(zip(cost.groups, cost.widths(state.plan).tolist(), strict=True))
        == outcome.winner.widths
    )
    tuned = [item.tuned for item in outcome.finalists if item.tuned is not None]
    assert len(tuned) == 2
    assert outcome.winning_finalist is not None
    assert outcome.winning_finalist.tuned == max(tuned)
    assert {item.index for item in outcome.finalists} == {
        item.index for item in outcome.ranking[:2]
    }
    assert (
        outcome.winner.score == max(item.score for item in outcome.candidates)
        or outcome.winner in outcome.ranking[:2]
    )
    assert outcome.winning_finalist.stale == outcome.winner.stale
    assert outcome.winner.score > outcome.winner.stale + 0.1, "fresh statistics must help"
    assert not outcome.interrupted
    assert state.graph.channels != state.original.channels


@pytest.mark.parametrize("seed", [None, 5])
def test_a_whole_pipeline_delivers_the_winners_score(
    trained: Graph, workload: Workload, abn: Callable[..., AdaptiveBN], seed: int | None
) -> None:
    options: dict[str, Any] = {
        "candidates": 3,
        "calibration_batches": 4,
        "batch_size": 32,
        "finetune_epochs": 0,
    }
    chosen = abn(budget=("50%FLOPs",), stale=True, seed=seed, **options)
    assert chosen.finishing_passes() == [Recalibrate(batches=4, batch_size=32, seed=seed)]
    steps = [Couple(), Cost(), chosen, Slice(), Verify(), *chosen.finishing_passes()]
    result = PassManager(steps).run(trained, workload=workload)
    outcome = result.records["abn"]
    assert isinstance(outcome, Outcome)
    assert result.verification is not None
    assert workload.score(result.module) == outcome.winner.score
    assert outcome.winner.stale == result.records["recalibrate"].before  # type: ignore[attr-defined]

    assert outcome.winning_finalist is None
    assert [use.share <= 1 for use in result.budgets] == [True]


def test_the_same_seed_gives_the_same_search_and_another_does_not(search: Run) -> None:
    (one, first), (two, second) = search(seed=7), search(seed=7)
    assert essence(first) == essence(second)
    assert same_plan(one, two)
    _, third = search(seed=8, finetune_epochs=0)
    assert [item.widths for item in third.candidates] != [item.widths for item in first.candidates]
    _, own = search(seed=7, own_seed=8, finetune_epochs=0)
    assert [item.widths for item in own.candidates] == [item.widths for item in third.candidates]


def test_more_candidates_begin_with_the_same_ones(search: Run) -> None:
    _, few = search(candidates=2, finetune_epochs=0)
    _, more = search(candidates=4, finetune_epochs=0)
    assert essence(more)[:2] == essence(few)[:2]


def test_the_original_is_untouched(search: Run, trained: Graph) -> None:
    before = {name: tensor.clone() for name, tensor in trained.weights.items()}
    state, _ = search()
    for graph in (trained, state.graph):
        assert all(torch.equal(graph.weights[name], tensor) for name, tensor in before.items())


def test_one_large_candidate_network_at_a_time(
    search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruneopt.passes.evaluation.settings.HELD", 1)  # what is large
    made: list[weakref.ref[Any]] = []

    def watch(owner: type, name: str, part: Callable[[Any], Any]) -> None:
        build = getattr(owner, name)

        def watched(self: Any, plan: Any) -> Any:
            assert not any(item() is not None for item in made), "the last candidate is still alive"
            found = build(self, plan)
            made.append(weakref.ref(part(found)))
            return found

        monkeypatch.setattr(owner, name, watched)

    watch(Evaluation, "cut", lambda found: found[0])
    watch(CutNetworks, "network", lambda found: found)
    gc.disable()
    try:
        search()
    finally:
        gc.enable()
    assert len(made) == 7


def test_progress_tells_number_total_and_best(search: Run) -> None:
    told: list[tuple[str, int, int | None]] = []
    _, outcome = search(progress=lambda text, done=0, total=None: told.append((text, done, total)))
    assert [item[1:] for item in told] == [*((number, 5) for number in range(6)), (1, 2), (2, 2)]
    assert told[0][0].startswith("candidates are judged by mean(reset=true), n=")
    assert f"best {max(item.score for item in outcome.candidates):.4f}" in told[5][0]


def test_equal_widths_are_fine_tuned_once() -> None:
    twins = [Candidate(number, {"a": 3}, 0.5, 0.5, None, 1, 0.0) for number in range(3)]
    outcome = Outcome("", "", "", [*twins, Candidate(3, {"a": 4}, 0.4, 0.4, None, 1, 0.0)])
    assert [item.index for item in outcome.ranking] == [0, 3]
    outcome.finalists = [Finalist(0, 0.1, 0.6, 0.6, 0.0), Finalist(3, 0.1, 0.7, 0.7, 0.0)]
    assert outcome.winner.index == 3


def test_masked_weights_stay_zero_in_candidates_that_are_fine_tuned(
    trained: Graph, workload: Workload
) -> None:
    name = "layer1.0.conv1.weight"
    masks = {name: trained.weights[name].abs() > trained.weights[name].abs().median()}
    graph = trained.copy()
    graph.weights = masked(trained.weights, masks)
    coupling = couple(graph)
    plan = {group.name: np.arange(group.width // 2) for group in coupling.free}
    kept = slice_masks(coupling, coupling.kept_units(plan), masks)[name]
    assert not kept.all()
    for given in (masks, None):
        networks = CutNetworks(
            graph, coupling, workload, EvaluationSettings(batches=2, batch_size=32), given
        )
        network = networks.network(plan)
        networks.tune(network, plan, 1)
        assert bool((dict(network.named_parameters())[name][~kept] == 0).all()) == (
            given is not None
        )


# Continuing


def test_continuing_from_every_line_and_between_gives_the_same(search: Run, tmp_path: Path) -> None:
    whole, outcome = search(tmp_path / "whole", candidates=3)
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 + 2
    for number in range(len(lines)):
        for torn in (0, len(lines[number]) // 2):
            folder = tmp_path / f"cut-{number}-{torn}"
            folder.mkdir()
            (folder / JOURNAL).write_bytes(b"".join(lines[:number]) + lines[number][:torn])
            state, again = search(folder, candidates=3)
            assert essence(again) == essence(outcome)
            assert same_plan(state, whole)
            kept = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
            assert kept[:number] == lines[:number]
            assert len(kept) == len(lines)


def test_a_finished_search_is_not_run_again(
    search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, outcome = search(tmp_path)

    def never(self: Any, plan: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Evaluation, "cut", never)
    monkeypatch.setattr(CutNetworks, "network", never)
    assert search(tmp_path)[1].winner == outcome.winner


def test_a_race_goes_on_where_it_was_stopped(search: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {"race": 30, "finetune_epochs": 0, "candidates": 12}
    _, outcome = search(tmp_path / "whole", **options)
    images = [item.images for item in outcome.candidates]
    assert images[0] == 150
    assert min(image for image in images if image) < 150
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    for number in (2, 5, 11):
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        (folder / JOURNAL).write_bytes(b"".join(lines[:number]))
        assert essence(search(folder, **options)[1]) == essence(outcome)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"candidates": 6}, "the options"),
        ({"max_ratio": 0.6}, "the options"),
        ({"budgets": ("60%FLOPs",)}, "the options"),
        ({"seed": 1}, "the options and the seed"),
    ],
)
def test_a_journal_of_another_search_is_refused(
    search: Run, tmp_path: Path, change: Any, named: str
) -> None:
    search(tmp_path, candidates=1, finetune_epochs=0)
    before = (tmp_path / JOURNAL).read_bytes()
    named = "the seed" if "seed" in change else named
    with pytest.raises(UserError, match=rf"belongs to another search \({named} differ\)"):
        search(tmp_path, **{"candidates": 1, "finetune_epochs": 0, **change})
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_other_weights_or_data_are_another_search(
    search: Run, tmp_path: Path, trained: Graph, workload: Workload
) -> None:
    options: dict[str, Any] = {"candidates": 1, "finetune_epochs": 0}
    search(tmp_path, **options)
    other = trained.copy()
    other.weights["conv1.weight"] = other.weights["conv1.weight"] * 2
    with pytest.raises(UserError, match=r"\(the weights differ\)"):
        search(tmp_path, graph=other, **options)
    with pytest.raises(UserError, match=r"\(the data differ\)"):
        search(tmp_path, workload=replace(workload, subval=workload.subval.head(100)), **options)


def test_the_budget_may_be_given_to_the_pass_or_to_the_run(search: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {"candidates": 1, "finetune_epochs": 0}
    _, one = search(tmp_path, **options)
    _, other = search(tmp_path, budgets=(), budget=("50%FLOPs",), **options)
    assert essence(one) == essence(other)


KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from pruneopt.ir.capture.capture import capture
from pruneopt.models.data import load_data
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.passes.manager import PassManager
from pruneopt.passes.search import search_loop

search_loop.MAX_LOST_SECONDS = 0.0  # one by one
torch.manual_seed(0)
graph = capture(DigitsResNet((4, 4, 4)), torch.zeros(2, 1, 8, 8))
data = load_data("digits?limit=400", input_shape=(1, 1, 8, 8))
def progress(text, done=0, total=None):
    if text.startswith(f"candidate {sys.argv[2]} "):
        os.kill(os.getpid(), signal.SIGKILL)

options = "candidates=4 calibration-batches=2 batch-size=16 finetune-epochs=0"
manager = PassManager.parse("couple,cost,abn{budget=60%FLOPs " + options + "}")
for folder in sys.argv[3:]:
    manager.run(graph, workload=data, progress=progress, run_dir=sys.argv[1] + folder)
"""


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))

    def run(victim: int, *folders: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(script), f"{tmp_path}/", str(victim), *folders]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    assert run(2, "killed").returncode == -signal.SIGKILL
    assert len((tmp_path / "killed" / JOURNAL).read_text().splitlines()) == 4
    again = run(99, "killed", "whole")
    assert again.returncode == 0, again.stderr

    killed, whole = (entries_of(tmp_path / folder / JOURNAL) for folder in ("killed", "whole"))
    assert killed == whole


# Stopping


def stop_at(owner: type, name: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a call of a method."""
    real, calls = getattr(owner, name), []

    def method(self: Any, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(owner, name, method)


def test_ctrl_c_keeps_the_best_so_far(
    search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, complete = search(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("pruneopt.passes.search.search_loop.MAX_LOST_SECONDS", 0.0)  # one by one
        stop_at(Evaluation, "signals", 4, patch)
        state, outcome = search(tmp_path / "run")
    assert outcome.interrupted
    assert len(outcome.candidates) == 3
    assert outcome.winner == outcome.ranking[0]
    assert outcome.winning_finalist is None
    assert state.plan is not None
    assert within(state.budgets, state.need_cost(), state.need_cost().widths(state.plan))
    resumed, finished = search(tmp_path / "run")
    assert essence(finished) == essence(complete)
    assert same_plan(resumed, whole)
    assert not finished.interrupted


def test_ctrl_c_while_fine_tuning(search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(CutNetworks, "tune", 2, monkeypatch)
    _, outcome = search()
    assert outcome.interrupted
    assert len(outcome.finalists) == 1
    assert outcome.winner.index == outcome.finalists[0].index


def test_ctrl_c_before_anything_is_passed_on(search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(Evaluation, "signals", 1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        search()


# Compat switches


def test_momentum_changes_the_averaging_alone(search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = search(finetune_epochs=0)
    _, paper = search(finetune_epochs=0, compat=("momentum",))
    assert [item.widths for item in plain.candidates] == [item.widths for item in paper.candidates]
    assert plain.averaging == "mean(reset=true), n=4"
    assert paper.averaging == "ema(momentum=0.1, reset=false), n=4"
    assert [item.score for item in plain.candidates] != [item.score for item in paper.candidates]


def test_augment_reads_images_as_in_training(search: Run, workload: Workload) -> None:
    _, plain = search(finetune_epochs=0)
    _, once = search(finetune_epochs=0, compat=("augment",))
    _, twice = search(finetune_epochs=0, compat=("augment",))
    assert essence(once) == essence(twice)
    assert [item.widths for item in plain.candidates] == [item.widths for item in once.candidates]
    assert [item.score for item in plain.candidates] != [item.score for item in once.candidates]


def test_leader_changes_the_ranking_alone(search: Run) -> None:
    _, one = search(finetune_epochs=0, candidates=2)
    led, two = search(finetune_epochs=0, candidates=2, compat=("leader",))
    assert [item.widths for item in one.candidates] == [item.widths for item in two.candidates]
    coupling = led.need_coupling()
    weight = led.graph.weights["layer2.0.conv2.weight"].abs().sum((1, 2, 3))
    scores = score_units(coupling, led.graph.weights, "l1", leader=True)
    same = [name for name, score in scores.items() if score.shape == weight.shape]
    shared = next(name for name in same if np.allclose(scores[name], weight.numpy(), rtol=1e-5))
    assert len(coupling.producers(coupling.group(shared))) > 1
    assert led.plan is not None
    kept = led.plan[shared]
    assert sorted(kept.tolist()) == sorted(
        np.argsort(-weight.numpy(), kind="stable")[: len(kept)].tolist()
    )


def test_floor_and_sampling_reach_the_sampler(search: Run) -> None:
    _, plain = search(finetune_epochs=0)
    state, floor = search(finetune_epochs=0, compat=("floor",))
    assert [item.widths for item in floor.candidates] != [item.widths for item in plain.candidates]
    cost = state.need_cost()
    full = float(cost.measure("flops", cost.full))
    state, rejected = search(finetune_epochs=0, compat=("sampling",), candidates=3)
    for item in rejected.candidates:
        share = float(cost.measure("flops", np.array(list(item.widths.values())))) / full
        assert 0.49 <= share <= 0.5
    assert rejected.acceptance < plain.acceptance == 1
    assert "kept if they hit" in rejected.sampling


def test_rare_hits_are_reported(search: Run) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"compat": ("sampling",), "candidates": 1, "finetune_epochs": 0}
    _, outcome = search(
        budgets=("30%FLOPs",),
        max_ratio=0.6,
        progress=lambda text, *_: told.append(text),
        seed=1,
        **options,
    )
    assert outcome.acceptance < 1e-3
    assert outcome.notes == told[1:2]
    assert "change max-ratio" in outcome.notes[0]


# Errors


def test_it_needs_data_a_budget_and_groups(search: Run, trained: Graph, workload: Workload) -> None:
    with pytest.raises(UserError, match="abn cannot run here: it needs data: give --data"):
        PassManager([Couple(), Cost(), AdaptiveBN(("50%FLOPs",))]).run(trained)
    with pytest.raises(UserError, match="abn needs data: give --data"):
        search(workload=None)
    with pytest.raises(UserError, match="abn needs a budget to aim at"):
        search(budgets=())
    with pytest.raises(UserError, match="run couple first"):
        PassManager([AdaptiveBN(("50%FLOPs",))]).run(trained, workload=workload)


def test_an_impossible_budget_is_refused_before_any_work(search: Run, tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        search(tmp_path, budgets=("0.1%FLOPs",))
    with pytest.raises(BudgetError, match="max-ratio="):
        search(tmp_path, budgets=("20%FLOPs",), max_ratio=0.3)
    assert not (tmp_path / JOURNAL).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 0},
        {"calibration_batches": 0},
        {"batch_size": 1},
        {"subval_limit": 0},
        {"top": 0},
        {"top": 2, "finetune_epochs": 0},
        {"finetune_epochs": -1},
        {"seed": -1},
        {"compat": ("floors",)},
        {"criterion": "random", "compat": ("leader",)},
    ],
)
def test_impossible_options(wrong: dict[str, Any], abn: Callable[..., AdaptiveBN]) -> None:
    with pytest.raises(UserError) as error:
        abn(**wrong)
    assert "\n" not in str(error.value)
