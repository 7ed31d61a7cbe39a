"""Passes, new, help and version; and that help does not wait for PyTorch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pruneopt
from pruneopt.passes.options.registry import part_kinds, part_names
from pruneopt.passes.pipeline.registry import pass_names
from pruneopt.tools.report.text import amount, change, seconds, table

Call = Callable[..., Any]


def test_passes_lists_every_option(call: Call) -> None:
    done = call("passes")
    assert done.code == 0
    shown = [
        line
        for line in done.out.splitlines()
        if line and not line.startswith((" ", "A pass", "`pruneopt"))
    ]
    heads = [line.partition(":")[0] for line in shown]
    parts = [f"{name} ({kind})" for kind in part_kinds() for name in part_names(kind)]
    assert heads == [*pass_names(), *parts]
    assert "round-to (int|auto|auto:cuda-fp16|" in done.out
    data = {
        item["name"]: item
        for item in json.loads(call("passes", "--json").out)
        if item["kind"] == "pass"
    }
    assert list(data) == list(pass_names())
    options = {option["name"]: option for option in data["l1"]["options"]}
    assert options["round-to"]["type"].startswith("int|auto|auto:cuda-fp16|")
    assert options["round-to"]["default"] == 1
    assert all(option["help"] for item in data.values() for option in item["options"])


def test_passes_can_show_one(call: Call) -> None:
    assert call("passes", "abn").out.startswith("abn: ")


def test_a_new_file_compiles(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    done = call("new", path)
    assert done.code == 0
    assert f"pruneopt compile {path}" in done.out
    text = path.read_text(encoding="utf-8")
    path.write_text("mine", encoding="utf-8")
    done = call("new", path)
    assert done.code == 2
    assert "--force" in done.sentence
    assert path.read_text(encoding="utf-8") == "mine"
    assert call("new", path, "--force").code == 0
    assert path.read_text(encoding="utf-8") == text
    assert (
        call("compile", path, "--budget", "50%FLOPs", "--out", tmp_path / "o", "--quiet").code == 0
    )


def test_new_in_a_folder_that_is_missing(call: Call, tmp_path: Path) -> None:
    done = call("new", tmp_path / "nowhere" / "model.py")
    assert done.code == 2
    assert "No such file or directory" in done.sentence


@pytest.mark.parametrize(
    "words", [["--help"], ["compile", "--help"], ["inspect", "--help"], ["--version"]]
)
def test_help(call: Call, words: list[str]) -> None:
    done = call(*words)
    assert (done.code, done.err) == (0, "")
    assert (
        pruneopt.__version__ in done.out
        if words == ["--version"]
        else "usage: pruneopt" in done.out
    )


def test_help_starts_no_framework() -> None:
    code = (
        "import sys; from pruneopt.tools.main import main; main(['compile', '--help']); "
        "main(['compile'])\n"
        "print([name for name in ('torch', 'numpy', 'rich', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_numbers() -> None:
    assert amount(300_400_000, "flops") == "300.4 MFLOPs"
    assert amount(12, "bytes") == "12 B"
    assert change(150_200_000, 300_400_000, "flops") == "150.2 MFLOPs (50.0 % of 300.4)"
    assert change(900_000, 2_000_000_000, "params") == "0.001 Gparams (0.0 % of 2)"
    assert (seconds(0.421), seconds(12.34), seconds(185)) == ("0.42 s", "12.3 s", "3 min 5 s")
    assert table([("a", "b"), ("wide", "1")]) == "a     b\n----  -\nwide  1"
