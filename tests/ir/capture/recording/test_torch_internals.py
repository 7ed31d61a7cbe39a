"""The internals of torch that the recorder needs are listed in one place; where it is missing,
capture exports."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.capture.recording import torch_internals
from pruneopt.ir.capture.recording.torch_internals import PRIVATE_NAMES, TESTED_VERSIONS
from pruneopt.ir.text.printer import print_graph

RECORDING = torch_internals.__name__.rpartition(".")[0]
ROOT = Path(__file__).parents[4]
X = torch.randn(2, 3)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    torch_internals.why_untested.cache_clear()
    yield
    torch_internals.why_untested.cache_clear()


def private_names(tree: ast.Module) -> set[str]:
    """Private names of torch that a file imports or reads: ``torch._C.DispatchKey.PreDispatch``."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    full = {
        item.asname or item.name: f"{node.module}.{item.name}"
        for node in imports
        for item in node.names
        if (node.module or "").partition(".")[0] == "torch"
    }
    found = set(full.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            found.add(f"{full.get(head, head)}.{rest}")
    return {name for name in found if re.match(r"torch\..*\b_[a-zA-Z]", name)}


def test_every_private_name_that_is_used_is_listed() -> None:
    listed = {name.replace(":", ".") for name in PRIVATE_NAMES}
    for file in sorted((ROOT / "ir" / "capture" / "recording").glob("*.py")):
        names = private_names(ast.parse(file.read_text(encoding="utf-8")))
        names -= {"torch._ops", "torch._ops.OpOverload"}  # the type of a public value, for hints
        unlisted = {
            name for name in names if not any(f"{own}.".startswith(f"{name}.") for own in listed)
        }
        assert not unlisted, file.name


def test_the_tested_versions_are_those_that_may_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first, last = TESTED_VERSIONS[0], int(TESTED_VERSIONS[-1].partition(".")[2])
    assert f"torch>={first},<2.{last + 1}" in project["dependencies"]
    assert torch_internals.why_untested() is None


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (
            "TESTED_VERSIONS",
            ("1.12", "1.13"),
            r"torch \d\.\d+ is not among the versions .* \(1\.12 to 1\.13\)",
        ),
        ("PRIVATE_NAMES", {"torch._C:gone": "testing"}, r"this torch lacks torch\._C\.gone"),
        ("PRIVATE_NAMES", {"torch.no_such_file:x": "testing"}, r".* torch\.no_such_file\.x"),
    ],
)
def test_another_torch_is_not_recorded_from(
    name: str, value: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = capture(nn.Linear(3, 2), X)
    torch_internals.why_untested.cache_clear()
    monkeypatch.setattr(torch_internals, name, value)
    graph = capture(nn.Linear(3, 2), X)
    assert print_graph(graph, locations=False) == print_graph(recorded, locations=False)
    assert re.fullmatch(why, str(graph.exported_because))
    assert graph.notes == (f"the network was exported, which is slower: {graph.exported_because}",)


def test_a_missing_name_does_not_keep_capture_from_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("capture", "recorder", "interception"):
        monkeypatch.delitem(sys.modules, f"{RECORDING}.{name}", raising=False)
    monkeypatch.delattr("torch.utils._device._device_constructors")
    with pytest.raises(ImportError):
        importlib.import_module(f"{RECORDING}.interception")
    graph = capture(nn.Linear(3, 2), X)
    assert graph.exported_because == "this torch lacks torch.utils._device._device_constructors"
