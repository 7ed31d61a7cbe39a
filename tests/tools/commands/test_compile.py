"""Compiling: what the bundle holds, that it is complete or absent, and that a wrong artefact is
never delivered."""

import errno
import json
import os
import runpy
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import report_of
from safetensors.torch import load_file

from pruneopt.errors import VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.text.parser import parse_graph
from pruneopt.tools.bundle.artefacts import write_artefacts
from pruneopt.tools.bundle.checks import check_artefacts
from pruneopt.tools.commands import compile as compile_command
from pruneopt.tools.main import main

Call = Callable[..., Any]
Compiled = tuple[Path, Any]
FILES = {
    *(
        "plan.json",
        "model.py",
        "weights.safetensors",
        "model.pt2",
        "model.onnx",
        "report.json",
        "report.html",
    ),
    *("ir.before.txt", "ir.after.txt", "run.json", "pruneopt.json"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, command: Call, example: str) -> Compiled:
    """The example, pruned to half its FLOPs and fine-tuned, with JSON on stdout."""
    out = tmp_path_factory.mktemp("compiled") / "some" / "where"
    words = [
        "--pass",
        "l1",
        "--budget",
        "50%FLOPs",
        "--budget",
        "70%params",
        "--finetune-epochs",
        1,
    ]
    done = command("compile", example, *words, "--out", out, "--json")
    return out, done


def test_json_is_alone_and_is_the_report(compiled: Compiled) -> None:
    out, done = compiled
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == report_of(out)


def test_the_bundle_is_complete(compiled: Compiled) -> None:
    out, _ = compiled
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in out.parent.iterdir()] == ["where"], "nothing temporary stays"


def test_the_report_says_what_happened(compiled: Compiled, example: str) -> None:
    report = report_of(compiled[0])
    assert (report["model"], report["pass"], report["interrupted"]) == (example, "l1", False)
    flops, params = report["budgets"]
    assert (
        flops["achieved"]
        == report["pruned"]["flops"]
        <= flops["limit"]
        == report["original"]["flops"] / 2
    )
    assert params["achieved"] == report["pruned"]["params"] <= params["limit"]
    assert max(item["achieved"] / item["limit"] for item in report["budgets"]) > 0.95
    assert report["verification"]["equivalent"]
    assert report["verification"]["max_abs_error"] < 1e-12
    assert report["verification"]["max_abs_error_float32"] < 1e-5
    assert {item["artefact"]: item["batches"] for item in report["verification"]["artefacts"]} == {
        "model.py": [1, 3],
        "model.pt2": [1, 3],
        "model.onnx": [1, 3],
        "plan.json": [],
    }
    assert [item["after"] for item in report["scores"]] == ["original", "slice", "finetune"]
    assert report["pruned"]["accuracy"] == report["scores"][-1]["score"]
    frozen = [group for group in report["groups"] if group["frozen"]]
    assert [(group["name"], group["kept"]) for group in frozen] == [("classifier", 10)]
    own = {"report.json", "report.html", "run.json", "pruneopt.json"}
    assert set(report["artefacts"]) == FILES - own
    assert {"load", "capture", "couple", "l1", "slice", "verify", "finetune", "export"} <= set(
        report["seconds"]
    )


def test_the_costs_are_those_of_the_files(compiled: Compiled) -> None:
    out, _ = compiled
    weights = load_file(out / "weights.safetensors")
    state = ("running_mean", "running_var", "num_batches_tracked")
    params = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(state))
    assert report_of(out)["pruned"]["params"] == params
    assert report_of(out)["pruned"]["bytes"] == sum(
        t.numel() * t.element_size() for t in weights.values()
    )


def test_the_module_runs_without_pruneopt(compiled: Compiled) -> None:
    out, _ = compiled
    source = (out / "model.py").read_text(encoding="utf-8")
    assert "pruneopt." not in source
    assert {line for line in source.splitlines() if line.startswith(("import ", "from "))} == {
        "import torch",
        "import torch.nn.functional as F",
        "from torch import nn",
    }
    module = runpy.run_path(str(out / "model.py"))["small_cnn"]()
    module.load_state_dict(load_file(out / "weights.safetensors"))
    assert module(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_the_texts_read_back(compiled: Compiled) -> None:
    out, _ = compiled
    before, after = (
        parse_graph((out / f"ir.{name}.txt").read_text(encoding="utf-8"))
        for name in ("before", "after")
    )
    assert any(group.keep is not None and group.kept < group.width for group in before.channels)
    kept = {group["name"]: group["kept"] for group in report_of(out)["groups"]}
    assert {group.name: group.kept for group in before.channels} == kept
    assert after.params["stem.weight"].type.shape()[0] == kept["stem"] if "stem" in kept else True


def test_the_page_needs_nothing_else(compiled: Compiled) -> None:
    page = (compiled[0] / "report.html").read_text(encoding="utf-8")
    assert not [
        word
        for word in ("http:", "https:", "src=", "<link", "<script", "@import", "url(")
        if word in page
    ]
    assert page.count("<svg") >= 4
    assert "50%FLOPs met with" in page
    assert "model output" in page


def test_the_run_can_be_repeated_from_its_record(
    compiled: Compiled, call: Call, tmp_path: Path
) -> None:
    out, _ = compiled
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    words = [tmp_path / "again" if word == str(out) else word for word in record["command"][1:]]
    assert call(*words).code == 0
    for name in ("plan.json", "model.py", "weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name
    assert record["versions"]["torch"] == version("torch")
    assert record["data"]["name"] == "digits"


def test_text_output(call: Call, example: str, tmp_path: Path) -> None:
    done = call(
        "compile",
        example,
        "--pass",
        "uniform{criterion=l2}",
        "--budget",
        "50%FLOPs",
        "--out",
        tmp_path / "o",
    )
    assert done.code == 0
    assert done.err == ""
    assert "A FLOP is one multiply-accumulate" in done.out
    assert "kFLOPs" in done.out
    assert "accuracy pruned" in done.out
    assert any(
        line.startswith("equivalent; 50%FLOPs met with ") and "loaded back equal" in line
        for line in done.out.splitlines()
    )
    assert done.out.rstrip().endswith("report.html")
    assert "\x1b" not in done.out


def test_random_without_data_and_with_rounding(call: Call, tiny: Path, tmp_path: Path) -> None:
    words = [
        "--pass",
        "random",
        "--budget",
        "60%FLOPs",
        "--round-to",
        4,
        "--min-channels",
        4,
        "--seed",
        3,
    ]
    done = call("compile", tiny, *words, "--out", tmp_path / "o", "--quiet")
    assert done.code == 0
    assert done.out.count("\n") == 1
    report = report_of(tmp_path / "o")
    assert report["scores"] == []
    assert "accuracy" not in report["original"]
    assert all(group["kept"] % 4 == 0 for group in report["groups"] if not group["frozen"])
    assert report["pass"] == "random{round-to=4 minimum=4}"


def test_a_pipeline_of_ones_own(call: Call, tiny: Path, tmp_path: Path) -> None:
    text = (
        "couple,cost{convention=macs},prune{criterion=l2 scope=local budget=50%params},slice,verify"
    )
    done = call(
        "compile", tiny, "--pipeline", text, "--ignore", "conv1", "--out", tmp_path / "o", "--json"
    )
    report = json.loads(done.out)
    assert done.code == 0
    assert report["budgets"][0]["met"]
    assert {g["name"]: g["frozen"] for g in report["groups"]}["conv1"] == "ignored by request"


def test_widths_by_name(call: Call, tiny: Path, tmp_path: Path) -> None:
    words = ["--width", "conv1=5", "--max-ratio", "*conv2=0.25", "--budget", "70%FLOPs"]
    done = call("compile", tiny, *words, "--out", tmp_path / "o", "--json")
    assert done.code == 0
    kept = {group["name"]: group["kept"] for group in json.loads(done.out)["groups"]}
    assert kept["conv1"] == 5
    assert kept["conv2"] >= 9


def test_a_fixed_batch_stays_fixed(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "fixed.py"
    path.write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)\n"
        "    def forward(self, x):\n        return self.b(torch.relu(self.a(x)).view(2, 16))\n"
        "model, input_shape = Net(), (2, 6)\n",
        encoding="utf-8",
    )
    done = call("compile", path, "--budget", "50%FLOPs", "--out", tmp_path / "o", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert [item["batches"] for item in report["verification"]["artefacts"]][:3] == [[2]] * 3
    assert any("batch size is fixed" in note for note in report["notes"])


# Where a bundle may go


def test_an_earlier_bundle_is_kept_unless_forced(
    call: Call, tiny: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    shutil.copytree(other, out)
    words = ["compile", tiny, "--budget", "60%FLOPs", "--out", out, "--quiet"]
    first = (out / "plan.json").read_bytes()
    done = call(*words, "--seed", 1)
    assert done.code == 2
    assert "--force replaces it" in done.sentence
    assert (
        call("compile", tiny, "--budget", "30%FLOPs", "--out", out, "--force", "--quiet").code == 0
    )
    assert (out / "plan.json").read_bytes() != first
    (out / "notes.md").write_text("mine", encoding="utf-8")
    plan = (out / "plan.json").read_bytes()
    (out / "model.py").write_text("mine", encoding="utf-8")
    done = call(*words, "--force")
    assert done.code == 2
    assert "model.py is not what pruneopt wrote there, and stays" in done.sentence
    assert (out / "model.py").read_text(encoding="utf-8") == "mine"
    assert (out / "plan.json").read_bytes() == plan
    (out / "model.py").unlink()
    assert call(*words, "--force").code == 0
    assert (out / "notes.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_a_place_that_cannot_hold_a_bundle(
    call: Call, tiny: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    done = call("compile", tiny, "--budget", "60%FLOPs", "--out", tmp_path / place)
    assert done.code == 2
    assert str(tmp_path / place) in done.sentence


def test_a_read_only_directory(
    call: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "o").mkdir()
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    done = call("compile", tiny, "--budget", "60%FLOPs", "--out", tmp_path / "o")
    assert done.code == 2
    assert "Permission denied" in done.sentence


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk(
    call: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, where, refuse)
    done = call("compile", tiny, "--budget", "60%FLOPs", "--out", tmp_path / "o")
    monkeypatch.undo()
    assert done.code == 2
    assert "No space left on device" in done.sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.py"], (
        "no part of a bundle stays"
    )


def test_a_network_that_draws_numbers(call: Call, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Noisy(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)\n\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x) + torch.randn(x.shape[0], 1))\n\n\n"
        "model, example_inputs = Noisy(), (torch.zeros(2, 4),)\n"
    )
    done = call(
        "compile",
        tmp_path / "noisy.py",
        "--pass",
        "l1",
        "--budget",
        "50%FLOPs",
        "--out",
        tmp_path / "o",
    )
    assert done.code == 0
    assert "model.onnx was not compared: it draws random numbers of its own (randn)" in done.out
    assert "model.py, model.pt2, plan.json loaded back equal" in done.out


# Wrong artefacts


@pytest.mark.parametrize("name", ["model.py", "weights.safetensors", "model.pt2", "model.onnx"])
def test_a_damaged_artefact_is_found(compiled: Compiled, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(compiled[0], folder)
    module = runpy.run_path(str(folder / "model.py"))["small_cnn"]().eval()
    module.load_state_dict(load_file(folder / "weights.safetensors"))
    graph = capture(module, torch.randn(1, 1, 8, 8))
    inputs = [torch.randn(1, 1, 8, 8)]
    assert len(check_artefacts(folder, module, graph, inputs)) == 3
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    expected = "model.py" if name == "weights.safetensors" else name
    with pytest.raises(VerificationError, match=f"{expected} cannot be loaded back"):
        check_artefacts(folder, module, graph, inputs)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path], Path]) -> Path:
    """Another bundle of the tiny network."""
    folder = tmp_path_factory.mktemp("other")
    line = ["compile", write_tiny(folder), "--budget", "40%FLOPs", "--out", folder / "o", "--quiet"]
    assert main([str(word) for word in line]) == 0
    return folder / "o"


@pytest.mark.parametrize("name", ["weights.safetensors", "model.pt2", "plan.json"])
def test_nothing_wrong_is_delivered(
    call: Call,
    tiny: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:

    def swap(folder: Path, **parts: Any) -> None:
        write_artefacts(folder, **parts)
        shutil.copy(other / name, folder / name)

    monkeypatch.setattr(compile_command, "write_artefacts", swap)
    done = call("compile", tiny, "--budget", "60%FLOPs", "--out", tmp_path / "o")
    assert done.code == 1
    artefact = "model.py" if name == "weights.safetensors" else name
    assert done.sentence.startswith(artefact)
    assert not (tmp_path / "o").exists()
