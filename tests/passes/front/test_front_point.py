"""A point of a front as a plan: exactly the widths and channels that were judged, or one sentence
why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pruneopt.errors import BudgetError, UserError
from pruneopt.passes.front.explore import Explore
from pruneopt.passes.front.front_file import FRONT, front_data, load_front
from pruneopt.passes.front.front_outcome import FrontOutcome
from pruneopt.passes.front.front_point import FrontPoint
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.evaluators.evaluator import AdaptiveStatistics
from pruneopt.passes.selection.select import keep_best
from pruneopt.passes.transform.recalibrate import Recalibrate

Make = Callable[..., State]
WIDTHS = (8, 12, 12)


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, chain: Make, formula: Any
) -> tuple[Path, State, FrontOutcome]:
    """A front in a folder, with the state and the outcome."""
    folder, state = tmp_path_factory.mktemp("front"), chain(WIDTHS)
    explore = Explore(candidates=16, population=8, evaluator=formula())
    explore.run(state)
    outcome = state.records["explore"]
    assert isinstance(outcome, FrontOutcome)
    (folder / FRONT).write_text(json.dumps(front_data(outcome, state, explore, "couple,cost")))
    return folder, state, outcome


def test_every_point_keeps_the_channels_that_were_judged(
    found: tuple[Path, State, FrontOutcome], chain: Make
) -> None:
    folder, searched, outcome = found
    scores = Explore().space(searched, 0).scores
    for point in outcome.front:
        assert point.number is not None
        state = chain(WIDTHS)
        FrontPoint(str(folder), point.number).run(state)
        assert state.plan is not None
        widths = [point.tried.widths[name] for name in outcome.cost.groups]
        assert state.need_cost().widths(state.plan).tolist() == widths
        wanted = keep_best(np.array(widths), scores, state.need_coupling(), outcome.cost)
        assert {name: kept.tolist() for name, kept in state.plan.items()} == {
            n: k.tolist() for n, k in wanted.items()
        }


def test_the_point_is_cut_and_proved_in_a_pipeline(found: tuple[Path, State, FrontOutcome]) -> None:
    folder, searched, outcome = found
    manager = PassManager.parse(f"couple,cost,front{{file={folder} point=1}},slice,verify")
    result = manager.run(searched.original)
    assert result.verification is not None
    assert result.verification.max_abs_error < 1e-9
    assert sum(p.numel() for p in result.module.parameters()) == outcome.front[0].costs["params"]


def test_the_file_or_its_folder_may_be_named(found: tuple[Path, State, FrontOutcome]) -> None:
    folder = found[0]
    assert load_front(folder).data == load_front(folder / FRONT).data
    assert [step.name for step in FrontPoint(str(folder)).before()] == ["couple", "cost"]
    assert FrontPoint(str(folder)).finishing_passes() == []


def test_what_is_delivered_gets_the_statistics_of_what_was_judged(
    found: tuple[Path, State, FrontOutcome], tmp_path: Path
) -> None:
    _, state, outcome = found
    explore = Explore(evaluator=AdaptiveStatistics(calibration_batches=7, batch_size=33))
    (tmp_path / FRONT).write_text(json.dumps(front_data(outcome, state, explore, "couple,cost")))
    assert FrontPoint(str(tmp_path)).finishing_passes() == [
        Recalibrate(batches=7, batch_size=33, seed=0)
    ]


def test_groups_that_the_search_left_alone_keep_all(
    found: tuple[Path, State, FrontOutcome], tmp_path: Path
) -> None:
    folder, searched, _ = found
    data = json.loads((folder / FRONT).read_text())
    name = searched.need_cost().groups[0]
    for point in data["points"]:
        del point["widths"][name]
    (tmp_path / FRONT).write_text(json.dumps(data))
    plan = load_front(tmp_path).plan(1, searched.need_coupling())
    assert len(plan[name]) == searched.need_coupling().group(name).width


@pytest.mark.parametrize("number", [0, -1, 1000])
def test_an_unknown_point(found: tuple[Path, State, FrontOutcome], number: int) -> None:
    count = len(found[2].front)
    with pytest.raises(
        UserError, match=rf"there is no point {number} in .*, which has points 1 to {count}"
    ):
        FrontPoint(str(found[0]), number)


@pytest.mark.parametrize(
    ("widths", "seed", "differing"),
    [(WIDTHS, 3, "the weights differ"), ((8, 12, 14), 2, "the graph and the weights differ")],
)
def test_another_network_is_refused(
    found: tuple[Path, State, FrontOutcome],
    chain: Make,
    widths: tuple[int, ...],
    seed: int,
    differing: str,
) -> None:
    with pytest.raises(UserError, match=rf"belongs to another network \({differing}\)"):
        FrontPoint(str(found[0])).run(chain(widths, seed=seed))


def test_a_budget_of_the_run_holds(found: tuple[Path, State, FrontOutcome], chain: Make) -> None:
    folder, _, outcome = found
    with pytest.raises(BudgetError, match=r"more than the budget '1kFLOPs' allows"):
        FrontPoint(str(folder), len(outcome.front)).run(chain(WIDTHS, budgets=["1kFLOPs"]))


def broken(data: dict[str, Any], change: str) -> dict[str, Any]:
    name = next(iter(data["order"]))
    if change == "order":
        data["order"][name][0] = 99
    elif change == "name":
        data["points"][0]["widths"] = {"no_such_group": 3}
    elif change == "version":
        data["version"] = 99
    elif change == "format":
        data["format"] = "something"
    elif change == "before":
        data["before"] = 3
    else:
        del data[change]
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("order", "was found for other channel groups"),
        ("name", "was found for other channel groups"),
        ("version", "is a front of version 99; this pruneopt reads version 1"),
        ("format", "is no front"),
        ("points", "is damaged: it lacks points"),
        ("before", "is damaged: before must be a pipeline"),
    ],
)
def test_damaged_files(
    found: tuple[Path, State, FrontOutcome], chain: Make, tmp_path: Path, change: str, message: str
) -> None:
    data = json.loads((found[0] / FRONT).read_text())
    (tmp_path / FRONT).write_text(json.dumps(broken(data, change)))

    def cut() -> None:
        step = FrontPoint(str(tmp_path))
        step.before()
        step.run(chain(WIDTHS))

    with pytest.raises(UserError, match=message):
        cut()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the front"):
        load_front(tmp_path / "nothing.json")
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(UserError, match="is no front: it is not JSON"):
        load_front(tmp_path / "text.json")
