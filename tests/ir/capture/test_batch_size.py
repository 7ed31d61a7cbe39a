"""The batch size is a symbol where the network allows it, and a note says why where not."""

from __future__ import annotations

import pytest
import torch
from helpers.captured import Network, check, run
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.types import BatchSize


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor, scale: Tensor | None = None) -> Tensor:
        return x @ y.transpose(1, 2) if scale is None else x * scale


def test_several_inputs_share_the_batch() -> None:
    graph = check(Pair(), torch.randn(3, 4, 5), torch.randn(3, 6, 5))
    assert [value.type.dims[0] for value in graph.inputs] == [BatchSize(), BatchSize()]
    assert run(graph, torch.randn(7, 4, 5), torch.randn(7, 6, 5)).shape == (7, 4, 6)


class Apart(nn.Module):
    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x * 2 for x in xs)


def test_inputs_that_never_meet_share_the_batch() -> None:
    graph = check(Apart(), torch.randn(3, 4), torch.randn(3, 6))
    assert [value.type.dims[0] for value in graph.inputs] == [BatchSize(), BatchSize()]


@pytest.mark.parametrize("example", [1, 2, 4])
def test_one_graph_runs_at_every_batch_size(example: int) -> None:
    model = Network().eval()
    graph = capture(model, torch.randn(example, 3, 8, 8))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(run(graph, x), model(x), rtol=0, atol=0)


class Strided(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[::2], torch.cat([x, x[1:]])


def test_sizes_computed_from_the_batch_are_expressions() -> None:
    graph = check(Strided(), torch.randn(4, 3))
    assert [value.type.dims[0] for value in graph.output_values] == [
        BatchSize(1, 1, 2),
        BatchSize(2, -1),
    ]
    x = torch.randn(7, 3)
    torch.testing.assert_close(run(graph, x), Strided()(x), rtol=0, atol=0)


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 2, -1).sum(0)


class SmallOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 4 else x + 1


class ReturnsSize(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, x.shape[0]


class OddSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0] // 2, 2, -1).sum(0)


@pytest.mark.parametrize("model", [OneSize(), SmallOnly(), ReturnsSize(), OddSize()])
def test_a_batch_that_cannot_vary_is_fixed_and_noted(model: nn.Module) -> None:
    graph = check(model, torch.randn(4, 3))
    assert not graph.dynamic_batch
    (note,) = graph.notes
    assert note.startswith("the batch size is fixed at 4: ")


def test_a_fixed_batch_of_one_stays_one() -> None:
    graph = check(ReturnsSize(), torch.randn(1, 3))
    assert graph.inputs[0].type.dims == (1, 3)


def test_the_batch_is_fixed_on_request() -> None:
    graph = check(Network(), torch.randn(2, 3, 8, 8), dynamic_batch=False)
    assert graph.inputs[0].type.dims == (2, 3, 8, 8)
    assert not graph.notes


class TwoInputs(nn.Module):
    """A size that is a quotient of the first sizes of two inputs, both of which are the batch."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.reshape(b.shape[0], -1) + b


def test_the_first_sizes_of_two_inputs_are_one_batch() -> None:
    graph = check(TwoInputs(), torch.randn(2, 2, 3), torch.randn(2, 6))
    assert graph.dynamic_batch, graph.notes
    a, b = torch.randn(5, 2, 3), torch.randn(5, 6)
    assert torch.equal(run(graph, a, b), TwoInputs()(a, b))
