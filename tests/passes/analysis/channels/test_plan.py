"""Plans as files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.plan import load_plan, save_plan
from pruneopt.passes.analysis.couple import couple


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    return couple(capture(model.eval(), (torch.randn(2, 3, 4, 4),)))


def write(path: Path, **changes: Any) -> Path:
    data = {
        "format": "pruneopt-plan",
        "version": 1,
        "network": "n",
        "groups": {},
        "meta": {},
    } | changes
    path.write_text(json.dumps(data))
    return path


def test_round_trip(coupling: Coupling, tmp_path: Path) -> None:
    plan = {"0": np.array([0, 1, 3, 4, 5, 7]), "1": np.array([2, 6])}
    save_plan(tmp_path / "plan.json", plan, coupling, {"seed": 3})
    loaded = load_plan(tmp_path / "plan.json", coupling)
    assert list(loaded) == list(plan)
    assert all(np.array_equal(loaded[name], kept) for name, kept in plan.items())
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["groups"]["0"] == {"width": 8, "keep": [[0, 2], [3, 6], [7, 8]]}
    assert data["meta"] == {"seed": 3}
    assert data["network"] == coupling.graph.name


def test_full_plan_and_left_out_groups(coupling: Coupling, tmp_path: Path) -> None:
    save_plan(tmp_path / "plan.json", coupling.full_plan(), coupling)
    loaded = load_plan(tmp_path / "plan.json", coupling)
    assert all(len(kept) == coupling.group(name).width for name, kept in loaded.items())
    assert load_plan(write(tmp_path / "empty.json"), coupling) == {}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"0": np.array([], dtype=int)}, "removes every channel of group 0"),
        ({"0": np.array([0, 8])}, "does not have"),
        ({"0": np.array([0, 1])}, "must be equal"),
        ({"9": np.array([0])}, "no channel group '9'"),
        ({"3": np.array([0])}, "cannot be pruned: model output"),
    ],
)
def test_an_impossible_plan_is_not_written(
    coupling: Coupling, tmp_path: Path, plan: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        save_plan(tmp_path / "plan.json", plan, coupling)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"width": 16, "keep": [[0, 8]]}, "width 16, here it has 8; it belongs to another network"),
        ({"keep": [[0, 8]]}, "width None, here it has 8"),
        ([0, 8], "must be written as"),
        ({"width": 8}, "must be written as"),
        ({"width": 8, "keep": [[0, 9]]}, r"keeps \[0, 9\], which is no range"),
        ({"width": 8, "keep": [[4, 5], [0, 1]]}, "in ascending order"),
        ({"width": 8, "keep": [[3, 3]]}, "no range"),
        ({"width": 8, "keep": [[0.5, 3]]}, "no range"),
        ({"width": 8, "keep": [[True, 3]]}, "no range"),
        ({"width": 8, "keep": [3]}, "no range"),
        ({"width": 8, "keep": []}, "removes every channel"),
        ({"width": 8, "keep": [[0, 3]]}, "must be equal"),
    ],
)
def test_a_wrong_group(coupling: Coupling, tmp_path: Path, group: object, message: str) -> None:
    path = write(tmp_path / "plan.json", groups={"0": group})
    with pytest.raises(UserError, match=message) as caught:
        load_plan(path, coupling)
    assert str(path) in str(caught.value)


def test_a_plan_of_another_network(coupling: Coupling, tmp_path: Path) -> None:
    path = write(tmp_path / "plan.json", groups={"layer1": {"width": 8, "keep": [[0, 8]]}})
    with pytest.raises(
        UserError, match=r"names the channel group 'layer1', which .* it belongs to another network"
    ):
        load_plan(path, coupling)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is no plan"),
        ({"groups": []}, "is no plan"),
        ({"version": 2}, "version 2; this pruneopt reads version 1"),
    ],
)
def test_not_a_plan(
    coupling: Coupling, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_plan(write(tmp_path / "plan.json", **changes), coupling)


def test_unreadable_files(coupling: Coupling, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the plan"):
        load_plan(tmp_path / "none.json", coupling)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_plan(tmp_path / "bad.json", coupling)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="is no plan"):
        load_plan(tmp_path / "list.json", coupling)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not JSON"):
        load_plan(tmp_path / "binary.json", coupling)
