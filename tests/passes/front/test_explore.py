"""The pass explore: the right front, continued to the same one from anywhere, and one sentence for
every mistake."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers.commands import entries_of

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.analysis.cost.budget import within
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_table import LatencyTable
from pruneopt.passes.front.explore import Explore
from pruneopt.passes.front.front_outcome import FrontOutcome
from pruneopt.passes.options import registry
from pruneopt.passes.options.registry import register_part
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.search_loop import JOURNAL
from pruneopt.passes.search.searchers.random_search import RandomSearch
from pruneopt.passes.search.searchers.searcher import AskTell, Searcher
from pruneopt.passes.search.searchers.space import Space

Explored = Callable[..., tuple[State, FrontOutcome]]
Make = Callable[..., State]


def essence(outcome: FrontOutcome) -> list[dict[str, Any]]:
    """Everything but the seconds."""
    return [
        {key: value for key, value in asdict(item).items() if key != "seconds"}
        for item in outcome.candidates
    ]


def test_the_front_is_what_no_other_candidate_dominates(explored: Explored) -> None:
    _, outcome = explored(against=("flops", "memory"), candidates=60)
    cost, numbers = outcome.cost, {}
    for item in outcome.candidates:
        row = [item.widths[name] for name in cost.groups]
        numbers[item.index] = (
            -item.score,
            int(cost.measure("flops", row)),
            int(cost.measure("memory", row)),
        )

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other in numbers.values()
        )

    wanted = {numbers[index] for index in numbers if not beaten(numbers[index])}
    points = outcome.front
    assert {numbers[point.tried.index] for point in points} == wanted
    assert len(points) == len(wanted)
    assert [point.number for point in points] == list(range(1, len(points) + 1))
    flops = [point.costs["flops"] for point in points]
    assert flops == sorted(flops)
    for point in points:
        assert (-point.tried.score, point.costs["flops"], point.costs["memory"]) == numbers[
            point.tried.index
        ]
        assert set(point.costs) == {"flops", "params", "bytes", "memory"}


def test_the_front_is_never_worse_than_the_baselines(explored: Explored) -> None:
    _, outcome = explored(candidates=40, population=20)
    baselines = [
        point for point in outcome.measured if point.tried.origin in ("uniform", "l1", "original")
    ]
    assert len(baselines) >= 8
    for point in baselines:
        assert any(
            other.costs["flops"] <= point.costs["flops"] and other.tried.score >= point.tried.score
            for other in outcome.front
        )


def test_the_volume_is_the_mean_accuracy_over_shares(explored: Explored) -> None:
    _, outcome = explored()
    points = [
        (p.costs["flops"] / outcome.cost.original("flops"), p.tried.score) for p in outcome.front
    ]
    shares = (np.arange(200_000) + 0.5) / 200_000
    best = np.zeros(len(shares))
    for share, score in points:
        best[shares >= share] = np.maximum(best[shares >= share], score)
    assert outcome.hypervolume() == pytest.approx(best.mean(), abs=1e-4)


def test_it_changes_nothing(explored: Explored, chain: Make) -> None:
    state = chain()
    text = str(state.graph.channels)
    after, _ = explored(state=state)
    assert after.plan is None
    assert str(after.graph.channels) == text


SEARCHERS = [
    "nsga2",
    "random",
    "tpe{candidates=6 startup=2}",
    "evolution{population=4 iterations=2 parents=2}",
]


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_continuing_from_every_line_and_between_gives_the_same(
    explored: Explored, chain: Make, tmp_path: Path, searcher: str
) -> None:
    if searcher.startswith("tpe"):
        pytest.importorskip("optuna")
    state = chain()
    sizes: dict[str, Any] = {"searcher": searcher, "candidates": 20, "population": 8}
    _, outcome = explored(tmp_path / "whole", state=state, **sizes)
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 20
    for number in range(len(lines)):
        torn = len(lines[number]) // 2 if number % 3 == 0 else 0
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        (folder / JOURNAL).write_bytes(b"".join(lines[:number]) + lines[number][:torn])
        _, again = explored(folder, state=state, **sizes)
        assert essence(again) == essence(outcome)
        assert [point.tried.index for point in again.front] == [
            point.tried.index for point in outcome.front
        ]
        kept = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
        assert kept[:number] == lines[:number]
        assert len(kept) == len(lines)


def test_a_finished_one_is_not_judged_again(
    explored: Explored, judged: Callable[[], int], tmp_path: Path
) -> None:
    _, outcome = explored(tmp_path)
    before = judged()
    assert essence(explored(tmp_path)[1]) == essence(outcome)
    assert judged() == before


def test_more_candidates_go_on_with_what_there_is(
    explored: Explored, judged: Callable[[], int], tmp_path: Path
) -> None:
    explored(tmp_path, candidates=24)
    before = judged()
    _, more = explored(tmp_path, candidates=30)
    assert judged() - before == 6
    assert essence(more) == essence(explored()[1])


def test_a_searcher_of_the_users_own_finds_a_front(
    explored: Explored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered, a searcher of one objective serves by its name, and its structures have that."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    @register_part
    @dataclass(frozen=True)
    class MyOwn(Searcher):
        name: ClassVar[str] = "my-own"
        summary: ClassVar[str] = "for tests"

        def open(self, space: Space, seed: int) -> AskTell:
            return RandomSearch(candidates=3, max_ratio=0.95).open(space, seed)

    _, outcome = explored(searcher="my-own", candidates=16, population=8, seed=2)
    mine = [item for item in outcome.candidates if item.origin == "my-own"]
    assert len(mine) == 6  # three of each of two levels, and then there are no more
    assert outcome.sampling == "my-own at 2 levels from 20.0% to 100.0% of the flops"
    assert outcome.notes == ["there are no more structures to judge: 14 are all that are new"]


KILLED = """
import os, signal, sys
sys.path[:0] = {tests!r}
import conftest
from pruneopt.models.data import load_data
from pruneopt.passes.front.explore import Explore
from pathlib import Path

def progress(text, done=0, total=None):
    if text.startswith(f"candidate {{sys.argv[2]}} "):
        os.kill(os.getpid(), signal.SIGKILL)

data = load_data("digits?limit=300", input_shape=(1, 1, 8, 8))
for folder in sys.argv[3:]:
    place = Path(sys.argv[1]) / folder
    state = conftest.chain_state((16, 24, 24), data, progress=progress, run_dir=place)
    Explore(evaluator=conftest.Formula(), candidates=20, population=8).run(state)
"""


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent(
            KILLED.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[2])])
        )
    )

    def run(victim: int, *folders: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(script), str(tmp_path), str(victim), *folders]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    assert run(11, "killed").returncode == -signal.SIGKILL
    assert len((tmp_path / "killed" / JOURNAL).read_text().splitlines()) == 13
    again = run(99, "killed", "whole")
    assert again.returncode == 0, again.stderr

    killed, whole = (entries_of(tmp_path / folder / JOURNAL) for folder in ("killed", "whole"))
    assert killed == whole


def test_interrupted_it_keeps_what_there_is(explored: Explored, tmp_path: Path) -> None:
    def stop(text: str, done: int = 0, total: int | None = None) -> None:
        if text.startswith("candidate 14 "):
            raise KeyboardInterrupt

    _, outcome = explored(tmp_path, progress=stop)
    assert outcome.interrupted
    assert len(outcome.candidates) == 15
    assert outcome.front
    _, whole = explored(tmp_path)
    assert not whole.interrupted
    assert essence(whole)[:15] == essence(outcome)


def test_interrupted_before_the_first_there_is_nothing(explored: Explored) -> None:
    def stop(text: str, done: int = 0, total: int | None = None) -> None:
        if text.startswith("structures are judged"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explored(progress=stop)


def test_candidates_are_inside_every_budget(explored: Explored) -> None:
    state, outcome = explored(budgets=["50%params", "70%FLOPs"], candidates=40)
    for item in outcome.candidates:
        assert within(
            state.budgets, outcome.cost, [item.widths[name] for name in outcome.cost.groups]
        )
    assert not [item for item in outcome.candidates if item.origin == "original"]


def test_a_range_is_explored_and_no_more(explored: Explored) -> None:
    _, outcome = explored(least=0.3, most=0.6, candidates=40)
    shares = [point.costs["flops"] / outcome.cost.original("flops") for point in outcome.measured]
    free = [
        share
        for share, item in zip(shares, outcome.candidates, strict=True)
        if item.origin in ("random", "child")
    ]
    assert min(free) >= 0.3
    assert max(shares) <= 0.6
    assert min(shares) >= 0.2


def test_every_unit_of_the_cost_model_works(
    explored: Explored, chain: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = chain()
    cost = state.need_cost()
    measure = CostModel.measure

    def with_target(self: CostModel, unit: str, widths: Any) -> np.ndarray:
        # A staircase, as latencies are: what one more channel costs is nothing, or a lot.
        if unit == "latency@ort-cpu{threads=2}":
            rows = np.asarray(widths, dtype=np.float64)
            return np.asarray((np.ceil(rows / 8) * 8).sum(axis=-1), dtype=np.int64)
        return measure(self, unit, widths)

    monkeypatch.setattr(CostModel, "measure", with_target)
    _, outcome = explored(
        state=state, against=("latency@ort-cpu{threads=2}", "Params"), candidates=40
    )
    assert outcome.against == ("latency@ort-cpu{threads=2}", "params")
    points = outcome.front
    assert len({point.costs["latency@ort-cpu{threads=2}"] for point in points}) > 3
    assert min(p.costs["latency@ort-cpu{threads=2}"] for p in points) < 0.5 * cost.original(
        "latency@ort-cpu{threads=2}"
    )


def test_a_score_that_is_no_number_is_not_on_the_front(
    explored: Explored, formula: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = formula.open

    def odd(self: Any, trial: Any) -> Any:
        scorer = opened(self, trial)
        scorer.weight[0] = np.nan
        return scorer

    monkeypatch.setattr(formula, "open", odd)
    _, outcome = explored()
    assert outcome.front == []
    assert outcome.hypervolume() == 0.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"population": 12}, "the options"),
        ({"against": ("params",)}, "the options and the costs"),
        ({"seed": 1}, "the options and the seed"),
        ({"budgets": ("60%FLOPs",)}, "the options"),
        ({"most": 0.9}, "the options"),
        ({"round_to": 4}, "the options and the costs"),
    ],
)
def test_a_journal_of_another_one_is_refused(
    explored: Explored, tmp_path: Path, change: Any, named: str
) -> None:
    explored(tmp_path, candidates=12)
    before = (tmp_path / JOURNAL).read_bytes()
    named = "the seed" if "seed" in change else named
    with pytest.raises(UserError, match=rf"belongs to another search \({named} differ\)"):
        explored(tmp_path, **{"candidates": 12, **change})
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_other_weights_are_another_one(explored: Explored, chain: Make, tmp_path: Path) -> None:
    explored(tmp_path, candidates=12)
    with pytest.raises(UserError, match=r"\(the weights differ\)"):
        explored(tmp_path, candidates=12, state=chain(seed=3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"against": ()}, UserError, "against names no cost"),
        ({"against": ("flops", "FLOPs")}, UserError, "each cost counts once"),
        ({"against": ("speed",)}, UserError, "there is no cost unit 'speed'"),
        ({"against": ("latency",)}, UserError, "latency table"),
        ({"population": 4}, UserError, "population=4 must be at least 8"),
        ({"candidates": 5}, UserError, "candidates=5 must be at least the population, 10"),
        ({"seed": -1}, UserError, "seed=-1 must not be negative"),
        (
            {"evaluator": "abn{race=64}"},
            UserError,
            "a race gives up what scores below the best so far",
        ),
        ({"budget": ("0.01%FLOPs",)}, BudgetError, "out of reach"),
        ({"searcher": "chance"}, UserError, "there is no searcher 'chance'"),
        ({"searcher": "random{max-ratio=0.5}"}, UserError, "random takes no options on a front"),
        (
            {"searcher": "tpe", "against": ("flops", "params")},
            UserError,
            "the searcher tpe trades accuracy against one cost, and against names flops, params",
        ),
    ],
)
def test_mistakes(explored: Explored, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        explored(**options)


def test_it_comes_after_cost_and_needs_data(chain: Make) -> None:
    state = chain()
    state.workload = None
    assert "needs data" in str(Explore().requires(state))
    assert Explore().needs_data == "explore"
    bare = State(original=state.original, graph=state.graph)
    assert Explore().requires(bare) == "run couple first"
    bare.uncut = bare.graph
    assert "already cut" in str(Explore().requires(bare))


def test_a_latency_table_is_a_cost_like_any(explored: Explored, chain: Make) -> None:
    from pruneopt.passes.analysis.cost.latency_measure import measure_table

    state = chain((8, 12))
    plain = state.need_cost()
    table: LatencyTable = measure_table(plain, points=3, repeats=1)
    state.cost = CostModel(plain.graph, plain.coupling, latency=table)
    _, outcome = explored(state=state, against=("latency", "flops"), population=8, candidates=16)
    assert all(point.costs["latency"] > 0 for point in outcome.front)
