"""Half precision is held to PyTorch's own error."""

import pytest
import torch
from torch import nn

from pruneopt.errors import VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.targets.half import FACTOR, ROUNDING, apart, check_half, half_error
from pruneopt.passes.targets.session import fixed_inputs
from pruneopt.passes.targets.target import parse_target


def test_apart_is_relative_to_each_outputs_largest_number() -> None:
    exact = [torch.tensor([1.0, -4.0]), torch.tensor([10.0]), torch.tensor([3])]
    found = [torch.tensor([1.2, -4.0]), torch.tensor([10.1]), torch.tensor([2])]
    assert apart(found, exact) == pytest.approx(0.05)
    assert apart(exact, exact) == 0.0
    assert apart([torch.tensor([1.0, float("nan")])], exact[:1]) == float("inf")
    assert apart([torch.tensor([0.0, 1e-9])], [torch.zeros(2)]) == float("inf")


def test_a_file_in_half_precision_is_as_near_as_pytorch() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    graph = capture(nn.Sequential(*layers).eval(), (torch.randn(2, 8, 10, 10),))
    session = parse_target("ort-cpu{batch=4 dtype=fp16}").load(graph, graph.weights)
    found = [torch.from_numpy(item) for item in session.outputs()]
    inputs = fixed_inputs(graph, 4)
    error, allowed = check_half(graph, graph.weights, found, inputs)
    assert 2.0**-13 < error <= allowed
    assert ROUNDING <= allowed < 16 * FACTOR * 2.0**-11
    # What single precision alone could not tell from right: one part in a hundred.
    with pytest.raises(VerificationError, match=r"in half precision .* is off by"):
        check_half(graph, graph.weights, [item * 1.01 for item in found], inputs)


def test_numbers_that_overflow_are_refused() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 3)).eval(), (torch.randn(2, 4),))
    inputs = fixed_inputs(graph, 2)
    with pytest.raises(VerificationError, match="numbers do not fit"):
        check_half(graph, graph.weights, [torch.full((2, 3), float("inf"))], inputs)
    weights = {name: tensor * 1e6 for name, tensor in graph.weights.items()}
    with pytest.raises(VerificationError, match="numbers do not fit"):
        check_half(graph, weights, [torch.full((2, 3), float("nan"))], inputs)
    assert (
        half_error(graph, graph.weights, [graph.weights["0.bias"].expand(2, 3)], inputs)[1]
        >= ROUNDING
    )
