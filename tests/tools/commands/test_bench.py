"""``pruneopt bench``: bundles read back, both networks on targets, the table and its JSON; times
come from a fake."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import relist

from pruneopt.passes.targets.target import parse_target
from pruneopt.passes.timing.machine import Noise
from pruneopt.passes.timing.timing import Rounds
from pruneopt.tools.bundle.bundle_networks import original_of, pruned_of, random_weights
from pruneopt.tools.commands import bench as bench_command
from pruneopt.tools.commands.bench import Comparison, bench_lines
from pruneopt.tools.main import main

Call = Callable[..., Any]


NETWORK = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
    *(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
)
input_shape = (1, 1, 8, 8)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "network.py"
    path.write_text(NETWORK, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    out = source.parent / "b"
    assert main(["compile", str(source), "--budget", "50%FLOPs", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sessions run once each, and take 4 and 2 ms by decree."""
    counts: list[int] = []

    def rounds(steps: Any, *, clock: Any, seconds: float) -> Rounds:
        for step in steps:
            step()
        counts.append(len(steps))
        return Rounds(np.tile([[0.004, 0.002]], (10, 1)), Noise(0.0, None), ())

    monkeypatch.setattr(bench_command, "take_rounds", rounds)
    return counts


def test_the_networks_of_a_bundle(bundle: Path) -> None:
    pruned, original = pruned_of(bundle), original_of(bundle)
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))

    def params(weights: Any) -> int:
        return sum(
            t.numel()
            for name, t in weights.items()
            if "running" not in name and "batches" not in name
        )

    assert params(pruned.weights) == report["pruned"]["params"]
    assert params(original.weights) == report["original"]["params"]
    state = torch.export.load(bundle / "model.pt2").state_dict
    assert all(torch.equal(tensor, state[name]) for name, tensor in pruned.weights.items())


def test_random_weights_keep_signals_alive(bundle: Path) -> None:
    original = original_of(bundle)
    weights = random_weights(original.graph)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    (found,) = parse_target("torch-cpu{batch=4}").load(original.graph, weights).outputs()
    assert found.shape == (4, 10)
    assert 1e-3 < np.abs(found).mean() < 1e3


def test_a_table_for_every_target(
    call: Call, bundle: Path, timed: list[int], tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    done = call(
        "bench", bundle, "--target", "torch-cpu", "--target", "torch-cpu{batch=2}", "--out", out
    )
    assert done.code == 0, done.err
    assert timed == [2, 2]
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    ratio = report["original"]["flops"] / report["pruned"]["flops"]
    for name in ("torch-cpu  ", "torch-cpu{batch=2}"):
        line = next(line for line in done.out.splitlines() if line.startswith(name))
        assert "4 (4 to 4)" in line
        assert "2 (2 to 2)" in line
        assert "2.00x (2.00 to 2.00)" in line
        assert f"{ratio:.2f}x" in line
    assert "random weights" in done.out
    data = json.loads(out.read_text(encoding="utf-8"))
    assert [item["target"] for item in data["targets"]] == ["torch-cpu", "torch-cpu{batch=2}"]
    assert data["targets"][0]["original"]["seconds"] == 0.004
    assert data["targets"][0]["speedup"]["pairs"] == 10
    assert data["flops_ratio"] == ratio


def test_the_original_can_be_given(
    call: Call, bundle: Path, source: Path, timed: list[int]
) -> None:
    done = call("bench", bundle, "--target", "torch-cpu", "--original", source, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["notes"] == []


def test_the_real_thing(call: Call, bundle: Path) -> None:
    """Loaded, timed and compared by the real clock; what it measured is not judged here."""
    done = call("bench", bundle, "--target", "ort-cpu", "--seconds", 0.01, "--json")
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["targets"]
    for network in ("original", "pruned"):
        assert 0 < found[network]["low"] <= found[network]["seconds"] <= found[network]["high"]
        assert found[network]["runs"] >= 10
    assert found["speedup"]["low"] <= found["speedup"]["ratio"] <= found["speedup"]["high"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_cuda_onnxruntime_takes_the_processor_and_says_so(
    call: Call, bundle: Path, timed: list[int]
) -> None:
    done = call("bench", bundle, "--target", "ort-cuda")
    assert done.code == 0
    assert done.sentence.startswith("ort-cuda is not available: ")
    assert done.sentence.endswith("; ort-cpu takes its place")
    assert "ort-cpu" in done.out
    assert call("bench", bundle, "--target", "torch-cuda").sentence.startswith(
        "torch-cuda is not available: "
    )


def test_noise_is_told(bundle: Path) -> None:
    rounds = Rounds(
        np.tile([[0.004, 0.002]], (10, 1)), Noise(0.25, "the machine was not quiet: it hummed"), ()
    )
    found = Comparison(
        parse_target("ort-cpu"), rounds.measurement(0), rounds.measurement(1), rounds.speedup(0, 1)
    )
    lines = bench_lines([found], {}, [])
    assert "4 (3.2 to 5)" in lines[0]
    assert lines[-1] == "ort-cpu: the machine was not quiet: it hummed"


def test_mistakes(call: Call, bundle: Path, tmp_path: Path) -> None:
    assert "is not a bundle" in call("bench", tmp_path).sentence
    assert "there is no target" in call("bench", bundle, "--target", "gpu").sentence
    assert "seconds above 0" in call("bench", bundle, "--seconds", "-1").sentence
    for name in ("weights.safetensors", "report.json"):
        broken = tmp_path / name.partition(".")[0]
        shutil.copytree(bundle, broken)
        (broken / name).write_text("{", encoding="utf-8")
        relist(broken, name)
        assert f"its {name} is missing or cannot be read" in call("bench", broken).sentence


def test_a_bundle_without_whole_blocks_asks_for_its_original(
    call: Call, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    plan = json.loads((bundle / "plan.json").read_text(encoding="utf-8"))
    (tmp_path / "b" / "plan.json").write_text(
        json.dumps({**plan, "dropped": {"layer3": "add"}}), encoding="utf-8"
    )
    relist(tmp_path / "b", "plan.json")
    assert "name the original network by --original" in call("bench", tmp_path / "b").sentence


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "ir.before.txt", "ir.after.txt", "plan.json", "report.json"]
)
def test_a_flipped_byte_of_a_bundle_is_noticed(
    call: Call, bundle: Path, tmp_path: Path, name: str
) -> None:
    broken = tmp_path / "b"
    shutil.copytree(bundle, broken)
    content = bytearray((broken / name).read_bytes())
    content[len(content) // 2] ^= 1
    (broken / name).write_bytes(content)
    done = call("bench", broken)
    assert done.code == 2
    assert f"{broken / name} was changed since pruneopt wrote it" in done.sentence
    (broken / "pruneopt.json").unlink()
    assert "its pruneopt.json is missing" in call("bench", broken).sentence
