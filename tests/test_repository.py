"""Nothing in the repository depends on the machine it was written on."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Put together here, so that this file does not contain what it looks for.
FORBIDDEN = ("/" + "work/", "/" + "root/", "file://" + "/", "index" + "-url", "/" + "simple/")


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="only a checkout knows which files are its own"
)
def test_no_machine_path_or_registry_address() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked_files()
        for word in FORBIDDEN
        if word.encode() in path.read_bytes()
    ]
    assert not found, "\n".join(found)
