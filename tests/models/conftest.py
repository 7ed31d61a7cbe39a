"""Real images and weights beside the checkout, where they exist; small files for everything
else."""

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data: `data/weights`, `data/cifar10`."""
    if not (SHARED / "data" / "weights").is_dir():
        pytest.skip("needs the real images and weights in ../shared")
    return SHARED / "data"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write("model.py", text)` puts a file into the test's folder and returns its path."""

    def put(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return put
