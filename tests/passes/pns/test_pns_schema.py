"""Schemas of pns: written for known networks exactly as documented, and a user's schema read and
checked."""

import copy
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.pns.reader import read_schema, schema_of
from pruneopt.passes.pns.schema import write_schema


def coupled(model: nn.Module, *shape: int) -> Coupling:
    return couple(capture(model.eval(), (torch.randn(2, *shape),)))


@pytest.fixture(scope="module")
def resnet18() -> Coupling:
    return coupled(torchvision.models.resnet18(weights=None), 3, 64, 64)


def tie(*names: str) -> dict[str, Any]:
    return {"names": list(names), "method": "or"}


def module(name: str, prev_bn: str, next_bn: str) -> dict[str, str]:
    return {"name": name, "prev_bn": prev_bn, "next_bn": next_bn}


def schema(**parts: Any) -> dict[str, Any]:
    lists = ("modules", "shortcuts", "depthwise_conv_adjacent_bn", "cats", "fixed_bn_ratio")
    return {"prefix": "", "channel_rounding": "none", **{key: [] for key in lists}, **parts}


def test_resnet18_as_documented(resnet18: Coupling) -> None:
    """A block's second batch norm is the one nearest to what follows: ``out += identity`` names it
    first."""
    modules = [module("conv1", "", "bn1")]
    last = "bn1"
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            modules += [
                module(f"{at}.conv1", last, f"{at}.bn1"),
                module(f"{at}.conv2", f"{at}.bn1", f"{at}.bn2"),
            ]
            if stage > 1 and block == 0:
                modules.append(module(f"{at}.downsample.0", last, f"{at}.downsample.1"))
            last = f"{at}.bn2"
    modules.append(module("fc", "layer4.1.bn2", ""))
    assert len(modules) == 21
    shortcuts = [tie("bn1", "layer1.0.bn2", "layer1.1.bn2")]
    shortcuts += [
        tie(f"layer{n}.0.bn2", f"layer{n}.0.downsample.1", f"layer{n}.1.bn2") for n in (2, 3, 4)
    ]
    assert write_schema(resnet18) == schema(modules=modules, shortcuts=shortcuts)


def test_mobilenet_v2_as_documented() -> None:
    """``x + self.conv(x)`` names the shortcut first: what follows a stage is near the stage's first
    batch norm."""
    modules = [
        module("features.0.0", "", "features.0.1"),
        module("features.1.conv.0.0", "features.0.1", "features.1.conv.0.1"),
    ]
    modules.append(module("features.1.conv.1", "features.1.conv.0.1", "features.1.conv.2"))
    pairs, near = [tie("features.0.1", "features.1.conv.0.1")], "features.1.conv.2"
    stages = [(2, 3), (4, 6), (7, 10), (11, 13), (14, 16), (17, 17)]
    for first, last in stages:
        for i in range(first, last + 1):
            at = f"features.{i}.conv"
            modules += [
                module(f"{at}.0.0", near, f"{at}.0.1"),
                module(f"{at}.1.0", f"{at}.0.1", f"{at}.1.1"),
                module(f"{at}.2", f"{at}.1.1", f"{at}.3"),
            ]
            pairs.append(tie(f"{at}.0.1", f"{at}.1.1"))
            near = f"features.{first}.conv.3"
    modules += [
        module("features.18.0", "features.17.conv.3", "features.18.1"),
        module("classifier.1", "features.18.1", ""),
    ]
    shortcuts = [
        tie(*sorted(f"features.{i}.conv.3" for i in range(a, b + 1))) for a, b in stages[:-1]
    ]
    assert (len(shortcuts), len(pairs), len(modules)) == (5, 17, 53)
    found = write_schema(coupled(torchvision.models.mobilenet_v2(weights=None), 3, 64, 64))
    assert found == schema(modules=modules, shortcuts=shortcuts, depthwise_conv_adjacent_bn=pairs)


def test_squeeze_and_excitation_needs_no_post_processing() -> None:
    """MobileNetV3: ``fc2`` scales what the depthwise convolution made, ``fc1`` makes what no batch
    norm normalises."""
    found = write_schema(coupled(torchvision.models.mobilenet_v3_large(weights=None), 3, 64, 64))
    modules = {item["name"]: (item["prev_bn"], item["next_bn"]) for item in found["modules"]}
    squeezed = [4, 5, 6, 11, 12, 13, 14, 15]
    assert [name for name in modules if name.endswith(".fc1")] == [
        f"features.{i}.block.2.fc1" for i in squeezed
    ]
    for i in squeezed:
        depthwise = f"features.{i}.block.1.1"
        assert modules[f"features.{i}.block.2.fc1"] == (depthwise, "")
        assert modules[f"features.{i}.block.2.fc2"] == ("", depthwise)
        assert modules[f"features.{i}.block.3.0"] == (depthwise, f"features.{i}.block.3.1")
    assert len(found["depthwise_conv_adjacent_bn"]) == 15
    assert [len(group["names"]) for group in found["shortcuts"]] == [2, 2, 3, 4, 2, 3]


class Cat(nn.Module):
    """Two branches side by side, in one order and in the other, read directly and through a
    pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(14, 5, 1), nn.BatchNorm2d(5)
        self.conv4, self.bn4 = nn.Conv2d(14, 5, 1), nn.BatchNorm2d(5)
        self.conv5, self.bn5 = nn.Conv2d(14, 5, 1), nn.BatchNorm2d(5)
        self.last = nn.Conv2d(15, 3, 1)

    def forward(self, x: torch.Tensor) -> Any:
        a, b = torch.relu(self.bn1(self.conv1(x))), self.bn2(self.conv2(x))
        y = torch.cat([a, b], 1)
        z = nn.functional.max_pool2d(y, 3, 1, 1)
        branches = [
            self.bn3(self.conv3(y)),
            self.bn4(self.conv4(torch.cat([b, a], 1))),
            self.bn5(self.conv5(z)),
        ]
        return self.last(torch.cat(branches, 1))


def test_concatenations_keep_their_order() -> None:
    found = write_schema(coupled(Cat(), 3, 8, 8))
    assert found["cats"] == [
        {"input_bn_names": ["bn1", "bn2"], "output_conv_names": ["conv3", "conv5"]},
        {"input_bn_names": ["bn2", "bn1"], "output_conv_names": ["conv4"]},
        {"input_bn_names": ["bn3", "bn4", "bn5"], "output_conv_names": ["last"]},
    ]
    assert {item["name"]: item["prev_bn"] for item in found["modules"]} == {
        "conv1": "",
        "conv2": "",
        "conv3": "bn1",
        "conv4": "bn2",
        "conv5": "bn1",
        "last": "bn3",
    }
    assert schema_of(found, coupled(Cat(), 3, 8, 8), "it").cats[1].norms == ("bn2", "bn1")


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet50"])
def test_what_is_written_is_read_back_without_contradiction(name: str) -> None:
    coupling = coupled(getattr(torchvision.models, name)(weights=None), 3, 64, 64)
    written = write_schema(coupling)
    read = schema_of(written, coupling, "it")
    assert [(n, *sides) for n, sides in read.modules.items()] == [
        tuple(m.values()) for m in written["modules"]
    ]


class PreActivation(nn.Module):
    """A stream that batch norms read but do not make: sums alone do not tell that they belong
    together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(torch.relu(norm(x)))
        return self.head(self.norms[2](x).mean((2, 3)))


def test_ties_that_sums_do_not_show_are_added() -> None:
    found = write_schema(coupled(PreActivation(), 3, 8, 8))
    assert found["shortcuts"] == [tie("norms.0", "norms.1", "norms.2")]
    assert found["modules"][0] == module("stem", "", "norms.0")


class Joined(nn.Module):
    """Two branches side by side; what follows is given."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.after = nn.Sequential(*after)

    def forward(self, x: torch.Tensor) -> Any:
        return self.after(torch.cat([self.norm_a(self.a(x)), self.norm_b(self.b(x))], 1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Joined(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)),
            "after.0 normalises channels that are removed independently",
        ),
        (
            Joined(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
            "after.2 is said to read the channels of norm_a, but it reads the channels of norm_a, "
            "norm_b",
        ),
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 1),
                nn.BatchNorm2d(8),
                nn.Conv2d(8, 8, 1, groups=2),
                nn.Conv2d(8, 4, 1),
            ),
            "2 is a convolution in groups, which pns cannot cut",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 4, 1)),
            "2.weight holds channels of batch norms, and pns cuts Conv2d, BatchNorm2d and Linear "
            "only",
        ),
    ],
)
def test_what_no_schema_can_say_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=rf"a pns schema cannot describe .*: {re.escape(message)}"):
        write_schema(coupled(model, 3, 8, 8))


# A user's schema


def edited(resnet18: Coupling) -> dict[str, Any]:
    return copy.deepcopy(write_schema(resnet18))


def test_a_file_is_read(resnet18: Coupling, tmp_path: Path) -> None:
    data = edited(resnet18) | {
        "channel_rounding": "two_pow",
        "fixed_bn_ratio": [{"name": "bn1", "ratio": 0.25}],
    }
    data["shortcuts"][2]["method"] = "and"
    del data["cats"], data["depthwise_conv_adjacent_bn"], data["prefix"]
    (tmp_path / "s.json").write_text(json.dumps(data))
    read = read_schema(tmp_path / "s.json", resnet18)
    assert (read.rounding, read.fixed) == ("two-pow", (("bn1", 0.25),))
    methods = read.methods(resnet18)
    assert sorted(methods.values()) == ["and", "or", "or", "or"]
    (name,) = [group for group, method in methods.items() if method == "and"]
    assert "layer3.0.bn2.weight" in {
        member.weight.name for member in resnet18.members(resnet18.group(name))
    }
    assert read.unpruned(resnet18) == {"fc"}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("fixed", ["bn1", "model.bn1"])
def test_prefixes(resnet18: Coupling, wrapped: bool, fixed: str) -> None:
    """Shared schemas carry ``model.``; the network may or may not, and fixed ratios never got the
    prefix."""
    data = edited(resnet18) | {
        "prefix": "model.",
        "fixed_bn_ratio": [{"name": [fixed], "ratio": 0.5}],
    }
    if wrapped:
        box = nn.Sequential(OrderedDict(model=torchvision.models.resnet18(weights=None)))
        read = schema_of(data, coupled(box, 3, 64, 64), "it")
        assert (next(iter(read.modules)), read.fixed) == ("model.conv1", (("model.bn1", 0.5),))
    else:
        read = schema_of(data, resnet18, "it")
        assert (next(iter(read.modules)), read.fixed) == ("conv1", (("bn1", 0.5),))


def change(data: dict[str, Any], path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ["shortcuts", 0, "names"],
            ["bn1", "layer1.0.bn2"],
            "it does not tie bn1 and layer1.1.bn2, whose channels",
        ),
        (["shortcuts"], [], "it does not tie bn1 and layer1.0.bn2"),
        (
            ["shortcuts", 0, "names"],
            ["bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.0.bn1"],
            "it ties bn1 and layer1.0.bn1, which the network keeps apart",
        ),
        (
            ["shortcuts", 0, "names", 1],
            "layer1.0.bn7",
            "no BatchNorm2d with scale of this name: did you mean",
        ),
        (["shortcuts", 0, "method"], "xor", "the method 'xor', not 'or' or 'and'"),
        (
            ["modules", 0, "name"],
            "conv7",
            "it names conv7, but the network has no Conv2d or Linear of this name",
        ),
        (
            ["modules", 1, "next_bn"],
            "",
            "layer1.0.conv1 makes the channels of layer1.0.bn1, but its next_bn is empty",
        ),
        (
            ["modules", 1, "next_bn"],
            "layer2.0.bn1",
            "it does not make the channels of layer2.0.bn1",
        ),
        (
            ["modules", 1, "prev_bn"],
            "",
            "layer1.0.conv1 reads the channels of bn1, but its prev_bn is empty",
        ),
        (
            ["modules", 20, "prev_bn"],
            "bn1",
            "fc is said to read the channels of bn1, but it reads the channels of ",
        ),
        (
            ["modules", 0, "prev_bn"],
            "bn1",
            "conv1 is said to read the channels of bn1, but it reads others",
        ),
        (["modules"], [], "lists no module conv1: a schema names every Conv2d"),
        (["modules", 3], {"prev_bn": ""}, "an entry has no text under 'name'"),
        (
            ["channel_rounding"],
            "sixteen",
            "its channel_rounding is 'sixteen', not one of none, eight, two_pow",
        ),
        (
            ["fixed_bn_ratio"],
            [{"name": "bn1", "ratio": 1}],
            "a fixed_bn_ratio is 1, not a number above 0 and below 1",
        ),
        (
            ["fixed_bn_ratio"],
            [{"name": "bn9", "ratio": 0.5}],
            "it names bn9, but the network has no BatchNorm2d",
        ),
        (["prefix"], 3, "its prefix is 3, not a text"),
        (["cats"], {}, None),
        (["cats"], "bn1", "its cats is not a list of objects"),
        (
            ["cats"],
            [{"input_bn_names": ["bn1"]}],
            "an entry has no list of names under 'output_conv_names'",
        ),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(
    resnet18: Coupling, path: list[Any], value: Any, message: str | None
) -> None:
    data = edited(resnet18)
    change(data, path, value)
    if message is None:
        schema_of(data, resnet18, "it")
        return
    with pytest.raises(UserError) as caught:
        schema_of(data, resnet18, "s.json")
    assert str(caught.value).startswith("s.json")
    assert message in str(caught.value)


def test_no_schema_at_all(resnet18: Coupling, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the pns schema .*none.json: No such file"):
        read_schema(tmp_path / "none.json", resnet18)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad.json is no pns schema: it is not JSON"):
        read_schema(tmp_path / "bad.json", resnet18)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(
        UserError, match=r"list.json is no pns schema: it lacks its list of modules"
    ):
        read_schema(tmp_path / "list.json", resnet18)


def test_a_batch_norm_merged_in_two_ways_is_refused(resnet18: Coupling) -> None:
    data = edited(resnet18)
    data["shortcuts"].append({"names": ["bn1", "layer1.0.bn2"], "method": "and"})
    with pytest.raises(UserError, match="it merges bn1 both by 'or' and by 'and'"):
        schema_of(data, resnet18, "it")
