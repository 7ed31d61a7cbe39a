"""A journal goes on after any cut, and refuses what is not its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pruneopt.digest import weights_digest
from pruneopt.errors import UserError
from pruneopt.passes.search.journal import Journal

PARTS = {"the graph": "g", "the weights": [1, 2], "the seed": 0}
ENTRIES = [{"index": number, "score": number / 3} for number in range(3)]


def written(path: Path) -> bytes:
    journal = Journal(path, PARTS)
    assert journal.entries == []
    for entry in ENTRIES:
        journal.append(entry)
    return path.read_bytes()


def test_every_entry_is_on_the_disk_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "search.jsonl", os.fsync
    flushed: list[tuple[int, int]] = []

    def fsync(number: int) -> None:
        flushed.append((os.fstat(number).st_ino, os.fstat(number).st_size))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = Journal(path, PARTS)
    for entry in ENTRIES:
        assert (path.stat().st_ino, path.stat().st_size) in flushed
        journal.append(entry)
    assert (path.stat().st_ino, path.stat().st_size) in flushed


def test_every_cut_keeps_the_whole_entries_before_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "search.jsonl"
    data = written(path)
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = max(0, sum(end <= cut for end in ends) - 1)
        journal = Journal(path, PARTS)
        assert journal.entries == ENTRIES[:whole]
        for entry in ENTRIES[whole:]:
            journal.append(entry)
        assert path.read_bytes() == data


def test_garbage_at_the_end_is_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    data = written(path)
    for tail in (b"\0\0\0\0", b"\0\0\n", b'{"index": 3, "sc\n', b"[1]\n", b"\xff\xfe"):
        path.write_bytes(data + tail)
        assert Journal(path, PARTS).entries == ENTRIES
        assert path.read_bytes() == data


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"what\n", *lines[2:]]))
    with pytest.raises(UserError, match=r"line 3 of .*search.jsonl is damaged"):
        Journal(path, PARTS)


@pytest.mark.parametrize("changed", ["the graph", "the weights", "the seed"])
def test_another_search_is_refused_by_name(tmp_path: Path, changed: str) -> None:
    path = tmp_path / "search.jsonl"
    data = written(path)
    with pytest.raises(
        UserError, match=rf"belongs to another search \({changed} differ\)"
    ) as error:
        Journal(path, {**PARTS, changed: "other"})
    assert "\n" not in str(error.value)
    assert path.read_bytes() == data


@pytest.mark.parametrize("content", [b"hello", b"hello\n", b'{"a": 1}\n', b"\xff\n"])
def test_a_strange_file_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "search.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a search journal"):
        Journal(path, PARTS)
    assert path.read_bytes() == content


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "search.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be used"):
        Journal(tmp_path / "search.jsonl", PARTS)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    journal = Journal(tmp_path / "search.jsonl", PARTS)
    journal.path = Path("/dev/full")
    with pytest.raises(UserError, match="cannot be written: No space left"):
        journal.append({"index": 0})


def test_without_a_path_nothing_is_kept() -> None:
    journal = Journal(None, PARTS)
    journal.append({"index": 0})
    assert journal.entries == []


def test_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = [1 / 3, 0.1 + 0.2, 5e-324, 1e308]
    journal = Journal(tmp_path / "search.jsonl", PARTS)
    journal.append({"score": values})
    assert Journal(tmp_path / "search.jsonl", PARTS).entries == [{"score": values}]
    first = json.loads((tmp_path / "search.jsonl").read_text().splitlines()[0])
    assert len(first["key"]) == 64


def test_weights_are_told_apart() -> None:
    base = {"a": torch.arange(6.0), "b": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    key = weights_digest(base)
    assert key == weights_digest(dict(reversed(base.items())))
    others = (
        {**base, "a": torch.arange(6.0) + 1},
        {**base, "a": torch.arange(6.0).reshape(2, 3)},
        {**base, "b": torch.zeros(2, dtype=torch.float16)},
        {**base, "c": torch.zeros(1)},
    )
    assert all(weights_digest(other) != key for other in others)
