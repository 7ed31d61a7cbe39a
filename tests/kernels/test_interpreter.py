"""The kernels' arithmetic without a GPU: `numerics/` in a process of its own, where Triton
interprets them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "numerics"


def interpretable() -> str:
    """Why the interpreter cannot run here; empty where it can."""
    triton, numpy = pytest.importorskip("triton"), pytest.importorskip("numpy")
    versions = [
        tuple(int(n) for n in re.findall(r"\d+", module.__version__)[:2])
        for module in (triton, numpy)
    ]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        return (
            f"the interpreter of triton {triton.__version__} cannot run loops with numpy "
            f"{numpy.__version__}"
        )
    return ""


def test_kernels_in_the_interpreter() -> None:
    reason = interpretable()
    if reason:
        pytest.skip(reason)
    # Triton reads the switch when it is first imported, and what it interprets it cannot compile.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-x",
        str(FOLDER),
    ]
    done = subprocess.run(
        command,
        env=kept | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= 70, "tests have gone missing"
