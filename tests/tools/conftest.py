"""The command as users run it, in a process of its own or (for the many mistakes) inside the
test's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pruneopt.tools.main import main

ROOT = Path(__file__).resolve().parents[2]
TINY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2)
        self.norm2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 10)
    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))
torch.manual_seed(0)
model = Net()
input_shape = (1, 1, 8, 8)
"""


class Done(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error: one line on stderr, and nothing that looks like Python."""
        assert "Traceback" not in self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("pruneopt: ")
        return self.err.removeprefix("pruneopt: ").rstrip("\n")


@pytest.fixture(scope="session")
def example() -> str:
    """The model file of the documentation; it names its data."""
    return str(ROOT / "examples" / "small_cnn.py")


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """`start("compile", path, ...)` starts pruneopt in a process of its own."""

    def run(*words: object) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "pruneopt.tools.main", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    return run


@pytest.fixture(scope="session")
def command(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Done]:
    """`command("compile", path, ...)` runs pruneopt in a process of its own."""

    def run(*words: object) -> Done:
        process = start(*words)
        out, err = process.communicate()
        return Done(process.returncode, out, err)

    return run


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`call("compile", path, ...)` runs pruneopt inside this process."""

    def run(*words: object) -> Done:
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def tiny(tmp_path: Path, write_tiny: Callable[[Path], Path]) -> Path:
    """A model file of two convolutions, with random weights and without data."""
    return write_tiny(tmp_path)


@pytest.fixture(scope="session")
def write_tiny() -> Callable[[Path], Path]:
    """``write_tiny(folder)`` writes the file of `tiny` there."""

    def write(folder: Path) -> Path:
        path = folder / "tiny.py"
        path.write_text(TINY, encoding="utf-8")
        return path

    return write
