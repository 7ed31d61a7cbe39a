"""In-place ops become functional, and dropouts that return their input get a name of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.captured import check, run, targets
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.types import MODE


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1).mul_(3)
        z = y.clamp_(-1, 1)
        z += x
        return y.relu_() - z


class WriteIntoView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.bn(x))
        y[:, :2] = y[:, 2:] * 2
        left = y[:, 1:]
        left.relu_()
        return torch.cat([y, left], 1)


class ViewBeforeWrite(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        flat = y.flatten(1)
        y.relu_()
        return flat, y


class DropoutInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(4), nn.Hardswish(True), nn.Dropout(0.2, True), nn.ReLU(True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


@pytest.mark.parametrize("model", [InPlace(), WriteIntoView(), ViewBeforeWrite(), DropoutInPlace()])
def test_in_place_ops_become_functional(model: nn.Module) -> None:
    graph = check(model, torch.randn(2, 4, 3, 3))
    assert not any(base.endswith("_") for base in targets(graph))
    assert not any("__" in value.name for value in graph.values)


def test_dropout_in_place_stays_in_the_graph() -> None:
    graph = capture(DropoutInPlace(), torch.randn(2, 4, 3, 3))
    assert targets(graph) == ["batch_norm", "hardswish", "dropout", "relu", "flatten"]
    assert not graph.notes


def test_functionalisation_keeps_batch_norm_and_says_that_dropout_is_lost() -> None:
    graph = capture(WriteIntoView(), torch.randn(2, 4, 3, 3))
    batch_norm = graph.ops[0]
    assert batch_norm.base == "batch_norm"
    assert batch_norm.attrs["training"] == MODE
    assert len(graph.notes) == 1
    assert graph.notes[0].startswith("dropout is left out")


class ReadsBeside(nn.Module):
    """A tensor that is read beside its dropout, which in evaluation mode returns that very
    tensor."""

    def __init__(self, dropout: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 6), dropout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return self.dropout(y, self.training), y * 2


@pytest.mark.parametrize(
    "dropout",
    [
        lambda y, training: nn.functional.dropout(y, 0.5, training),
        lambda y, training: torch.dropout(y, 0.5, training),
        lambda y, training: nn.functional.alpha_dropout(y, 0.5, training),
        lambda y, training: nn.functional.dropout2d(y[:, :, None, None], 0.5, training),
    ],
)
def test_what_is_read_beside_its_dropout_is_not_dropped(
    dropout: Callable[[Tensor, bool], Tensor],
) -> None:
    model, x = ReadsBeside(dropout), torch.randn(3, 4)
    graph = check(model, x)
    torch.manual_seed(0)
    dropped, whole = run(graph, x, training=True)
    assert torch.equal(whole, 2 * model.layer(x))
    torch.manual_seed(0)
    assert torch.equal(dropped, model.train()(x)[0])


def test_what_is_dropped_in_place_is_dropped_for_every_reader() -> None:
    model = ReadsBeside(lambda y, training: nn.functional.dropout(y, 0.5, training, inplace=True))
    graph = check(model, x := torch.randn(3, 4))
    dropped, read = run(graph, x, training=True)
    assert torch.equal(read, 2 * dropped)
