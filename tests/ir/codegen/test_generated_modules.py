"""A generated module stands in for the user's own: it is copied, pickled, cast and trained."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Net
from torch import Tensor, nn
from torch.nn import functional as F

from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module, generate_source

CAUSAL = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)


def _written(s: Net, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.copy_(x.mean(1, keepdim=True))
    z: Tensor = s.b(s.a(x + y))
    return z


def _attention(s: Net, x: Tensor, padding: Tensor) -> Tensor:
    y = s.a(x, x, x, attn_mask=CAUSAL, key_padding_mask=padding, need_weights=False)[0]
    z: Tensor = s.b(y + x)
    return z


def _scores(s: Net, x: Tensor, keep: Tensor) -> Tensor:
    """Additive masks made of truth values and of whole numbers, and a softmax in its own type."""
    q = s.a(x)
    bias = (1.0 - keep.to(x.dtype)) * -30.0
    grow = torch.full((6, 6), -math.inf, dtype=x.dtype).triu(1)
    weights = torch.softmax(q @ q.transpose(1, 2) + bias[:, None] + grow, -1, dtype=q.dtype)
    z: Tensor = s.b(weights @ q)
    return z


def _in_float32(s: Net, x: Tensor) -> Tensor:
    y = s.a(x).float()
    y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    z: Tensor = s.b(y)
    return z


PADDING = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
Case = tuple[Callable[[], nn.Module], tuple[Tensor, ...]]
X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
CASES: dict[str, Case] = {
    "linear": (lambda: Net(lambda s, x: s.b(s.a(x).relu()), a=_line(), b=_line()), (X,)),
    "lstm": (
        lambda: Net(lambda s, x: s.b(s.a(x)[0]), a=nn.LSTM(8, 8, batch_first=True), b=_line()),
        (X,),
    ),
    "gru of two layers": (
        lambda: Net(
            lambda s, x: s.b(s.a(x)[0]),
            a=nn.GRU(8, 4, 2, batch_first=True, bidirectional=True),
            b=_line(),
        ),
        (X,),
    ),
    "masked attention": (
        lambda: Net(_attention, a=nn.MultiheadAttention(8, 2, batch_first=True), b=_line()),
        (X, PADDING),
    ),
    "encoder layer": (
        lambda: Net(
            lambda s, x, p: s.b(s.a(x, src_key_padding_mask=p)),
            a=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            b=_line(),
        ),
        (X, PADDING),
    ),
    "scaled products": (
        lambda: Net(
            lambda s, x, p: s.b(F.scaled_dot_product_attention(s.a(x), x, x, ~p[:, None])),
            a=_line(),
            b=_line(),
        ),
        (X, PADDING),
    ),
    "scores by hand": (lambda: Net(_scores, a=_line(), b=_line()), (X, PADDING.long())),
    "norm in float32": (lambda: Net(_in_float32, a=_line(), b=_line()), (X,)),
    "written in place": (lambda: Net(_written, a=_line(), b=_line()), (X,)),
    "bags of words": (
        lambda: Net(lambda s, x: s.b(s.a(x)), a=nn.EmbeddingBag(20, 8), b=_line()),
        (torch.arange(14).reshape(2, 7),),
    ),
    "still batch norm": (
        lambda: Net(
            lambda s, x: s.b(s.n(s.a(x).mT).mT), a=_line(), b=_line(), n=_still(nn.BatchNorm1d(8))
        ),
        (X,),
    ),
}


def _line() -> nn.Module:
    return nn.Linear(8, 8)


def _still(norm: nn.Module) -> nn.Module:
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    norm.training = False
    return norm


def _pair(name: str) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """Return the user's module, in evaluation mode, and the one that is generated from it."""
    make, inputs = CASES[name]
    torch.manual_seed(0)
    model = make()
    graph = capture(model, inputs)
    return model.eval(), build_module(graph, graph.weights), inputs


@pytest.mark.parametrize("name", CASES)
def test_it_is_cast_as_the_original_is(name: str) -> None:
    model, made, inputs = _pair(name)
    for dtype, bound in ((torch.float64, 1e-6), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        with torch.no_grad():
            wanted = copy.deepcopy(model).to(dtype)(*given)
            found = copy.deepcopy(made).to(dtype)(*given)
        assert found.dtype == wanted.dtype == dtype
        torch.testing.assert_close(found, wanted, atol=bound, rtol=bound)


@pytest.mark.parametrize("name", CASES)
def test_it_is_copied_and_pickled_after_a_backward(name: str) -> None:
    model, made, inputs = _pair(name)
    for module in (model, made):
        module(*inputs).square().sum().backward()
    for key, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, model.get_parameter(key).grad)
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    for twin in (copy.deepcopy(made), torch.load(file, weights_only=False)):
        assert type(twin) is type(made)
        assert all(a is not b for a, b in zip(twin.parameters(), made.parameters(), strict=True))
        assert torch.equal(twin(*inputs), made(*inputs))
        assert [m.training for m in twin.train().modules()] == [
            m.training for m in made.train().modules()
        ]
        made.eval()


def test_a_pickle_is_read_by_another_process(tmp_path: Path) -> None:
    _, made, inputs = _pair("still batch norm")
    with (tmp_path / "made.pkl").open("wb") as file:
        pickle.dump((made, inputs), file)
    code = (
        "import pickle, torch\n"
        f"made, inputs = pickle.load(open({str(tmp_path / 'made.pkl')!r}, 'rb'))\n"
        "print(made.train()(*inputs).double().sum().item())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) == made(*inputs).double().sum().item()


def test_a_derived_class_is_pickled_by_its_own_name() -> None:
    _, made, _ = _pair("linear")
    derived: Any = type("Derived", (type(made),), {})
    with pytest.raises(pickle.PicklingError, match="Derived"):
        pickle.dumps(derived())


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("frozen", [("a.weight",), ("a.weight", "a.bias"), ("b.bias",), None])
def test_it_keeps_what_requires_gradients(exported: bool, frozen: tuple[str, ...] | None) -> None:
    make, inputs = CASES["linear"]
    model = make()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen is not None and name not in frozen)
    graph = capture(model, inputs, forward=(lambda m, x: m(x)) if exported else None)
    made = build_module(graph, graph.weights, keep_frozen=True)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in made.named_parameters()} == wanted
    # Passes train all there is: what the user holds still while training is no property of them.
    assert all(p.requires_grad for p in build_module(graph, graph.weights).parameters())
    lines = [line for line in generate_source(graph).splitlines() if "requires_grad_" in line]
    assert len(lines) == 1
