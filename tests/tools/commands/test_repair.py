"""``compile --repair``: in the right place, told apart in the reports, and in every artefact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Call = Callable[..., Any]

BIASLESS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.head = nn.Linear(12, 10)
    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))
torch.manual_seed(0)
model = Net()
input_shape = (1, 1, 8, 8)
"""


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory, command: Call) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("repaired")
    (folder / "net.py").write_text(BIASLESS)
    words = [
        "--pass",
        "l1",
        "--budget",
        "50%FLOPs",
        "--data",
        "digits",
        "--repair",
        "bn,lstsq",
        "--repair",
        "bias",
    ]
    return folder / "out", command(
        "compile", folder / "net.py", *words, "--finetune-epochs", 1, "--out", folder / "out"
    )


def test_repairs_follow_the_proof_in_their_order(repaired: tuple[Path, Any]) -> None:
    out, done = repaired
    assert (done.code, done.err) == (0, "")
    report = json.loads((out / "report.json").read_text())
    stages = ["original", "slice", "repair-bias", "repair-lstsq", "repair-bn", "finetune"]
    assert [item["after"] for item in report["scores"]] == stages
    assert report["pipeline"].endswith(
        "verify,repair{method=bias},repair,repair{method=bn},finetune{epochs=1}"
    )
    assert {"repair-bias", "repair-lstsq", "repair-bn"} < report["seconds"].keys()
    for text in ("repaired by bias", "repaired by least squares", "repaired by batch norm"):
        assert f"accuracy {text}" in done.out
        assert text in (out / "report.html").read_text()


def test_every_layer_stands_in_the_reports(repaired: tuple[Path, Any]) -> None:
    out, _ = repaired
    records = json.loads((out / "report.json").read_text())["records"]
    assert [item["into"] for item in records["repair-bias"]["layers"]] == [
        "conv2.bias",
        "head.bias",
    ]
    for item in records["repair-lstsq"]["layers"]:
        assert item["after"] <= item["before"]
        assert f"{item['after']:.4f}" in (out / "report.html").read_text()
    assert records["repair-bn"]["norm_batches"] > 0


def test_a_new_bias_is_delivered_and_counted(repaired: tuple[Path, Any]) -> None:
    out, _ = repaired
    weights = load_file(out / "weights.safetensors")
    assert weights["conv2.bias"].any()
    counted = sum(
        tensor.numel()
        for name, tensor in weights.items()
        if "running" not in name and "num_" not in name
    )
    report = json.loads((out / "report.json").read_text())
    assert report["pruned"]["params"] == counted
    assert report["records"]["repair-bias"]["added"]["params"] == len(weights["conv2.bias"])


def test_what_is_left_is_a_note(tmp_path: Path, command: Call) -> None:
    (tmp_path / "net.py").write_text(BIASLESS)
    words = [
        "--budget",
        "50%params",
        "--data",
        "digits",
        "--repair",
        "bias",
        "--out",
        tmp_path / "out",
    ]
    done = command("compile", tmp_path / "net.py", *words)
    assert done.code == 0
    assert "note: repair by bias left conv2 as it was: it has no bias" in done.out
    assert "conv2.bias" not in load_file(tmp_path / "out" / "weights.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repair", "magic"], "there is no repair 'magic': use bias, lstsq, bn"),
        (["--repair", "bn"], "repair with method=bn needs data: give --data"),
    ],
)
def test_mistakes(tmp_path: Path, command: Call, words: list[str], message: str) -> None:
    (tmp_path / "net.py").write_text(BIASLESS)
    done = command("compile", tmp_path / "net.py", "--budget", "50%FLOPs", *words)
    assert done.code == 2
    assert message in done.err
