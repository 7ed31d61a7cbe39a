"""A model file may register passes and parts of its own: commands know them by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruneopt.passes.options import registry

Call = Callable[..., Any]

FILE = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from pruneopt.extend import Choose, Criterion, Given, State, option, register_part, register_pass
from pruneopt.extend import set_plan

model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
input_shape = (1, 1, 8, 8)


@register_pass
@dataclass(frozen=True)
class First(Choose):
    """Keep the first units of every group."""

    name: ClassVar[str] = "first"
    summary: ClassVar[str] = "keep the first units of every group"
    share: float = option(0.5, "of the units that stays")

    def run(self, state: State) -> bool:
        groups = state.need_coupling().free
        return set_plan(state, {g.name: np.arange(int(self.share * g.width)) for g in groups})


@register_part
@dataclass(frozen=True)
class Last(Criterion):
    """Later units matter more."""

    name: ClassVar[str] = "last"
    summary: ClassVar[str] = "the number of the unit"

    def score(self, given: Given) -> np.ndarray:
        return np.arange(len(given.coupling.unit_group), dtype=np.float64)
'''


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_registered", {})
    path = tmp_path / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def kept(out: Path) -> list[list[int]]:
    """The ranges of channels that the plan of a bundle keeps."""
    groups = json.loads((out / "plan.json").read_text(encoding="utf-8"))["groups"]
    (ranges,) = [entry["keep"] for entry in groups.values() if entry["width"] == 8]
    return list(ranges)


def test_compile_runs_a_pass_of_the_model_file(call: Call, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    words = ("--pass", "first{share=0.25}", "--budget", "90%FLOPs", "--out", out)
    assert call("compile", model, *words).code == 0
    assert kept(out) == [[0, 2]]


def test_compile_takes_a_part_of_the_model_file(call: Call, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    words = ("--pass", "prune{criterion=last}", "--budget", "50%FLOPs", "--out", out)
    assert call("compile", model, *words).code == 0
    assert kept(out) == [[4, 8]]


def test_search_knows_a_part_of_the_model_file(call: Call, model: Path) -> None:
    words = ("--criterion", "last", "--device", "nowhere")
    assert "--device nowhere cannot be used" in call("search", model, *words).sentence
    words = ("--criterion", "lsat", "--device", "nowhere")
    assert "did you mean last" in call("search", model, *words).err


def test_passes_shows_what_a_file_registers(call: Call, model: Path) -> None:
    done = call("passes", model)
    assert done.code == 0
    assert done.out.startswith("first: keep the first units of every group\n    share (float, 0.5)")
    assert "\nlast (criterion): the number of the unit" in done.out
    assert "l1" not in done.out
    assert call("passes", model, "first").out.count("first: keep") == 2


def test_a_file_that_registers_nothing(call: Call, model: Path) -> None:
    model.write_text("model = None\n")
    assert "registers no pass and no part: put @register_pass" in call("passes", model).sentence


def test_a_name_that_is_taken(call: Call, model: Path) -> None:
    model.write_text(FILE.replace('"first"', '"l1"'))
    done = call("compile", model, "--budget", "50%FLOPs")
    assert done.code == 2
    assert "two classes define a pass named 'l1': pruneopt." in done.sentence
    assert ":First; rename one" in done.sentence


def test_a_wrong_name_is_answered_with_what_the_file_has(call: Call, model: Path) -> None:
    done = call("compile", model, "--pass", "frist", "--budget", "50%FLOPs")
    assert done.code == 2
    assert "did you mean first" in done.err
