"""Tuned tiles: the fastest by a clock that the test sets, kept in a file, and refused where they
are not for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from pruneopt.kernels.tiles import Precision

pytest.importorskip("triton")

from pruneopt.errors import UserError
from pruneopt.kernels import tuning
from pruneopt.kernels.tiles import Tile, conv_tile, depthwise_tile
from pruneopt.kernels.window import Window

CPU = torch.device("cpu")
POINT = Window(14, 14)
THREE = Window(14, 14, (3, 3), (2, 2), (1, 1))
FIELDS = ("rows", "columns", "depth", "warps", "stages")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tuning.VARIABLE, raising=False)


@pytest.mark.parametrize("architecture", [80, 86, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_default_is_the_table(
    architecture: int, dtype: torch.dtype, precision: Precision
) -> None:
    """Also for widths and shares of a group that are no powers of two."""
    for n_out, n_in, groups in (
        (1, 3, 1),
        (17, 64, 1),
        (64, 65, 1),
        (65, 31, 1),
        (300, 129, 1),
        (96, 96, 4),
    ):
        problem = tuning.Problem.of(n_out, n_in, THREE, groups, dtype, precision)
        assert problem.default(architecture) == conv_tile(
            n_out, n_in, dtype, architecture, precision, groups
        )
    for channels in (1, 17, 65, 400):
        problem = tuning.Problem.of(channels, channels, THREE, 0, dtype, precision)
        assert problem.default(architecture) == depthwise_tile(channels, architecture)


def test_what_shares_a_tile() -> None:
    of = tuning.Problem.of
    assert of(65, 33, THREE, 1, torch.bfloat16) == of(128, 64, THREE, 1, torch.bfloat16, "tf32")
    names = {
        str(of(65, 33, window, groups, dtype, precision))
        for window in (POINT, THREE)
        for groups in (0, 1, 2)
        for dtype in (torch.float32, torch.bfloat16)
        for precision in ("ieee", "tf32")
    }
    # Precision says nothing of half precision and of depthwise convolutions.
    assert len(names) == 2 * (2 + 2 * 3)


def test_the_fastest_tile_is_taken() -> None:
    problem = tuning.Problem.of(128, 64, THREE, 1, torch.bfloat16)
    default, *others = tuning.configurations(problem, 90)
    assert len(others) >= 3
    fast, broken = others[1], others[0]

    def measure(tile: Tile) -> float:
        if tile == broken:
            raise RuntimeError("out of resource: shared memory\nand more")
        return 1e-6 if tile == fast else 2e-6

    choice = tuning.choose(problem, 90, measure)
    assert choice.tile == fast
    assert choice.failed == {broken: "RuntimeError: out of resource: shared memory"}
    assert choice.seconds[default] == 2e-6
    # A difference that is noise leaves the default.
    assert tuning.choose(problem, 90, lambda tile: 0.99 if tile == fast else 1.0).tile == default


def test_a_default_that_does_not_run_is_told() -> None:
    def measure(tile: Tile) -> float:
        raise RuntimeError("no such device")

    with pytest.raises(
        UserError,
        match=r"the default tile of conv 64 to 128, 9 taps, .* does not run: RuntimeError",
    ):
        tuning.choose(tuning.Problem.of(128, 64, THREE, 1, torch.bfloat16), 90, measure)


def saved(path: Path, **changed: str) -> tuning.Problem:
    """A file for this machine in which the slowest configuration of the table is the fastest."""
    problem = tuning.Problem.of(128, 64, THREE, 1, torch.bfloat16)
    tiles = tuning.configurations(problem, 90)
    choice = tuning.choose(problem, 90, lambda tile: float(len(tiles) - tiles.index(tile)))
    tuning.save(path, tuning.device_key(CPU) | changed, {problem: choice})
    assert choice.tile == tiles[-1] != tiles[0]
    return problem


def test_tiles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.json"
    problem = saved(path)
    assert [item.name for item in tmp_path.iterdir()] == ["tiles.json"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tuning.tuned_tiles(CPU, path)
        assert found.get(problem) == tuning.configurations(problem, 90)[-1]
        assert found.get(tuning.Problem.of(16, 16, POINT, 1, torch.bfloat16)) is None
        assert tuning.tuned_tiles(CPU).get(problem) is None
        monkeypatch.setenv(tuning.VARIABLE, str(path))
        assert tuning.tuned_tiles(CPU).get(problem) == found.get(problem)


@pytest.mark.parametrize("name", ["device", "capability", "triton"])
def test_tiles_of_another_machine_are_ignored(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    problem = saved(path, **{name: "another"})
    with pytest.warns(
        RuntimeWarning, match=rf"are ignored: .*tiles.json is for {name} 'another', and this is"
    ):
        assert tuning.tuned_tiles(CPU, path).get(problem) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot read the file"),
        ("{", "is no file of tuned tiles"),
        ("[]", "is no file of tuned tiles"),
        (
            json.dumps({"format": 9, "for": {}, "tiles": {}}),
            "has format 9 instead of 1: tune again",
        ),
        (
            json.dumps({"format": 1, "for": {}, "tiles": {"a": {"tile": {"rows": 3}}}}),
            "is no file of tuned tiles",
        ),
        (
            json.dumps(
                {"format": 1, "for": {}, "tiles": {"a": {"tile": dict.fromkeys(FIELDS, 3)}}}
            ),
            "powers of two",
        ),
    ],
)
def test_files_that_cannot_be_used_are_ignored(text: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    if text is not None:
        path.write_text(text)
    with pytest.warns(RuntimeWarning, match=f"tuned tiles are ignored: .*{told}"):
        assert tuning.tuned_tiles(CPU, path).tiles == {}
