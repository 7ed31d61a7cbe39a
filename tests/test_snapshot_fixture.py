"""The snapshot fixture compares, writes only when asked to, and fails where a snapshot is
missing."""

import shutil
import subprocess
import sys
from pathlib import Path

TEST = """
def test_it(snapshot):
    snapshot("words", "new\\n")
    snapshot("table.txt", "1 2\\n")
"""


def run(folder: Path, *options: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
        *options,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_snapshots_are_compared_and_written_on_request(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(TEST)
    snapshots = tmp_path / "snapshots"

    assert "no snapshot words.pir: run pytest with --snapshot-update" in run(tmp_path)
    assert not snapshots.exists()
    assert "1 passed" in run(tmp_path, "--snapshot-update")
    assert {path.name: path.read_text() for path in snapshots.iterdir()} == {
        "words.pir": "new\n",
        "table.txt": "1 2\n",
    }
    assert "1 passed" in run(tmp_path)
    (snapshots / "words.pir").write_text("old\n")
    assert "words.pir differs; --snapshot-update writes it anew" in run(tmp_path)
