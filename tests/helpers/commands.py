"""The files that commands leave, as tests read them while and after they run."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any


def wait_for(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until the journal has its header and so many results, while the process runs."""
    while not journal.exists() or journal.read_bytes().count(b"\n") <= lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def entries_of(journal: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, without the seconds that each took."""
    entries = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def report_of(folder: Path) -> Any:
    """Return the report of a bundle, as its JSON says it."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))
