"""Names, patterns, and what may be asked of the widths of groups: every pass that decides keeps to
it, or says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.data import load_data
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.naming import groups_named, is_within
from pruneopt.passes.analysis.channels.plan import save_plan
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.result import Result


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """Groups: stem (the stream, 16), layer.0.conv1 and layer.1.conv1 (24), mix and grouped (3
    blocks of 4), fc."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.layer = nn.Sequential(Block(24), Block(24))
        self.mix, self.mix_bn = nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12)
        self.grouped, self.grouped_bn = (
            nn.Conv2d(12, 12, 3, padding=1, groups=3),
            nn.BatchNorm2d(12),
        )
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(F.relu(self.bn(self.stem(x))))
        x = F.relu(self.grouped_bn(self.grouped(F.relu(self.mix_bn(self.mix(x))))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return pruneopt.capture(Net().eval(), torch.randn(2, 1, 8, 8))


@pytest.fixture(scope="module")
def coupling(graph: Graph) -> Coupling:
    return couple(graph)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_data("digits?subval=60&calibration=60&limit=300", input_shape=(1, 1, 8, 8))


def widths(result: Result) -> dict[str, int]:
    assert result.plan is not None
    return {name: len(kept) for name, kept in result.plan.items()}


def run(graph: Graph, text: str, **given: Any) -> Result:
    return pruneopt.PassManager.parse(f"couple,cost,{text},slice,verify").run(graph, **given)


# Names


@pytest.mark.parametrize(
    ("name", "wanted", "inside"),
    [
        ("layer4.0.conv1.weight", "layer4", True),
        ("layer4.0.conv1.weight", "layer4.*", True),
        ("layer4.0.conv1.weight", "*.conv1", True),
        ("layer4.0.conv1.weight", "layer?.0", True),
        ("layer4.0.conv1.weight", "layer4.0.conv", False),
        ("layer4.0.conv1.weight", "conv1", False),
        ("layer40.weight", "layer4", False),
        ("a[0].weight", "a[0]", True),
    ],
)
def test_patterns(name: str, wanted: str, inside: bool) -> None:
    assert is_within(name, wanted) is inside


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("stem", ["stem"]),
        ("layer", ["stem", "layer.0.conv1", "layer.1.conv1"]),
        ("layer.0.conv2", ["stem"]),
        ("*.conv1", ["layer.0.conv1", "layer.1.conv1"]),
        ("layer.1.bn1.weight", ["layer.1.conv1"]),
        ("*mix*", ["mix"]),
        ("*", ["stem", "layer.0.conv1", "layer.1.conv1", "mix", "grouped", "fc"]),
    ],
)
def test_what_a_name_stands_for(coupling: Coupling, name: str, groups: list[str]) -> None:
    assert [group.name for group in groups_named(coupling, name, "--width")] == groups


def test_patterns_are_ignored_by(graph: Graph) -> None:
    result = run(graph, "uniform{budget=60%FLOPs}", ignore=["*.conv1", "grouped"])
    found = widths(result)
    assert "layer.0.conv1" not in found
    assert found["stem"] < 16


# Every pass that decides


ASKED: dict[str, Any] = {"width": {"stem": 11}, "max_ratio": {"*.conv1": 0.25}, "tie": ["*.conv1"]}


@pytest.mark.parametrize(
    "text",
    [
        "l1",
        "prune{scope=local}",
        "uniform{round-to=4}",
        "random",
        "prune{criterion=random}",
        "hrank{images=8}",
        "slimming{recipe=sgd{epochs=1 lr=0.01}}",
        "greg1{scope=coupled regulariser=growing{iterations=6 interval=2} recipe=sgd{lr=0.02 "
        "batch-size=64}}",
        "abn{candidates=3}",
        pytest.param("abn{searcher=evolution{population=4 iterations=2}}", marks=pytest.mark.slow),
    ],
)
def test_every_pass_keeps_to_what_was_asked(graph: Graph, workload: Workload, text: str) -> None:
    result = run(graph, text, budgets=["60%FLOPs"], workload=workload, **ASKED)
    found = widths(result)
    assert found["stem"] == 11
    assert 24 > found["layer.0.conv1"] == found["layer.1.conv1"] >= 18
    assert result.budgets[0].share <= 1


def test_without_being_asked_the_widths_are_others(graph: Graph) -> None:
    found = widths(run(graph, "l1{budget=55%FLOPs}"))
    assert found["stem"] != 11
    assert found["layer.0.conv1"] != found["layer.1.conv1"]


def test_one_share_for_all_and_others_for_some(graph: Graph) -> None:
    found = widths(
        run(graph, "uniform{budget=40%FLOPs}", max_ratio=["0.25", "layer.*=0.9", "stem=0"])
    )
    assert found["stem"] == 16
    assert found["mix"] >= 9
    assert found["grouped"] >= 9
    assert 3 <= found["layer.0.conv1"] < 12


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"width": {"layr": 3}},
            r"--width layr: no parameter, module or channel group has this name: did you mean "
            r"layer",
        ),
        ({"width": {"stem": 17}}, r"--width stem=17: group stem may keep 1 to 16 channels"),
        ({"width": ["mix=4"]}, r"--width mix=4: group mix may keep 3, 6, 9, 12 channels"),
        ({"width": {"fc": 3}}, r"--width fc=3: group fc keeps all its channels: model output"),
        (
            {"width": "stem"},
            r"--width stem: write a group and how many channels it keeps, such as layer1=64",
        ),
        (
            {"width": {"stem": 0}},
            r"--width stem=0: a group keeps a whole number of channels, at least 1",
        ),
        (
            {"max_ratio": 1.0},
            r"--max-ratio 1: the largest share that a group loses is at least 0 and below 1",
        ),
        (
            {"max_ratio": "stem=x"},
            r"--max-ratio stem=x: write a share, such as 0.7, or one for a group",
        ),
        (
            {"max_ratio": {"conv7": 0.5}},
            r"--max-ratio conv7: no parameter, module or channel group",
        ),
        (
            {"width": {"stem": 4}, "max_ratio": 0.5},
            r"--width stem=4 and --max-ratio 0.5 contradict each other for group stem",
        ),
        (
            {"tie": ["stem,mix"]},
            r"--tie stem,mix: groups that are equally wide in the result must be so now, but stem "
            r"has 16",
        ),
        ({"tie": "stem"}, r"--tie stem is about only group stem: name two groups or more"),
        (
            {"tie": [("stem", "fc")]},
            r"--tie stem,fc: group fc keeps all its channels: model output",
        ),
        (
            {"tie": ["mix,grouped"], "width": {"mix": 6, "grouped": 9}},
            r"the groups mix, grouped are tied, but one must",
        ),
    ],
)
def test_refused(graph: Graph, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(graph, "l1{budget=60%FLOPs}", **given)


def test_a_plan_from_elsewhere_is_held_to_it_too(
    graph: Graph, coupling: Coupling, tmp_path: Path
) -> None:
    save_plan(tmp_path / "plan.json", {**coupling.full_plan(), "stem": np.arange(5)}, coupling)
    text = f"plan{{file={tmp_path / 'plan.json'}}}"
    with pytest.raises(
        UserError,
        match=r"the plan keeps 5 channels of group stem, and --max-ratio 0.5 allows 8 to 16",
    ):
        run(graph, text, max_ratio=0.5)
    save_plan(
        tmp_path / "plan.json", {**coupling.full_plan(), "mix": np.array([0, 4, 8])}, coupling
    )
    with pytest.raises(
        UserError,
        match=r"the plan keeps 3 of mix, 12 of grouped, and --tie mix,grouped asks for equal",
    ):
        run(graph, text, tie=["mix,grouped"])


def test_single_weights_change_no_width(graph: Graph) -> None:
    with pytest.raises(
        UserError, match=r"the plan keeps 16 channels of group stem, and --width stem=8 allows 8"
    ):
        run(graph, "l1{granularity=weight budget=50%params}", width={"stem": 8})
