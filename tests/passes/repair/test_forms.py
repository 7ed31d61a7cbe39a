"""A layer as a matrix product gives what the layer gives, at every position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.passes.repair.forms import Form, form_of
from pruneopt.passes.repair.layers import sites_of


class Product(nn.Module):
    """``x @ w``, by one op or another."""

    def __init__(self, product: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.product = product
        self.w = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.w)


CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "strided": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(0, 2), dilation=(2, 1), bias=False),
        (2, 4, 9, 8),
    ),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same", dilation=2), (2, 4, 9, 8)),
    "valid": (nn.Conv1d(3, 5, 3, padding="valid"), (2, 3, 9)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3, stride=2, padding=1), (3, 6, 8, 8)),
    "depthwise": (nn.Conv2d(5, 10, 3, groups=5, padding=1), (2, 5, 6, 6)),
    "conv1d": (nn.Conv1d(4, 3, 5, padding=2, stride=2), (2, 4, 11)),
    "conv3d": (nn.Conv3d(2, 4, (1, 3, 2), padding=(0, 1, 1), groups=2), (2, 2, 3, 5, 4)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (2, 4, 5, 4),
    ),
    "transposed, cropped": (nn.ConvTranspose2d(4, 6, 2, padding=3), (2, 4, 9, 8)),
    "transposed, grouped": (nn.ConvTranspose1d(6, 4, 4, stride=3, dilation=2, groups=2), (2, 6, 5)),
    "linear": (nn.Linear(4, 3), (5, 4)),
    "tokens": (nn.Linear(4, 3, bias=False), (2, 5, 6, 4)),
    "matmul": (Product(torch.matmul, (4, 3)), (2, 5, 4)),
    "mm": (Product(torch.mm, (4, 3)), (5, 4)),
    "tensordot": (Product(lambda x, w: torch.tensordot(x, w, ([2], [0])), (4, 3)), (2, 5, 4)),
    "tensordot, outputs first": (
        Product(lambda x, w: torch.tensordot(x, w, ([2], [1])), (3, 4)),
        (2, 5, 4),
    ),
    "tensordot, square": (
        Product(lambda x, w: torch.tensordot(x, w, ([1], [1])), (4, 4)),
        (5, 4),
    ),
    "addmm": (
        Product(lambda x, w: torch.addmm(torch.zeros(3, dtype=x.dtype), x, w), (4, 3)),
        (5, 4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_times_matrix_are_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    module, shape = CASES[name]
    graph = capture(module.eval(), (torch.randn(shape),))
    (site,) = sites_of(graph, graph)
    form = form_of(site)
    assert isinstance(form, Form)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        y = module.double()(x)
    weight = graph.weights[site.weight.name].double()
    bias = torch.zeros(site.outputs, dtype=torch.float64)
    own = None if site.bias is None else site.op.value(site.bias)
    if own is not None and own.is_weight:  # that of addmm is computed, and zero
        bias = graph.weights[own.name].double()
    total = form.positions(y)
    assert total == y.numel() // site.outputs
    picks = torch.randperm(total)[: max(1, total - 3)]
    mine = form.rows(x, picks) @ form.matrix(weight) + bias.reshape(form.groups, 1, form.outputs)
    torch.testing.assert_close(mine, form.targets(y, picks))
    assert torch.equal(form.weight(form.matrix(weight)), weight)


@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (nn.Conv2d(3, 4, 3), (3, 8, 8), "without a batch"),
        (Product(lambda x, w: torch.matmul(w, x), (3, 4)), (2, 4, 5), "not one matrix behind"),
        (Product(torch.bmm, (2, 4, 3)), (2, 5, 4), "not one matrix behind"),
        (
            Product(lambda x, w: torch.tensordot(x, w, ([1], [0])), (4, 4)),
            (2, 4, 4),
            "not one matrix behind",
        ),
        (
            Product(lambda x, w: torch.addmm(torch.zeros(3), x, w, alpha=2), (4, 3)),
            (5, 4),
            "scaled",
        ),
    ],
)
def test_layers_without_a_form_say_why(module: nn.Module, shape: tuple[int, ...], why: str) -> None:
    graph = capture(module.eval(), (torch.randn(shape),))
    (site,) = sites_of(graph, graph)
    form = form_of(site)
    assert isinstance(form, str)
    assert why in form
