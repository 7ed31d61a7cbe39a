"""Which block a layer stands in: the networks that MetaPruning was published for, and shapes beyond
them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torchvision
from torch import nn

from pruneopt.ir.capture.capture import capture
from pruneopt.models import zoo
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.hypernet_blocks import LayerPlace, layer_places


def places_of(network: nn.Module, shape: tuple[int, ...]) -> dict[str, LayerPlace]:
    """Return the places by the name of the layer."""
    found = layer_places(couple(capture(network.eval(), torch.randn(shape))))
    return {place.weight.name.removesuffix(".weight"): place for place in found}


@cache
def named(name: str) -> dict[str, LayerPlace]:
    if name in zoo.names():
        return places_of(zoo.create(name), zoo.entry(name).input_shape)
    return places_of(torchvision.models.get_model(name, weights=None), (1, 3, 64, 64))


def test_resnet50_blocks_see_middle_input_and_output() -> None:
    places = named("resnet50")
    assert places["conv1"].role == "alone"
    assert places["conv1"].groups == ("conv1",)
    assert places["fc"].role == "output"
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            before = "conv1" if stage == 1 else f"layer{stage - 1}"
            entry = before if block == 0 else f"layer{stage}"
            prefix = f"layer{stage}.{block}"
            wanted = (f"{prefix}.conv1", entry, f"layer{stage}")
            roles = {f"{prefix}.conv{number}": "branch" for number in (1, 2, 3)}
            if block == 0:
                roles[f"{prefix}.downsample.0"] = "shortcut"
            for layer, role in roles.items():
                assert (places[layer].role, places[layer].groups) == (role, wanted)
                assert places[layer].block
                assert not places[layer].inverted


def test_mobilenet_v1_blocks_are_depthwise_and_pointwise() -> None:
    places = named("mobilenet_v1")
    outputs = [places[f"blocks.{i}.conv_pw"].groups[1] for i in range(13)]
    inputs = [places["conv_stem"].groups[0], *outputs[:-1]]
    assert len(set(outputs)) == 13
    for number, groups in enumerate(zip(inputs, outputs, strict=True)):
        for layer, role in (("conv_dw", "depthwise"), ("conv_pw", "pointwise")):
            place = places[f"blocks.{number}.{layer}"]
            assert (place.role, place.groups, place.inverted) == (role, groups, False)


def test_mobilenet_v2_blocks_are_inverted_residuals() -> None:
    places = named("mobilenet_v2_1_4")
    roles = {"conv_expand": "expand", "conv_dw": "depthwise", "conv_project": "project"}
    before = places["conv_stem"].groups[0]
    for number in range(17):
        found = {layer: places[f"blocks.{number}.{layer}"] for layer in roles}
        assert {layer: place.role for layer, place in found.items()} == roles
        (groups,) = {place.groups for place in found.values()}
        assert groups[:2] == (f"blocks.{number}", before)
        assert all(place.inverted for place in found.values())
        before = groups[2]
    assert places["conv_last"].role == "alone"
    assert places["conv_last"].groups == (before, "conv_last")


def test_squeeze_and_excitation_stays_out_of_the_expansion() -> None:
    """MobileNetV3: the gate reads and makes the expanded channels too, but the block is expand,
    depthwise, project."""
    places = named("mobilenet_v3_small")
    block = "features.4.block"
    layers = [f"{block}.0.0", f"{block}.1.0", f"{block}.3.0"]
    assert [places[layer].role for layer in layers] == ["expand", "depthwise", "project"]
    assert len({places[layer].groups for layer in layers}) == 1
    assert places[f"{block}.2.fc1"].groups[0] != places[layers[0]].groups[0]
    # The first block has no expansion: depthwise and pointwise.
    assert places["features.1.block.0.0"].role == "depthwise"
    assert not places["features.1.block.0.0"].inverted
    assert places["features.1.block.2.0"].role == "pointwise"


class Depthwise(nn.Module):
    """A depthwise layer on a residual stream (ConvNeXt), a layer alone with two inputs joined, and
    a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 32, 1)
        self.back = nn.Conv2d(32, 8, 1)
        self.other = nn.Conv2d(3, 6, 1)
        self.join = nn.Conv2d(14, 12, 1)
        self.first = nn.Conv2d(12, 10, 1)
        self.last = nn.Conv2d(10, 16, 1)
        self.beside = nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.stem(x)
        stream = stream + self.back(torch.relu(self.wide(self.deep(stream))))
        y = self.join(torch.cat([stream, self.other(x)], 1))
        y = self.last(torch.relu(self.first(y))) + self.beside(y)
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def mixture() -> dict[str, LayerPlace]:
    return places_of(Depthwise(), (2, 3, 8, 8))


def test_a_depthwise_layer_before_a_branch_belongs_to_it(mixture: dict[str, LayerPlace]) -> None:
    stream = mixture["stem"].groups[0]
    wide = mixture["wide"].groups
    assert wide[1:] == (stream, stream)
    assert mixture["deep"].groups == mixture["back"].groups == wide
    assert (mixture["deep"].role, mixture["deep"].inverted) == ("depthwise", False)


def test_a_layer_alone_sees_what_it_reads_and_makes(mixture: dict[str, LayerPlace]) -> None:
    join = mixture["join"]
    assert (join.role, join.block) == ("alone", False)
    assert join.groups == (mixture["stem"].groups[0], mixture["other"].groups[0], "join")


def test_a_shortcut_belongs_to_the_branch_beside_it(mixture: dict[str, LayerPlace]) -> None:
    assert mixture["beside"].role == "shortcut"
    assert mixture["beside"].groups == mixture["first"].groups == mixture["last"].groups
    assert mixture["head"].role == "output"
