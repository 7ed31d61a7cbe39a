"""`--ignore`: a named module or parameter keeps the channels it makes, not those it reads."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

import pruneopt
from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.couple import couple


@pytest.fixture(scope="module")
def graph() -> Graph:
    return pruneopt.capture(resnet18(), (torch.randn(2, 3, 64, 64),))


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("layer2.0.conv1", {"layer2.0.conv1"}),
        ("layer1.0.bn1", {"layer1.0.conv1"}),
        ("conv1.weight", {"conv1"}),
        ("layer3", {"layer3.0.conv1", "layer3", "layer3.1.conv1"}),
        ("fc", set()),
    ],
)
def test_what_a_name_freezes(graph: Graph, name: str, frozen: set[str]) -> None:
    groups = freeze_named(couple(graph), [name]).groups
    assert {group.name for group in groups if group.frozen is not None} == {*frozen, "fc"}


def test_an_unknown_name_is_refused(graph: Graph) -> None:
    with pytest.raises(
        UserError, match="layer9: no parameter, module or channel group has this name"
    ):
        freeze_named(couple(graph), ["layer9"])
