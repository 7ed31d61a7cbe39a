"""The directory of a result: whole before or after whatever kills its run, one run's at a time, and
nothing that is somebody else's is touched."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruneopt.errors import UserError
from pruneopt.files import seal
from pruneopt.manifest import Manifest, check_listed, claim
from pruneopt.passes.search.journal import Journal
from pruneopt.tools.bundle.bundle import LOCK, OutputDirectory

OLD = {"plan.json": "old plan", "model.py": "old model", "masks.safetensors": "old masks"}
NEW = {"plan.json": "new plan", "model.py": "new model", "model.onnx": "new onnx"}
RUN = {"passes": "couple, l1", "pipeline": "couple,l1", "seed": "0"}


def write(path: Path, content: dict[str, str], option: str = "") -> None:
    """Replace what lies in a directory."""
    with opened(path, option) as out, out.replacing() as folder:
        for name, text in content.items():
            (folder / name).write_text(text, encoding="utf-8")


def opened(path: Path, option: str) -> OutputDirectory:
    """Return a directory, not entered yet, with ``--force`` or ``--resume``."""
    return OutputDirectory(path, run=RUN, resume=option == "resume", force=option == "force")


def content(path: Path) -> dict[str, str]:
    """Return the files of a directory but the list of them."""
    return {
        file.name: file.read_text(encoding="utf-8")
        for file in path.iterdir()
        if file.name != "pruneopt.json"
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory with an earlier result."""
    write(tmp_path / "o", OLD)
    assert content(tmp_path / "o") == OLD
    return tmp_path / "o"


def dying(at: int, act: Callable[[], None]) -> Callable[..., None]:
    """Return an `os.replace` whose call of a number acts instead, of those outside of the list."""
    real, calls = os.replace, iter(range(1000))

    def replace(source: Path, target: Path) -> None:
        if Path(target).name != "pruneopt.json" and next(calls) == at:
            act()
        real(source, target)

    return replace


@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize("option", ["resume", "force"])
def test_killed_at_any_step_of_a_swap_the_next_run_finishes_it(
    out: Path, at: int, option: str
) -> None:
    child = os.fork()
    if child == 0:
        os.replace = dying(at, lambda: os._exit(9))
        write(out, NEW, "force")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.waitstatus_to_exitcode(status) == 9
    assert killed == (at < len(OLD) + len(NEW))
    if killed:
        with pytest.raises(UserError, match=r"half replaced, as its run was killed"):
            check_listed(out / "plan.json")
    with opened(out, option):
        assert {name: text for name, text in content(out).items() if name != LOCK} == NEW
    assert content(out) == NEW, "nothing is left over"
    found = Manifest.read(out)
    assert found is not None
    found.check(found.files)
    assert set(found.files) == set(NEW)


@pytest.mark.parametrize("at", range(len(OLD) + len(NEW)))
def test_a_swap_that_fails_puts_the_old_result_back(
    out: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def fail() -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", dying(at, fail))
    with pytest.raises(UserError, match="Permission denied"):
        write(out, NEW, "force")
    monkeypatch.undo()
    assert content(out) == OLD
    found = Manifest.read(out)
    assert found is not None
    found.check(found.files)
    assert set(found.files) == set(OLD)


@pytest.mark.parametrize("name", ["plan.json", "model.onnx", "search.jsonl"])
@pytest.mark.parametrize("option", ["force", "resume"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_has_one_of_our_names_and_is_not_ours_stays(
    out: Path, name: str, option: str, kind: str
) -> None:
    path = out / name
    path.unlink(missing_ok=True)
    if kind == "file":
        path.write_text("mine", encoding="utf-8")
    elif kind == "link":
        (out.parent / "mine").write_text(OLD["plan.json"], encoding="utf-8")
        path.symlink_to(out.parent / "mine")
    else:
        path.mkdir()
    before = path.lstat()
    with pytest.raises(UserError, match=f"{name} is not what pruneopt wrote there, and stays"):
        write(out, NEW, option)
    assert path.lstat() == before


def test_files_of_others_beside_ours_stay(out: Path) -> None:
    mine = {"notes.txt": "a", "best.ckpt": "b", "finetune.ckpt": "c", "weights.pth": "d"}
    for name, text in mine.items():
        (out / name).write_text(text, encoding="utf-8")
    for option in ("force", "resume"):
        write(out, NEW, option)
        assert content(out) == NEW | mine
    unlisted = pytest.raises(UserError, match=r"finetune.ckpt was not written by pruneopt")
    with OutputDirectory(out, run=RUN, force=True), unlisted:
        claim(out / "finetune.ckpt")
    assert content(out) == NEW | mine


def test_a_file_that_appears_while_a_run_works_stays(out: Path) -> None:
    def work() -> None:
        with OutputDirectory(out, run=RUN, force=True) as place, place.replacing() as folder:
            (folder / "model.onnx").write_text("new", encoding="utf-8")
            (out / "model.onnx").write_text("mine", encoding="utf-8")

    with pytest.raises(UserError, match=r"model.onnx is not what pruneopt wrote there"):
        work()
    assert content(out) == OLD | {"model.onnx": "mine"}


def states(out: Path) -> None:
    """Leave what a killed run leaves: a journal, and the state of a training."""
    with OutputDirectory(out, run=RUN, force=True):
        Journal(out / "search.jsonl", {"the seed": 0}).append({"index": 0})
        claim(out / "finetune.ckpt")
        torch.save({"a": 1}, out / "finetune.ckpt")
        seal(out / "finetune.ckpt")
        claim(out / "latency-round-2")
        (out / "latency-round-2").mkdir()
        Journal(out / "latency-round-2" / "search.jsonl", {"the seed": 0}).append({"index": 0})


def test_force_removes_the_states_of_an_earlier_run_and_resume_keeps_them(out: Path) -> None:
    states(out)
    left = {"search.jsonl", "finetune.ckpt", "latency-round-2"}
    with OutputDirectory(out, run=RUN, resume=True) as place:
        assert left <= {path.name for path in out.iterdir()}
        assert place.can_resume
    with pytest.raises(UserError, match=r"--resume continues its search"):
        write(out, NEW)
    with OutputDirectory(out, run=RUN, force=True) as place:
        assert not left & {path.name for path in out.iterdir()}
        assert not place.can_resume


def test_a_result_takes_the_states_of_trainings_with_it(out: Path) -> None:
    states(out)
    write(out, NEW, "resume")
    assert {path.name for path in out.iterdir()} == {
        *NEW,
        *("pruneopt.json", "search.jsonl", "latency-round-2"),
    }


def test_resume_says_how_the_run_differs(out: Path) -> None:
    for change, message in (
        ({"seed": "1"}, r"seed 0 there, 1 here"),
        ({"pipeline": "couple,l1{criterion=l2}"}, r"pipeline couple,l1 there, couple,l1\{crit"),
        ({"data": "digits"}, r"data none there, digits here"),
    ):
        with pytest.raises(UserError, match=message):
            OutputDirectory(out, run=RUN | change, resume=True).__enter__()
    states(out)
    with OutputDirectory(out, run=RUN | {"pipeline": "couple,l1{criterion=l2}"}, resume=True):
        pass  # the journal knows what it depends on
    with pytest.raises(UserError, match=r"passes couple, l1 there, couple, abn here"):
        OutputDirectory(out, run=RUN | {"passes": "couple, abn"}, resume=True).__enter__()
    assert (out / "search.jsonl").exists()


def test_one_run_at_a_time(out: Path) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    refused = pytest.raises(UserError, match=f"another run is at work in .*: {holder}")
    with OutputDirectory(out, run=RUN, force=True), refused:
        write(out, NEW, "force")
    write(out, NEW, "force")
    assert content(out) == NEW


def test_the_lock_of_a_dead_process_is_taken_over(out: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (out / LOCK).write_text(f"{dead.pid}\n{socket.gethostname()}\n", encoding="utf-8")
    write(out, NEW, "force")
    assert content(out) == NEW


def test_the_current_folder_and_a_linked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    write(Path("."), OLD)
    write(tmp_path / "link", NEW, "force")
    assert (tmp_path / "link").is_symlink()
    assert content(Path(".")) == NEW | {"notes.txt": "mine"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "change",
    [
        ('"version": 1', '"version": 2'),
        ('"model.py"', '"../model.py"'),
        ('"model.py"', '"/etc/passwd"'),
        ('"model.py"', '"a/b/c"'),
        ('"bytes": 8', '"bytes": -8'),
        ('"bytes": 8', '"bytes": true'),
        ('"sha256": "', '"sha256": "x'),
        ('"state": [', '"state": [7, '),
        ('"finished": true', '"finished": 1'),
        ('"swap": null', '"swap": []'),
        ("{", "[" * 100_000),
    ],
)
def test_a_list_that_is_not_ours_is_refused_and_nothing_is_done(
    out: Path, change: tuple[str, str]
) -> None:
    text = (out / "pruneopt.json").read_text(encoding="utf-8")
    assert change[0] in text
    (out / "pruneopt.json").write_text(text.replace(*change, 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"pruneopt.json is not the list of files"):
        write(out, NEW, "force")
    assert content(out) == OLD


def test_a_run_that_fails_leaves_a_new_place_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), OutputDirectory(tmp_path / "a" / "b", run=RUN):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
