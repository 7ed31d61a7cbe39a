"""`import pruneopt` is quick: neither it nor the graph starts a framework."""

import subprocess
import sys

import pytest

MODULES = ("pruneopt", "pruneopt.extend", "pruneopt.ir.graph", "pruneopt.ir.types")
HEAVY = ("torch", "torchvision", "numpy", "scipy", "onnx", "triton", "rich")


@pytest.mark.parametrize("module", MODULES)
def test_import_starts_no_framework(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
