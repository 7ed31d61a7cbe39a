"""Training from scratch: what PyTorch gives to fresh layers, which weights decay, and nothing half
done."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.states import coupled
from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.models import zoo
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.transform import scratch
from pruneopt.passes.transform.scratch import SCRATCH, Scratch, decayed_by_role, fresh_weights
from pruneopt.passes.transform.stages import Slice, Verify

SHORT = SGD(epochs=1, lr=0.1, batch_size=64)


def cut(workload: Workload | None, network: nn.Module | None = None) -> State:
    """A network cut to half of every group, and proved."""
    torch.manual_seed(0)
    network = network or DigitsResNet((8, 8, 16))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.07)
    graph = capture(network, torch.randn(2, 1, 8, 8))
    state = coupled(graph, workload)
    state.plan = {group.name: np.arange(0, group.width, 2) for group in state.need_coupling().free}
    for after in (Slice(), Verify()):
        after.run(state)
    return state


class Layers(nn.Module):
    """One of each kind of layer that PyTorch initialises in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 40, 3, groups=1)
        self.deep = nn.Conv2d(40, 40, 3, groups=40)
        self.up = nn.ConvTranspose2d(40, 30, 2)
        self.batch, self.group, self.layer = (
            nn.BatchNorm2d(30),
            nn.GroupNorm(3, 30),
            nn.LayerNorm(30),
        )
        self.embedding = nn.Embedding(50, 30)
        self.head = nn.Linear(30, 20)

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        x = self.group(self.batch(self.up(self.deep(self.conv(x))))).mean((2, 3))
        return self.head(self.layer(x) + self.embedding(codes))


def graph_of(network: nn.Module) -> Graph:
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(7)
    return capture(network.eval(), (torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)))


def test_layers_start_as_pytorch_starts_them() -> None:
    graph = graph_of(Layers())
    fresh, bare = fresh_weights(graph, 0)
    assert bare == []
    assert fresh.keys() == graph.weights.keys()
    # kaiming_uniform(a=sqrt(5)) is uniform within 1 / sqrt(fan in); PyTorch counts axis 1 of a
    # transposed weight.
    for name, fan_in in {"conv": 27, "deep": 9, "up": 30 * 4, "head": 30}.items():
        for leaf in ("weight", "bias"):
            tensor, bound = fresh[f"{name}.{leaf}"], 1 / math.sqrt(fan_in)
            assert tensor.abs().max() <= bound
            assert tensor.abs().max() > 0.8 * bound
            assert tensor.unique().numel() > 1
    for name in ("batch", "group", "layer"):
        assert (fresh[f"{name}.weight"] == 1).all()
        assert (fresh[f"{name}.bias"] == 0).all()
    assert (fresh["batch.running_mean"] == 0).all()
    assert (fresh["batch.running_var"] == 1).all()
    assert int(fresh["batch.num_batches_tracked"]) == 0
    assert fresh["embedding.weight"].std() == pytest.approx(1, abs=0.1)


def test_the_seed_decides_and_the_callers_state_stays() -> None:
    graph = graph_of(Layers())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, _ = fresh_weights(graph, 1)
    assert torch.equal(torch.rand(3), expected)
    again, other = fresh_weights(graph, 1)[0], fresh_weights(graph, 2)[0]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


class Positioned(nn.Module):
    """A parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(8, 10)
        self.position = nn.Parameter(torch.randn(6, 8, 8))
        self.mix = nn.Conv2d(6, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(self.conv(x) + self.position)).mean((2, 3)))


def test_a_parameter_without_a_default_is_named(workload: Workload) -> None:
    state = cut(workload, Positioned())
    before = state.graph.weights
    with pytest.raises(UserError, match=r"position belongs to no layer .*weights=inherit"):
        Scratch(SHORT).run(state)
    assert state.graph.weights is before


def test_nothing_is_inherited_and_training_happens(workload: Workload) -> None:
    state = cut(workload)
    shapes = {name: tensor.shape for name, tensor in state.graph.weights.items()}
    assert Scratch(SGD(epochs=6, lr=0.1, batch_size=64)).run(state)
    assert {name: tensor.shape for name, tensor in state.graph.weights.items()} == shapes
    assert all(
        float(tensor.abs().max()) < 7
        for name, tensor in state.graph.weights.items()
        if name.endswith("weight")
    )
    assert state.trained_after_slice
    log = state.records["scratch"]
    assert len(log.epochs) == 6  # type: ignore[attr-defined]
    assert log.epochs[-1].metric > 0.6  # type: ignore[attr-defined]
    assert "proof is about the structure" in log.notes[-1]  # type: ignore[attr-defined]


def test_a_run_that_is_stopped_leaves_the_cut_network(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = cut(workload)
    before = dict(state.graph.weights)

    def stopped(*args: object, **options: object) -> None:
        assert not torch.equal(state.graph.weights["conv1.weight"], before["conv1.weight"])
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch, "train_state", stopped)
    with pytest.raises(KeyboardInterrupt):
        Scratch(SHORT).run(state)
    assert all(state.graph.weights[name] is tensor for name, tensor in before.items())
    assert not state.trained_after_slice


def test_it_comes_after_the_proof(workload: Workload) -> None:
    state = cut(workload)
    state.verification = None
    assert (
        Scratch().requires(state) == "run verify first: afterwards nothing is left to compare with"
    )
    state.uncut = None
    assert "run slice and verify first" in str(Scratch().requires(state))
    assert "needs data" in str(Scratch().requires(cut(None)))
    with pytest.raises(UserError, match="untrained network"):
        Scratch(SGD(epochs=0))


# Weight decay by role


def layers_of(names: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def test_published_decay_of_mobilenet_v2() -> None:
    """Stem, expansions, last convolution and classifier; not depthwise layers, projections and
    batch norms."""
    decayed = decayed_by_role(
        couple(capture(zoo.create("mobilenet_v2_1_4").eval(), torch.randn(1, 3, 224, 224)))
    )
    expansions = {f"blocks.{number}.conv_expand" for number in range(17)}
    assert layers_of(decayed) == {"conv_stem", "conv_last", "classifier", *expansions}
    assert "classifier.bias" in decayed


def test_published_decay_of_residual_networks() -> None:
    """All convolutions of blocks and the classifier; not the shortcuts."""
    decayed = layers_of(
        decayed_by_role(couple(capture(DigitsResNet().eval(), torch.randn(1, 1, 8, 8))))
    )
    blocks = {
        f"layer{stage}.{block}.conv{number}"
        for stage in (1, 2, 3)
        for block in (0, 1)
        for number in (1, 2)
    }
    assert decayed == {"conv1", "classifier", *blocks}


def test_decay_by_role_acts_in_training(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def train_state(state: State, recipe: SGD, *, name: str, decays: object = None) -> object:
        seen.update(recipe=recipe, decays=decays)
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch, "train_state", train_state)
    for decay, norm in (("role", True), ("recipe", False)):
        with pytest.raises(KeyboardInterrupt):
            Scratch(SCRATCH, decay).run(cut(workload))  # type: ignore[arg-type]
        assert seen["recipe"].decay_norm is norm  # type: ignore[attr-defined]
        decays = seen["decays"]
        if decay == "recipe":
            assert decays is None
        else:
            names = (
                "classifier.bias",
                "layer2.0.project.0.weight",
                "bn1.weight",
                "layer1.0.conv2.weight",
            )
            assert [decays(name, None) for name in names] == [True, False, False, True]
