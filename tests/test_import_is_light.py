"""`import pruneopt` is quick, and every public name is where the package says it is."""

import subprocess
import sys

import pytest

import pruneopt

HEAVY = ("torch", "torchvision", "numpy", "scipy", "onnx", "triton", "rich")


@pytest.mark.parametrize("module", ["pruneopt", "pruneopt.ir.graph", "pruneopt.ir.types"])
def test_import_starts_no_framework(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", pruneopt.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(pruneopt, name) is not None
    assert name in dir(pruneopt)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pruneopt' has no attribute 'capturre'"):
        pruneopt.capturre  # noqa: B018
