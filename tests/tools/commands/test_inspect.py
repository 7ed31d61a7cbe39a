"""Inspecting: the graph with its groups, what stands in the way of pruning, and the coverage
line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruneopt.ir.text.json_form import graph_from_dict
from pruneopt.ir.text.parser import parse_graph

Call = Callable[..., Any]
STUBBORN = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.big = nn.Linear(4, 16), nn.Linear(16, 400)
        self.norm = nn.LayerNorm(16)
    def forward(self, x):
        return self.big(torch.renorm(self.norm(self.small(x)), 2, 0, 1.0))
model, input_shape = Net(), (2, 4)
"""


def test_text(command: Call, example: str) -> None:
    done = command("inspect", example)
    assert (done.code, done.err) == (0, "")
    text, _, rest = done.out.partition("\n}\n")
    graph = parse_graph(f"{text}\n}}\n")
    assert [(group.name, group.width) for group in graph.channels if group.frozen is None] == [
        ("stem", 16),
        ("head", 32),
    ]
    assert "$stem" in text
    last = rest.rstrip().splitlines()
    assert last[-1].startswith("A FLOP is one multiply-accumulate")
    assert last[-2].startswith("coverage: ")
    assert "of the FLOPs can be removed" in last[-2]
    assert "smallest reachable:" in rest
    assert "10 channels in 1 group: model output" in rest


def test_json(call: Call, example: str) -> None:
    done = call("inspect", example, "--json", "--budget", "50%FLOPs", "--ignore", "head.weight")
    data = json.loads(done.out)
    assert {group.name for group in graph_from_dict(data["graph"]).channels} == {
        item["name"] for item in data["groups"]
    }
    groups = {item["name"]: item for item in data["groups"]}
    assert (groups["head"]["frozen"], groups["head"]["flops_share"]) == ("ignored by request", None)
    assert groups["head"]["modules"][0] == "head"
    # Alone at one channel, the stem saves its own convolution and what reads it.
    assert 0.9 < groups["stem"]["flops_share"] < 1
    assert (
        data["coverage"]["units"]["flops"]["smallest"]
        < data["coverage"]["units"]["flops"]["original"]
    )
    assert data["budgets"][0]["reachable"]


EXPORTED = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.calls = nn.Linear(4, 16), nn.Linear(16, 3), 0
    def forward(self, x):
        self.calls += 1
        return self.two(self.one(x))
model, input_shape = Net(), (2, 4)
"""


def test_json_says_why_a_network_was_exported(call: Call, example: str, tmp_path: Path) -> None:
    assert json.loads(call("inspect", example, "--json").out)["exported_because"] is None
    (tmp_path / "net.py").write_text(EXPORTED, encoding="utf-8")
    data = json.loads(call("inspect", tmp_path / "net.py", "--json").out)
    assert data["exported_because"] == "the module changes its own attributes"
    assert not data["notes"]


@pytest.mark.parametrize(
    "command", [["inspect"], ["compile", "--budget", "50%FLOPs", "--out", "OUT"]]
)
def test_json_is_alone_even_if_the_file_prints(
    call: Call, tiny: Path, tmp_path: Path, command: list[str]
) -> None:
    tiny.write_text("print('hello')\n" + tiny.read_text(encoding="utf-8"), encoding="utf-8")
    name, *rest = (str(tmp_path / "o") if word == "OUT" else word for word in command)
    done = call(name, tiny, "--json", *rest)
    assert json.loads(done.out)["model"]
    assert done.err == "hello\n"


def test_groups_and_budget(call: Call, example: str) -> None:
    done = call("inspect", example, "--groups", "--budget", "50%FLOPs")
    rows = [line.split() for line in done.out.splitlines()[:5]]
    assert rows[0] == ["group", "width", "step", "FLOPs", "in", "frozen"]
    assert rows[2][:5] == ["stem", "16", "1", "97.4", "%"]
    assert rows[4] == ["classifier", "10", "1", "-", "classifier", "model", "output"]
    assert "--ignore, --width, --max-ratio and --tie take groups" in done.out
    assert "budget 50%FLOPs: reachable, " in done.out


def test_the_passes_of_a_candidate_lowered(call: Call) -> None:
    done = call("inspect", "zoo:resnet20", "--lowered")
    assert "pruneopt.conv_statistics(%conv2d, %scale, %shift" in done.out
    assert (
        "statistics of 19 batch norms: 19 times a convolution that finishes its input" in done.out
    )
    assert done.out.count("no kernel: aten.pad, 2 times, first at layer2.0 at ") == 2
    assert (
        "scores: 19 times a convolution with bias, sum and activation; 8 times an op as PyTorch "
        "has it" in done.out
    )
    data = json.loads(call("inspect", "zoo:resnet20", "--lowered", "--json").out)["lowered"]
    assert len(data["norms"]) == 19
    assert data["norms"][0] == "bn1"
    assert {item["op"] for item in data["unfused"]} == {"aten.slice.Tensor", "aten.pad"}
    assert "pruneopt.conv_statistics" in {op.base for op in graph_from_dict(data["graph"]).ops}
    scores = graph_from_dict(data["evaluation"]["graph"])
    assert sum(op.base == "pruneopt.conv_output" for op in scores.ops) == 19
    assert {item["op"] for item in data["evaluation"]["unfused"]} >= {
        "aten.slice.Tensor",
        "aten.pad",
        "aten.linear",
    }


def test_a_network_without_batch_norm_has_no_statistics_pass(call: Call, tiny: Path) -> None:
    tiny.write_text(STUBBORN, encoding="utf-8")
    assert "no batch norm over images" in call("inspect", tiny, "--lowered").sentence


def test_a_budget_out_of_reach(call: Call, example: str) -> None:
    done = call("inspect", example, "--groups", "--budget", "5FLOPs")
    assert done.code == 3
    assert "not reachable" in done.out
    assert "cannot be made smaller than" in done.sentence


def test_a_plan(call: Call, example: str, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert call("compile", example, "--budget", "50%FLOPs", "--out", out, "--quiet").code == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    done = call("inspect", example, "--plan", out / "plan.json", "--json")
    data = json.loads(done.out)
    assert data["plan"]["flops"] == report["pruned"]["flops"]
    assert {g["name"]: g["kept"] for g in data["groups"]} == {
        g["name"]: g["kept"] for g in report["groups"]
    }
    done = call("inspect", example, "--plan", out / "plan.json")
    assert "keep [" in done.out
    assert "the plan costs:" in done.out
    done = call("inspect", f"{example}:wide", "--plan", out / "plan.json")
    assert done.code == 2
    assert "another network" in done.sentence


def test_little_to_prune_is_a_warning(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "stubborn.py"
    path.write_text(STUBBORN, encoding="utf-8")
    done = call("inspect", path)
    assert done.code == 0
    assert done.err.startswith(
        "pruneopt: warning: only 0.0 % of the FLOPs of this network can be removed"
    )
    line = next(line for line in done.out.splitlines() if line.startswith("no rule: "))
    assert line.startswith("no rule: aten.renorm, once, first at ")
    assert "stubborn.py:10" in line


def test_statistics_over_channels_are_named(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "norm.py"
    path.write_text(
        STUBBORN.replace(
            "torch.renorm(self.norm(self.small(x)), 2, 0, 1.0)", "self.norm(self.small(x))"
        )
    )
    done = call("inspect", path)
    assert "by construction: aten.layer_norm, once, first at norm at " in done.out
    assert "runs over channels of small" in done.out


@pytest.mark.skipif(shutil.which("head") is None, reason="needs head")
def test_a_closed_pipe_is_quiet(example: str) -> None:
    line = f"{sys.executable} -m pruneopt.tools.main inspect {example} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("graph @small_cnn(")
    assert done.stderr == ""
