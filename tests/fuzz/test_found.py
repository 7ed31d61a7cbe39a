"""Faults that random networks have found, each as the smallest module that shows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import Net
from randomnets.check import compare, leaves, run
from randomnets.plans import make_plan
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.interpreter import Interpreter
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned


def survive(model: nn.Module, *inputs: Tensor, training: bool = True) -> Coupling:
    """Captured, equal in both modes, and pruned to the least and at random, with proof."""
    torch.manual_seed(0)
    model.double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    graph = capture(model, inputs)
    module = build_module(graph, graph.weights)
    compare(run(module, inputs), run(model, inputs), "evaluation mode")
    if training:
        results = []
        for each in (module.train(), model.train()):
            torch.manual_seed(1)
            results.append(run(each, inputs))
        compare(results[0], results[1], "training mode")
    coupling = couple(graph)
    for kind in ("least", "random", "almost"):
        plan = make_plan(coupling, kind, 0)
        pruned = slice_graph(graph, coupling, plan)
        verify_pruned(graph, coupling, plan, pruned, inputs)
        with torch.no_grad():
            mine = leaves(Interpreter(pruned).run(pruned.weights, *inputs))
        compare(run(build_module(pruned, pruned.weights), inputs), mine, "generated")
    return coupling


def test_what_is_read_beside_its_dropout_stays_whole_in_training() -> None:
    """In evaluation mode dropout returns its very input, and the tracer took one for the other."""

    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.b(s.drop(y)) + y.sum(1, keepdim=True)

    survive(
        Net(forward, a=nn.Linear(4, 8), drop=nn.Dropout(0.5), b=nn.Linear(8, 3)), torch.randn(2, 4)
    )


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_spectral_norm_over_removed_channels_is_noted(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    """The proof counted its product with u as one that consumes channels, and saw no change of the
    kept ones."""
    model = Net(lambda s, x: s.b(s.a(x)), a=wrap(nn.Linear(4, 8)), b=nn.Linear(8, 3))
    # In training a step of the power iteration is made.
    coupling = survive(model, torch.randn(2, 4), training=False)
    assert any(note.groups for note in coupling.notes)


def test_memory_that_is_written_later_is_not_compared() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        z: Tensor = s.b(torch.empty_like(y).fill_(0.5).mul_(F.relu(y)))
        return z

    assert survive(Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3)), torch.randn(2, 4)).free


def test_complex_values_are_compared_as_numbers() -> None:
    """They are no floating-point tensors to torch, and were compared bit by bit."""

    def forward(s: Net, x: Tensor) -> Tensor:
        z: Tensor = s.b(torch.fft.fft(s.a(x), dim=1, norm="ortho").real)
        return z

    coupling = survive(Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3)), torch.randn(2, 6, 4))
    assert [group.width for group in coupling.free] == [8]


def test_a_piece_may_be_empty() -> None:
    """No class token to put before the others, nothing to fill up with: labels of nothing were
    looked at."""

    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        z: Tensor = s.b(
            torch.cat([y[:, :0], y, s.p.weight.repeat(len(x), 0, 1), y[:, 6:].flip(1)], 1)
        )
        return z

    net = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3), p=nn.Embedding(1, 8))
    assert [group.width for group in survive(net, torch.randn(2, 6, 4)).free] == [8]


def test_a_slice_of_no_channels_stays_one() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        z: Tensor = s.b(torch.cat([y[..., :0], y], -1))
        return z

    survive(Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3)), torch.randn(2, 6, 4))


def test_rolling_along_copies_leaves_channels_alone() -> None:
    """A vector spread over an image, then rolled: the axis of copies stays, and took the channels'
    labels with it."""

    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)[..., None, None].expand(-1, -1, 2, 2)
        z: Tensor = s.b((y + torch.roll(y, (-1, 1), (2, 3))).mean((2, 3)))
        return z

    coupling = survive(Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3)), torch.randn(2, 4))
    assert [group.width for group in coupling.free] == [8]
