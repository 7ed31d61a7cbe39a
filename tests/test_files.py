"""Files are replaced whole, by a rename; what killed processes left goes, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from pruneopt.errors import UserError
from pruneopt.files import atomic_folder, atomic_path, is_sealed, remove_leftovers, seal, write_text


def test_a_file_is_replaced_by_renaming_what_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, int]] = []
    real = os.fsync

    def fsync(number: int) -> None:
        status = os.fstat(number)
        flushed.append((status.st_ino, status.st_size))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with path.open(encoding="utf-8") as reader:
        with atomic_path(path) as temporary:
            temporary.write_text("the new one", encoding="utf-8")
            assert path.read_text(encoding="utf-8") == "old"
            number = temporary.stat().st_ino
        assert reader.read() == "old", "who has it open reads on"
    assert path.stat().st_ino == number, "a copy is seen half written"
    assert (number, len("the new one")) in flushed
    assert (tmp_path.stat().st_ino, tmp_path.stat().st_size) in flushed, "and so is its name"


def test_nothing_is_published_by_what_fails(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with atomic_folder(tmp_path / "a.txt") as folder:
            (folder / "a.txt").write_text("new", encoding="utf-8")
            (folder / "a.data").write_text("new", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_only_folders_of_dead_processes_are_left_over(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = socket.gethostname()
    owners = {
        "dead": f"{dead.pid} {here}",
        "alive": f"{os.getpid()} {here}",
        "elsewhere": f"{dead.pid} other-{here}",
        "strange": "what",
        "nobody": f"-1 {here}",
        "all": f"0 {here}",
    }
    for name, text in owners.items():
        (tmp_path / f".partial-{name}").mkdir()
        (tmp_path / f".partial-{name}" / ".pruneopt").write_text(text, encoding="utf-8")
    (tmp_path / ".partial-mine").mkdir()
    (tmp_path / ".partial-mine" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / ".partial-new").mkdir()
    (tmp_path / ".partial-old").mkdir()
    os.utime(tmp_path / ".partial-old", (0, 0))
    os.utime(tmp_path / ".partial-mine", (0, 0))
    (tmp_path / ".partial-link").symlink_to(tmp_path / ".partial-dead")
    remove_leftovers(tmp_path, ".partial-")
    left = {path.name.removeprefix(".partial-") for path in tmp_path.iterdir()}
    assert left == {*owners, "mine", "new", "link"} - {"dead"}


def test_a_killed_write_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half", encoding="utf-8")
            os._exit(0)
    os.waitpid(child, 0)
    assert list(tmp_path.glob(".partial-*"))
    write_text(tmp_path / "b.txt", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_every_byte_of_a_sealed_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"some content")
    assert not is_sealed(path)
    seal(path)
    assert is_sealed(path)
    assert zipfile.ZipFile(path).read("a") == b"some content"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not is_sealed(path), place
        path.write_bytes(whole[:place])
        assert not is_sealed(path), place
    path.write_bytes(b"no zip file, but long enough to be one")
    with pytest.raises(OSError, match="no zip file"):
        seal(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*a.txt: No such file"):
        write_text(tmp_path / "no" / "a.txt", "text")
