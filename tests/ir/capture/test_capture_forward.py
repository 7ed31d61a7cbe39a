"""A function in the place of forward: the part of a network to prune, or a way in and out of one
without tensors."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.calling import calling, replace_forward
from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.interpreter import Interpreter


class Detector(nn.Module):
    """A backbone, a head, and a choice of boxes whose number depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)
        self.refine = nn.Linear(8, 4)

    def forward(self, images: list[Tensor]) -> Tensor:
        features = self.backbone(torch.stack(images)).relu()
        scores = self.head(features)
        return self.refine(features.mean((2, 3))[scores.amax((1, 2, 3)) > 0])


def raw(model: Detector, images: Tensor) -> dict[str, Tensor]:
    features = model.backbone(images).relu()
    return {"features": features, "scores": model.head(features)}


class Wrapped(nn.Module):
    """Takes a dictionary and returns an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Any]) -> object:
        return type("Found", (), {"logits": self.layer(batch["x"]) * batch["scale"]})()


def plain(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model({"x": x, "scale": 2.0}).logits
    return found


def test_a_part_is_captured_under_the_names_of_the_whole() -> None:
    model, x = Detector(), torch.randn(2, 3, 6, 6)
    graph = capture(model, x, forward=raw)
    assert sorted(graph.params) == ["backbone.bias", "backbone.weight", "head.bias", "head.weight"]
    found = Interpreter(graph).run(graph.weights, x)
    wanted = raw(model, x)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert any("refine" in note for note in graph.notes)


def test_the_model_keeps_its_own_forward() -> None:
    model = Detector()
    capture(model, torch.randn(2, 3, 6, 6), forward=raw)
    assert "forward" not in vars(model)
    with pytest.raises(UserError):
        capture(model, torch.randn(2, 4, 6, 6), forward=raw)
    assert "forward" not in vars(model)


def test_within_the_function_the_model_is_called_as_ever() -> None:
    model, x = Wrapped(), torch.randn(2, 4)
    graph = capture(model, x, forward=plain)
    assert torch.equal(Interpreter(graph).run(graph.weights, x), plain(model, x))
    with calling(model, plain):
        assert torch.equal(model(x), model.layer(x) * 2)
    assert "forward" not in vars(model)


def test_a_copy_calls_itself() -> None:
    model = Wrapped()
    replace_forward(model, plain)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.layer.weight.zero_()
    x = torch.randn(2, 4)
    assert torch.equal(twin(x), (2 * twin.layer.bias).expand(2, 3))
    assert not torch.equal(model(x), twin(x))
