"""The files that commands leave, as tests read them while and after they run."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from pruneopt.manifest import Entry, Manifest


def wait_for(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until the journal has its header and so many results, while the process runs."""
    while not journal.exists() or journal.read_bytes().count(b"\n") <= lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def entries_of(journal: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, without the seconds that each took."""
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def unfinished(out: Path) -> list[str]:
    """Return the names of what a killed run left to go on from, and nothing else of it: beside its
    list of files, its lock, and what it was writing just then."""
    kept = {"pruneopt.json", ".pruneopt-lock"}
    names = {path.name for path in out.iterdir() if not path.name.startswith(".partial-")}
    assert kept <= names
    return sorted(names - kept)


def relist(out: Path, name: str) -> None:
    """Enter a file as it is now in the list of a directory, as if it had been written so."""
    manifest = Manifest.read(out)
    assert manifest is not None
    manifest.files[name] = Entry.of(out / name)
    manifest.write()


def report_of(folder: Path) -> Any:
    """Return the report of a bundle, as its JSON says it."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))
