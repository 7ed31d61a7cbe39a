"""Pruning results of pns: written from plans, replayed by rules written out here, and read back as
plans."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.pns.result import PruningResult, write_result

Entries = list[dict[str, Any]]


class Small(nn.Module):
    """A stem, a residual block with a projection, a depthwise pair, a concatenation, and a flatten
    of 2x2 maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.proj, self.bnp = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.bnd = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(14, 5, 1), nn.BatchNorm2d(5)
        self.fc = nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Any:
        a = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(a)) + self.bnp(self.proj(a)))
        y = torch.relu(self.bnd(self.deep(y)))
        y = torch.relu(self.bn3(self.conv3(torch.cat([a, y], 1))))
        return self.fc(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1))


@pytest.fixture
def small() -> tuple[nn.Module, Coupling]:
    torch.manual_seed(0)
    model = Small()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.2
    return model.eval(), couple(capture(model, (torch.randn(2, 3, 8, 8),)))


KEPT = {"bn1": [0, 2, 5], "bn2": [1, 3, 4, 6], "bn3": [0, 4]}


def plan_of(coupling: Coupling) -> dict[str, np.ndarray]:
    plan = {}
    for norm, kept in KEPT.items():
        (slot,) = coupling.slots_of(coupling.graph.params[f"{norm}.weight"])
        group = coupling.groups[coupling.unit_group[slot.units[0]]]
        plan[group.name] = np.sort(coupling.unit_rank[slot.units[kept]])
    return plan


def expected() -> Entries:
    """By the documented rules: what each layer keeps, worked out by hand."""
    one, two, three = KEPT["bn1"], KEPT["bn2"], KEPT["bn3"]
    norms = {"bn1": one, "bn2": two, "bnp": two, "bnd": two, "bn3": three}
    convs = {
        "conv1": ([0, 1, 2], one),
        "conv2": (one, two),
        "proj": (one, two),
        "deep": (two, two),
        "conv3": ([0, 2, 5, 7, 9, 10, 12], three),
    }
    entries: Entries = [{"name": name, "keep_idxes": kept} for name, kept in norms.items()]
    entries += [
        {"name": name, "in_channels_keep_idxes": read, "out_channels_keep_idxes": made}
        for name, (read, made) in convs.items()
    ]
    return [*entries, {"name": "fc", "in_features_keep_idxes": [0, 1, 2, 3, 16, 17, 18, 19]}]


def replay(model: nn.Module, entries: Entries) -> nn.Module:
    """Do as pns does with a result list (3.1.4), on modules."""
    info = {entry["name"]: entry for entry in entries}
    for name, module in model.named_modules():
        if name not in info:
            continue
        if isinstance(module, nn.Conv2d):
            read, made = info[name]["in_channels_keep_idxes"], info[name]["out_channels_keep_idxes"]
            weight = module.weight.data[made]
            if module.groups > 1:
                module.groups = len(made)
            else:
                weight = weight[:, read]
            module.weight.data, module.in_channels, module.out_channels = (
                weight,
                len(read),
                len(made),
            )
            if module.bias is not None:
                module.bias.data = module.bias.data[made]
        elif isinstance(module, nn.Linear):
            kept = info[name]["in_features_keep_idxes"]
            module.weight.data, module.in_features = module.weight.data[:, kept], len(kept)
        elif isinstance(module, nn.BatchNorm2d):
            kept = info[name]["keep_idxes"]
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data = tensor.data[kept]
            module.num_features = len(kept)
    return model


def test_a_plan_as_a_list(small: tuple[nn.Module, Coupling]) -> None:
    _, coupling = small
    assert write_result(coupling, plan_of(coupling)) == expected()
    assert json.loads(json.dumps(expected())) == expected()


def test_pns_replays_the_list_to_the_same_network(small: tuple[nn.Module, Coupling]) -> None:
    model, coupling = small
    plan = plan_of(coupling)
    sliced = slice_graph(coupling.graph, coupling, plan)
    mine = build_module(sliced, sliced.weights).eval()
    theirs = replay(model, write_result(coupling, plan))
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(mine(x), theirs(x))
    # Weights that pns has trained on go into the pruned network by name.
    for parameter in theirs.parameters():
        parameter.data.mul_(1.5)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine(x), theirs(x))


def test_round_trip(small: tuple[nn.Module, Coupling]) -> None:
    _, coupling = small
    plan = plan_of(coupling)
    found = PruningResult(write_result(coupling, plan), coupling, "it").plan()
    assert {name: kept.tolist() for name, kept in found.items()} == {
        n: k.tolist() for n, k in plan.items()
    }
    assert PruningResult(write_result(coupling, {}), coupling, "it").plan() == {}


def test_round_trip_of_resnet18() -> None:
    model = torchvision.models.resnet18(weights=None).eval()
    coupling = couple(capture(model, (torch.randn(2, 3, 64, 64),)))
    random = np.random.default_rng(0)
    plan = {g.name: np.sort(random.permutation(g.width)[: g.width // 3]) for g in coupling.free}
    entries = write_result(coupling, plan)
    assert len(entries) == 20 + 20 + 1
    found = PruningResult(entries, coupling, "it").plan()
    assert all(np.array_equal(found[name], kept) for name, kept in plan.items())
    pruned = replay(model, entries)
    assert pruned(torch.randn(2, 3, 64, 64)).shape == (2, 1000)


def shuffled(entries: Entries) -> Entries:
    """The same channels in another order, as top-k gives them; whoever shares channels lists them
    alike."""
    swap = {"bn1": [5, 0, 2], "bn2": [6, 1, 4, 3], "bn3": [4, 0]}
    text = json.dumps(entries)
    for norm, kept in KEPT.items():
        text = text.replace(json.dumps(kept), json.dumps(swap[norm]))
    found: Entries = json.loads(text)
    found[-1]["in_features_keep_idxes"] = [16, 17, 18, 19, 0, 1, 2, 3]
    found[-2]["in_channels_keep_idxes"] = [5, 0, 2, 12, 7, 10, 9]
    return found


def test_unsorted_lists_and_their_weights(small: tuple[nn.Module, Coupling]) -> None:
    """pns permutes channels: its weights come back into the order of the original, and the outputs
    agree."""
    model, coupling = small
    entries = shuffled(expected())
    result = PruningResult([{**e, "name": f"model.{e['name']}"} for e in entries], coupling, "it")
    assert {n: k.tolist() for n, k in result.plan().items()} == {
        n: k.tolist() for n, k in plan_of(coupling).items()
    }
    theirs = replay(model, entries)
    x = torch.randn(3, 3, 8, 8)
    before = theirs(x)
    weights = {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    sliced = slice_graph(coupling.graph, coupling, result.plan())
    mine = build_module(sliced, sliced.weights).eval()
    mine.load_state_dict(result.in_graph_order(weights))
    torch.testing.assert_close(mine(x), before)
    weights["model.bn1.weight"] = torch.ones(4)
    with pytest.raises(
        UserError, match=r"model.bn1.weight has 4 channels on axis 0, not the 3 that it keeps"
    ):
        result.in_graph_order(weights)


def test_renumbered_outputs_behind_a_concatenation(small: tuple[nn.Module, Coupling]) -> None:
    """pns notes the outputs of such a convolution as 0, 1, ...: its batch norm knows which they
    are."""
    _, coupling = small
    entries = expected()
    entries[-2]["out_channels_keep_idxes"] = [0, 1]
    found = PruningResult(entries, coupling, "it").plan()
    assert {n: k.tolist() for n, k in found.items()} == {
        n: k.tolist() for n, k in plan_of(coupling).items()
    }


def without(entries: Entries, name: str) -> Entries:
    return [entry for entry in entries if entry["name"] != name]


def altered(entries: Entries, name: str, key: str, value: Any) -> Entries:
    return [{**entry, key: value} if entry["name"] == name else entry for entry in entries]


IN, OUT = "in_channels_keep_idxes", "out_channels_keep_idxes"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "it is no pns result: it must be a list of entries with a name"),
        ([{"keep_idxes": [0]}], "must be a list of entries with a name"),
        (
            [*expected(), {"name": "bn9", "keep_idxes": [0]}],
            "names bn9, but the network has no layer of this name: did",
        ),
        (
            altered(expected(), "bnp", "keep_idxes", [1, 3, 4, 7]),
            "bn2 and bnp share channels, but do not keep the same",
        ),
        (
            altered(expected(), "bnp", "keep_idxes", [1, 3, 4]),
            "bn2 and bnp share channels, but do not keep",
        ),
        (
            altered(expected(), "conv2", IN, [0, 2, 4]),
            "the inputs of conv2 share channels, but do not keep the same ones",
        ),
        (
            altered(expected(), "conv2", OUT, [0, 2, 4]),
            "the outputs of conv2 share channels, but do not keep the same",
        ),
        (
            altered(expected(), "conv1", IN, [0, 2]),
            "removes places of the inputs of conv1 that belong to no channel",
        ),
        (
            altered(expected(), "fc", "in_features_keep_idxes", [0, 1, 2, 16, 17, 18, 19]),
            "only a part of one channel",
        ),
        (
            altered(expected(), "bn1", "keep_idxes", [0, 2, 6]),
            "must be some different numbers from 0 to 5",
        ),
        (
            altered(expected(), "bn1", "keep_idxes", [0, 2, 2]),
            "must be some different numbers from 0 to 5",
        ),
        (
            altered(expected(), "bn1", "keep_idxes", []),
            "must be some different numbers from 0 to 5",
        ),
        (
            altered(expected(), "bn1", "keep_idxes", [0.0]),
            "has no list of whole numbers under 'keep_idxes'",
        ),
        (without(expected(), "bnp"), "it leaves out bnp, of which other entries remove channels"),
        (
            without(expected(), "fc"),
            "it leaves out the inputs of fc, of which other entries remove channels",
        ),
        (without(expected(), "deep"), "it leaves out the outputs of deep"),
    ],
)
def test_what_does_not_agree_is_refused(
    small: tuple[nn.Module, Coupling], entries: Any, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        PruningResult(entries, small[1], "it").plan()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)),
            "pns has no entry for the outputs of a Linear, and the plan removes some of 1",
        ),
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 1),
                nn.BatchNorm2d(8),
                nn.Conv2d(8, 8, 1, groups=2),
                nn.Conv2d(8, 4, 1),
            ),
            "pns cannot cut convolutions in groups, and the plan removes channels of 2",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Conv2d(8, 4, 1)),
            "pns cuts Conv2d, BatchNorm2d and Linear only, and the plan removes channels of "
            "1.weight",
        ),
    ],
)
def test_what_pns_cannot_cut_is_not_written(model: nn.Module, message: str) -> None:
    coupling = couple(capture(model.eval(), (torch.randn(2, 3, 2, 2),)))
    assert write_result(coupling, {}) is not None
    plan = {g.name: np.concatenate([block[:1] for block in g.blocks]) for g in coupling.free}
    with pytest.raises(UserError, match=message):
        write_result(coupling, plan)
