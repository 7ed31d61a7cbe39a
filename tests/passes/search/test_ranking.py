"""How candidates are compared: the published reward to its printed digits, latency limits,
functions of the user."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_table import LatencyTable, LayerTimes
from pruneopt.passes.evaluation.evaluate import Evaluation
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.outcome import Candidate, Finalist, Outcome
from pruneopt.passes.search.rankings.function import Function
from pruneopt.passes.search.rankings.ranking import (
    Accuracy,
    AccuracyUnderLatency,
    Measured,
    Reward,
    reward,
)
from pruneopt.passes.search.search_loop import JOURNAL

Chain = Callable[[Sequence[int]], State]
Run = Callable[..., tuple[State, Outcome]]


@pytest.fixture(scope="module")
def timed(chain: Chain) -> CostModel:
    """Forty channels between two layers; a tenth of a millisecond for each of them in both."""
    coupling = chain([40]).need_coupling()
    grid = np.array([1, 40])
    conv = LayerTimes(np.array([3]), grid, np.array([[1e-4, 4e-3]]))
    head = LayerTimes(grid, np.array([5]), np.array([[1e-4], [4e-3]]))
    return CostModel(
        coupling.graph, coupling, latency=LatencyTable("chain", 1, "cpu", 1, {"0": conv, "2": head})
    )


def measured(cost: CostModel, score: float, width: int) -> Measured:
    return Measured(score, np.array([width]), cost)


# The reward


@pytest.mark.parametrize(
    ("accuracy", "flops", "accuracy_base", "flops_base", "value"),
    [
        # ResNet-50, the largest of the released log; and MobileNetV2's, found with ResNet-50's
        # F_base.
        (55.29, 1956.75, 70.6, 4100, 15.730),
        (54.26, 203.5, 70.6, 4100, 56.0624),
    ],
)
def test_the_reward_of_the_released_logs(
    accuracy: float, flops: float, accuracy_base: float, flops_base: float, value: float
) -> None:
    found = reward(accuracy, flops, accuracy_base, flops_base)
    assert round(found, len(str(value).partition(".")[2])) == value


def test_logged_rewards_lie_where_rounded_inputs_allow() -> None:
    """The log prints 15.738 and 56.0626 beside accuracies of two digits."""
    for logged, accuracy, flops, digits in (
        (15.738, 55.29, 1956.75, 0.005),
        (56.0626, 54.26, 203.5, 0.05),
    ):
        low = reward(accuracy - 0.005, flops + digits, 70.6, 4100)
        high = reward(accuracy + 0.005, flops - digits, 70.6, 4100)
        assert low < logged < high


def test_the_scripts_constant_does_not_give_the_log() -> None:
    """MobileNetV2's script says F_base = 314, which makes the logged structure worth a seventh of
    what the log says."""
    assert round(reward(54.26, 203.5, 70.6, 314), 2) == 8.10


def test_at_the_cap_accuracy_does_not_count() -> None:
    """MobileNetV1's script: F_base = 330 is also the cap."""
    assert [abs(reward(accuracy, 330, 69.76, 330)) for accuracy in (1.0, 50.0, 69.0)] == [0, 0, 0]
    assert reward(50.0, 329, 69.76, 330) > 0 > reward(50.0, 331, 69.76, 330)


def elasticity(accuracy: float, flops: float, flops_base: float) -> tuple[float, float]:
    """Percent of reward for one point of accuracy, and for one percent less FLOPs, at the
    margin."""
    step = 1e-6
    here = reward(accuracy, flops, 70.6, flops_base)
    by_accuracy = (reward(accuracy + step, flops, 70.6, flops_base) - here) / here / step
    by_flops = (reward(accuracy, flops * (1 - step), 70.6, flops_base) - here) / here / step
    return 100 * by_accuracy, by_flops


def test_what_accuracy_and_flops_are_worth() -> None:
    point, cut = elasticity(55, 2000, 4100)
    assert round(point, 1) == 12.8
    assert round(cut, 1) == 1.4
    assert round(cut / point, 2) == 0.11
    assert round(elasticity(54, 200, 4100)[1], 2) == 0.33
    assert round(elasticity(54, 200, 314)[1], 1) == 2.2


def test_the_winner_is_pushed_to_the_lower_edge() -> None:
    """At the margin of ResNet-50's window an accuracy point outweighs 9 % of the FLOPs, and no
    more."""
    assert reward(55, 1950, 70.6, 4100) > reward(55, 2050, 70.6, 4100)
    assert reward(55, 1950, 70.6, 4100) > reward(55.3, 2050, 70.6, 4100)
    assert reward(55, 1950, 70.6, 4100) < reward(56, 2050, 70.6, 4100)


@pytest.mark.parametrize("accuracy", [70.6, 70.7, 100.0])
def test_at_the_pole_and_beyond_there_is_no_reward(accuracy: float) -> None:
    with pytest.raises(
        UserError, match=rf"a candidate reaches {accuracy:.2f} %, not below accuracy-base=70\.6"
    ) as error:
        reward(accuracy, 100, 70.6, 200)
    assert "give a larger accuracy-base" in str(error.value)


def test_the_ranking_is_the_reward_of_percent_and_flops(timed: CostModel) -> None:
    flops = 3 * 20 + 20 * 5
    assert Reward().fitness(measured(timed, 0.5, 20)) == reward(50, flops, 101, 320)
    given = Reward(accuracy_base=70.6, flops_base=0.001, exponent=1.5)
    assert given.fitness(measured(timed, 0.5, 20)) == reward(50, flops, 70.6, 1000, 1.5)
    assert given.fitness(measured(timed, 0.5, 20)) == pytest.approx(
        (70.6 / 20.6) ** 1.5 * math.log(1000 / flops)
    )
    # Better and smaller is better; the perfect score is not at the pole of the default.
    values = [
        Reward().fitness(measured(timed, *item))
        for item in ((0.5, 20), (0.6, 20), (0.6, 10), (1.0, 10))
    ]
    assert values == sorted(values)
    with pytest.raises(UserError, match=r"reaches 80\.00 %"):
        given.fitness(measured(timed, 0.8, 20))


@pytest.mark.parametrize(
    ("flops_base", "budgets", "fine"),
    [
        (None, ["50%FLOPs"], True),
        (None, ["100%FLOPs"], True),
        (None, ["50%params"], True),
        (0.0002, ["50%FLOPs"], True),
        (0.000161, ["50%FLOPs"], True),
        (0.00016, ["50%FLOPs"], False),
        (0.0001, ["50%FLOPs"], False),
        (0.0002, ["50%params"], False),
        (0.00032, ["50%params"], True),
        (0.0002, ["80%FLOPs", "50%FLOPs"], True),
        (0.0002, ["1kFLOPs"], False),
    ],
)
def test_a_base_below_the_budget_is_refused(
    timed: CostModel, flops_base: float | None, budgets: list[str], fine: bool
) -> None:
    """The network costs 320 FLOPs."""
    ranking, parsed = Reward(flops_base=flops_base), [parse_budget(text) for text in budgets]
    if fine:
        ranking.check(timed, parsed)
        return
    with pytest.raises(
        UserError,
        match=r"flops-base=.* \(MFLOPs\) is not above what candidates may cost .*larger one",
    ):
        ranking.check(timed, parsed)


def test_it_is_refused_before_anything_is_judged(
    search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluation, "__init__", lambda *args: pytest.fail("nothing may be judged"))
    with pytest.raises(UserError, match=r"flops-base=0\.01 \(MFLOPs\) is not above"):
        search(tmp_path, ranking="reward{flops-base=0.01}")
    assert not (tmp_path / JOURNAL).exists()


@pytest.mark.parametrize("wrong", [{"accuracy_base": 0.0}, {"flops_base": -1.0}, {"exponent": 0.0}])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_impossible_constants(wrong: dict[str, float], value: float | None) -> None:
    given = {key: number if value is None else value for key, number in wrong.items()}
    with pytest.raises(UserError, match=r"must be (above 0|a number)"):
        Reward(**given)


# Accuracy, and accuracy under a latency


def test_accuracy_is_the_score(timed: CostModel) -> None:
    Accuracy().check(timed, [])
    assert Accuracy().fitness(measured(timed, 0.25, 20)) == 0.25
    assert Accuracy().source() == ""


def test_within_the_limit_the_score_decides_and_beyond_it_the_time(timed: CostModel) -> None:
    ranking = AccuracyUnderLatency(limit=4.1)
    ranking.check(timed, [])
    assert [measured(timed, 0, width).cost("latency") for width in (20, 21, 40)] == [
        4e6,
        4.2e6,
        8e6,
    ]
    ranked = [
        (0.9, 20),
        (0.8, 5),
        (0.1, 20),
        (-5.0, 20),
        (0.99, 21),
        (0.2, 21),
        (1.0, 30),
        (0.0, 40),
    ]
    fitness = [ranking.fitness(measured(timed, *item)) for item in ranked]
    assert fitness == sorted(fitness, reverse=True)
    assert fitness[4] == fitness[5], "of equally slow ones the score does not count"
    assert fitness[:4] == [0.9, 0.8, 0.1, -5.0]


def test_without_a_table_there_is_no_latency(chain: Chain) -> None:
    with pytest.raises(UserError, match="needs a latency table"):
        AccuracyUnderLatency(limit=1).check(chain([8]).need_cost(), [])


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_is_needed(limit: float) -> None:
    with pytest.raises(UserError, match="give the limit in milliseconds, such as limit=4"):
        AccuracyUnderLatency(limit=limit)


# Functions of the user

FILE = """
from helper import weight
def good(measured):
    return weight * measured.score - measured.cost("flops") / measured.full("flops")
def shape(measured):
    return int(measured.widths.sum())
def text(measured):
    return "much"
def nothing(measured):
    return float("nan")
def truth(measured):
    return True
def broken(measured):
    ratio = 1 / 0
    return ratio
def costly(measured):
    return measured.cost("watts")
number = 3
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """A file of ranking functions, with a module beside it."""
    (tmp_path / "helper.py").write_text("weight = 10\n", encoding="utf-8")
    path = tmp_path / "ranks.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_function_from_a_file(ranks: Path, timed: CostModel) -> None:
    ranking = Function(f"{ranks}:good")
    ranking.check(timed, [])
    assert ranking.fitness(measured(timed, 0.5, 20)) == 10 * 0.5 - 0.5
    assert Function(f"{ranks}:shape").fitness(measured(timed, 0.5, 20)) == 20.0
    assert "helper" not in sys.modules


def test_a_function_from_a_module(
    ranks: Path, timed: CostModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ranks.parent))
    for name in ("helper", "ranks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert Function("ranks:good").fitness(measured(timed, 0.5, 20)) == 4.5
    with pytest.raises(
        UserError, match=r"ranks\.py line 14 raised ZeroDivisionError while a candidate was ranked"
    ):
        Function("ranks:broken").fitness(measured(timed, 0.5, 20))
    assert Function("ranks:good").source() == Function(f"{ranks}:good").source() != ""
    for name in ("helper", "ranks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert Function("builtins:hash").source() == ""
    with pytest.raises(UserError, match="builtins raised TypeError while a candidate was ranked"):
        Function("builtins:abs").fitness(measured(timed, 0.5, 20))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", r"ranks\.py:text must return a finite number, not 'much'"),
        ("nothing", r"must return a finite number, not nan"),
        ("truth", r"must return a finite number, not True"),
        (
            "broken",
            r"ranks\.py line 14 raised ZeroDivisionError while a candidate was ranked: division by "
            r"zero",
        ),
        ("costly", r"there is no cost unit 'watts'"),
    ],
)
def test_what_a_function_may_not_do(ranks: Path, timed: CostModel, name: str, message: str) -> None:
    ranking = Function(f"{ranks}:{name}")
    ranking.check(timed, [])
    with pytest.raises(UserError, match=message) as error:
        ranking.fitness(measured(timed, 0.5, 20))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "must name a function as module:function or file.py:function"),
        ("ranks", "must name a function"),
        (":good", "must name a function"),
        ("ranks.py:", "must name a function"),
    ],
)
def test_paths_that_name_nothing(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Function(path)


def test_functions_that_cannot_be_loaded(ranks: Path, timed: CostModel) -> None:
    wrong = {
        f"{ranks.parent}/missing.py:good": r"there is no file .*missing\.py",
        f"{ranks}:godo": r"ranks\.py has no function 'godo'",
        f"{ranks}:number": r"ranks\.py:number is no function",
        "no_such_module_here:good": r"no_such_module_here:good cannot be loaded: No module named "
        r".*file\.py:function",
        "json:nothing_there": r"json has no function 'nothing_there'",
    }
    (ranks.parent / "typo.py").write_text("def f(:\n", encoding="utf-8")
    wrong[f"{ranks.parent}/typo.py:f"] = r"typo\.py line 1 is not valid Python"
    (ranks.parent / "falls.py").write_text("raise OSError('no disk')\n", encoding="utf-8")
    wrong[f"{ranks.parent}/falls.py:f"] = (
        r"falls\.py line 1 raised OSError while falls\.py was imported: no disk"
    )
    for path, message in wrong.items():
        with pytest.raises(UserError, match=message) as error:
            Function(path).check(timed, [])
        assert "\n" not in str(error.value)


def test_numbers_of_numpy_count(ranks: Path, timed: CostModel) -> None:
    ranks.write_text(
        "import numpy\ndef f(measured):\n    return numpy.float32(0.5)\n", encoding="utf-8"
    )
    value = Function(f"{ranks}:f").fitness(measured(timed, 0.5, 20))
    assert (value, type(value)) == (0.5, float)


# In a search


def test_a_search_takes_the_fittest_and_says_by_what(search: Run, ranks: Path) -> None:
    told: list[str] = []
    state, outcome = search(
        ranking=f"function{{path={ranks}:good}}",
        finetune_epochs=0,
        progress=lambda text, *_: told.append(text),
    )
    cost = state.need_cost()
    for item in outcome.candidates:
        widths = np.array([item.widths[name] for name in cost.groups])
        share = float(cost.measure("flops", widths)) / float(cost.measure("flops", cost.full))
        assert item.fitness == pytest.approx(10 * item.score - share)
    assert outcome.winner.fitness == max(item.fitness for item in outcome.candidates)
    assert outcome.ranked_by == "function"
    assert f"(function {outcome.winner.fitness:.4g})" in told[-1]


def test_another_function_is_another_search(search: Run, ranks: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "ranking": f"function{{path={ranks}:good}}",
        "candidates": 1,
        "finetune_epochs": 0,
    }
    search(tmp_path / "run", **options)
    search(tmp_path / "run", **options)
    ranks.write_text(FILE.replace("weight *", "2 * weight *"), encoding="utf-8")
    with pytest.raises(UserError, match=r"belongs to another search \(the options differ\)"):
        search(tmp_path / "run", **options)


def test_finalists_are_compared_by_the_ranking_too(search: Run) -> None:
    """A reward that gives accuracy no weight takes the smallest finalist, whatever training makes
    of it."""
    state, outcome = search(ranking="reward{exponent=0.000001}", candidates=4)
    cost = state.need_cost()
    flops = {
        item.index: float(
            cost.measure("flops", np.array([item.widths[name] for name in cost.groups]))
        )
        for item in outcome.candidates
    }
    assert outcome.winner.index == min(outcome.finalists, key=lambda item: flops[item.index]).index
    assert {item.index for item in outcome.finalists} == set(
        sorted(flops, key=lambda index: flops[index])[:2]
    )


def test_scores_that_are_no_numbers_never_win() -> None:
    def candidate(index: int, fitness: float) -> Candidate:
        return Candidate(index, {"a": index + 1}, fitness, fitness, None, 1, 0.0)

    nan = float("nan")
    outcome = Outcome(
        "", "", "", [candidate(0, nan), candidate(1, 0.2), candidate(2, nan), candidate(3, 0.4)]
    )
    assert [item.index for item in outcome.ranking] == [3, 1, 0, 2]
    outcome.finalists = [Finalist(3, 0.1, nan, nan, 0.0), Finalist(1, 0.1, 0.3, 0.3, 0.0)]
    assert outcome.winner.index == 1


# The latency table is part of what a search is


def test_another_latency_table_is_another_search(
    search: Run, trained: Any, tmp_path: Path, workload: Any
) -> None:
    from pruneopt.passes.analysis.cost.latency_table import timed_layers
    from pruneopt.passes.manager import PassManager

    def write(factor: float) -> None:
        layers = {}
        for layer in timed_layers(trained):
            full = [value.type.shape()[axis] for value, axis in (layer.input, layer.output)]
            grids = [sorted({1, size}) for size in full]
            seconds = [[factor * 1e-6 * a * b for b in grids[1]] for a in grids[0]]
            layers[layer.name] = {"inputs": grids[0], "outputs": grids[1], "seconds": seconds}
        head = {
            "format": "pruneopt-latency",
            "version": 1,
            "network": "net",
            "batch": 1,
            "device": "cpu",
            "threads": 1,
        }
        (tmp_path / "table.json").write_text(
            json.dumps({**head, "layers": layers}), encoding="utf-8"
        )

    text = (
        f"couple,cost{{latency={tmp_path}/table.json}},abn{{candidates=2 calibration-batches=1 "
        "batch-size=32 "
        "subval-limit=64 finetune-epochs=0 ranking=accuracy-under-latency{limit=1000}}"
    )

    def run() -> Any:
        passes = PassManager.parse(text)
        return passes.run(
            trained, workload=workload, budgets=["50%latency"], run_dir=tmp_path / "run"
        )

    write(1.0)
    first = run()
    assert run().records["abn"].winner == first.records["abn"].winner
    assert first.budgets[0].share <= 1
    write(1.5)
    with pytest.raises(UserError, match=r"belongs to another search \(the options differ\)"):
        run()
