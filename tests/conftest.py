"""Snapshots, and settings that every test shares."""

import os
from collections.abc import Callable

# Before torch is imported: tests run side by side, and more threads than cores make each of them
# slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "pruneopt", deadline=None
)  # the first example pays for importing torch
hypothesis.settings.load_profile("pruneopt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--snapshot-update",
        action="store_true",
        help="write the snapshots anew; review them as a diff",
    )


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``snapshot(name, text)`` compares with ``snapshots/<name>.pir`` (or the name's suffix) beside
    the test file."""
    folder = request.path.parent / "snapshots"
    update = request.config.getoption("--snapshot-update")

    def compare(name: str, text: str) -> None:
        path = folder / (name if "." in name else f"{name}.pir")
        if update:
            folder.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        elif not path.exists():
            pytest.fail(
                f"no snapshot {path.name}: run pytest with --snapshot-update, and review what it "
                "wrote"
            )
        else:
            assert text == path.read_text(encoding="utf-8"), (
                f"{path.name} differs; --snapshot-update writes it anew"
            )

    return compare
