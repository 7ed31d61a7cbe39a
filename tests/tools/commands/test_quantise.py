"""``pruneopt quantise``: files in other precisions beside a bundle, and the accuracy before and
after."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from helpers.commands import relist

from pruneopt.manifest import Manifest
from pruneopt.models.data import load_data
from pruneopt.tools.main import main

Call = Callable[..., Any]
NETWORK = """
from pathlib import Path
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
    *(nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(24 * 16, 10)),
)
input_shape = (1, 1, 8, 8)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that can read digits, cut a little."""
    folder = tmp_path_factory.mktemp("quantise")
    source = folder / "network.py"
    source.write_text(NETWORK, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    model, data = scope["model"], load_data("digits", input_shape=(1, 1, 8, 8))
    inputs, targets = next(data.train.batches(len(data.train)))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(25):
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), folder / "w.pt")
    words = [
        "--budget",
        "90%FLOPs",
        "--out",
        str(folder / "b"),
        "--weights",
        str(folder / "w.pt"),
        "--quiet",
    ]
    assert main(["compile", str(source), *words]) == 0
    return folder / "b"


def scored(path: Path, half: bool = False) -> float:
    """The accuracy of a file on the test digits, by onnxruntime alone."""
    data = load_data("digits", input_shape=(1, 1, 8, 8))
    inputs, targets = next(data.test.batches(len(data.test)))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(
        None, {session.get_inputs()[0].name: (inputs.half() if half else inputs).numpy()}
    )
    return float((torch.from_numpy(found).argmax(1) == targets).double().mean())


def test_int8_with_the_accuracy_before_and_after(call: Call, bundle: Path) -> None:
    done = call("quantise", bundle, "--data", "digits", "--calibration", 64)
    assert done.code == 2
    assert "no code runs because a file names it: give it yourself by --original" in done.sentence
    own = ["--original", bundle.parent / "network.py"]
    done = call("quantise", bundle, *own, "--data", "digits", "--calibration", 64)
    assert done.code == 0, done.err
    record = json.loads((bundle / "model.int8.json").read_text(encoding="utf-8"))
    assert record["before"] == pytest.approx(scored(bundle / "model.onnx"))
    assert record["after"] == pytest.approx(scored(bundle / "model.int8.onnx"))
    assert record["before"] > 0.8
    assert record["after"] > record["before"] - 0.05
    assert f"{100 * record['after']:.1f} % after" in done.out
    assert record["calibration"] == 64
    assert 0 < record["error"] < 0.2
    model = onnx.load(bundle / "model.int8.onnx")
    kinds = {item.data_type for item in model.graph.initializer if len(item.dims) > 1}
    assert kinds == {onnx.TensorProto.INT8}
    assert record["bytes"]["model.int8.onnx"] == (bundle / "model.int8.onnx").stat().st_size
    assert record["bytes"]["model.int8.onnx"] < 0.6 * record["bytes"]["model.onnx"]


def test_half_precision_needs_no_data(call: Call, bundle: Path) -> None:
    done = call("quantise", bundle, "--dtype", "fp16", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert 0 < record["error"] <= record["allowed_error"] < 0.01
    assert "after" not in record
    assert scored(bundle / "model.fp16.onnx", half=True) > 0.8


def test_a_compile_may_replace_what_quantise_added(
    call: Call, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / "model.int8.onnx").touch()
    relist(tmp_path / "b", "model.int8.onnx")
    source = bundle.parent / "network.py"
    assert (
        call(
            "compile", source, "--budget", "90%FLOPs", "--out", tmp_path / "b", "--force", "--quiet"
        ).code
        == 0
    )
    assert not (tmp_path / "b" / "model.int8.onnx").exists()


def test_mistakes(call: Call, bundle: Path, tmp_path: Path) -> None:
    own = ["--original", bundle.parent / "network.py"]
    assert "int8 needs data" in call("quantise", bundle, *own).sentence
    assert "is not a bundle" in call("quantise", tmp_path, "--data", "digits").sentence
    assert "there is no data" in call("quantise", bundle, *own, "--data", "didgits").sentence


def test_weights_that_half_precision_cannot_hold_are_refused(
    call: Call, bundle: Path, tmp_path: Path
) -> None:
    """Biases beyond 65504 become infinite: nothing is written."""
    import safetensors.torch

    broken = tmp_path / "b"
    shutil.copytree(bundle, broken, ignore=shutil.ignore_patterns("model.*.onnx", "model.*.json"))
    state = safetensors.torch.load_file(broken / "weights.safetensors")
    state["7.bias"][0] = 1e6
    safetensors.torch.save_file(state, broken / "weights.safetensors")
    relist(broken, "weights.safetensors")
    done = call("quantise", broken, "--dtype", "fp16")
    assert done.code == 1
    assert "its numbers do not fit; nothing is delivered" in done.sentence
    assert not list(broken.glob("model.fp16.*"))


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "ir.after.txt", "run.json"])
def test_a_flipped_byte_of_a_bundle_is_noticed(
    call: Call, bundle: Path, tmp_path: Path, name: str
) -> None:
    broken = tmp_path / "b"
    shutil.copytree(bundle, broken)
    content = bytearray((broken / name).read_bytes())
    content[len(content) // 2] ^= 1
    (broken / name).write_bytes(content)
    done = call("quantise", broken, "--data", "digits")
    assert done.code == 2
    assert f"{broken / name} was changed since pruneopt wrote it" in done.sentence


def test_what_is_added_to_a_bundle_is_listed_and_files_of_others_stay(
    call: Call, bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "b"
    names = ("model.fp16.onnx", "model.fp16.json")
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("model.*.onnx", "model.*.json"))
    for _ in range(2):
        assert call("quantise", copy, "--dtype", "fp16", "--json").code == 0
        listed = Manifest.read(copy)
        assert listed is not None
        listed.check(names)
        assert set(names) <= set(listed.files)
    (copy / names[0]).write_text("mine", encoding="utf-8")
    done = call("quantise", copy, "--dtype", "fp16")
    assert done.code == 2
    assert "model.fp16.onnx was not written by pruneopt" in done.sentence
    assert (copy / names[0]).read_text(encoding="utf-8") == "mine"
