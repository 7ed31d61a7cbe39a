"""A module that changes itself is refused with the line, in both ways of capture, or is harmless;
and it is left exactly as it was."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture

X = torch.randn(2, 3, 6, 6)
SEEN: dict[Any, Any] = {}
"""A cache beside the class, as detectors have it."""


class Holder:
    """An object of the user's that a module keeps."""

    def __init__(self) -> None:
        self.value: Any = 0


class Net(nn.Module):
    """A small network whose forward also calls ``write(self, x, y)``, which gives another ``y``."""

    buffer: Tensor
    count: Tensor
    of_class = 0

    def __init__(self, write: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("buffer", torch.ones(4))
        self.register_buffer("count", torch.zeros(()))
        self.plain, self.number, self.write = torch.ones(4), 0, write
        self.cache: dict[Any, Any] = {}
        self.items: list[Any] = [0]
        self.last: deque[Any] = deque([0], maxlen=2)
        self.array, self.holder = np.zeros(2), Holder()
        self.grid: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.write(self, x, y) * self.buffer.view(1, -1, 1, 1)


def means(y: Tensor) -> Tensor:
    return y.mean((0, 2, 3)).detach()


def in_place(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.buffer.mul_(0.9).add_(0.1 * means(y))
    return y


def augmented(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.buffer += 0.1 * means(y)
    return y


def assigned(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.buffer = 0.9 * net.buffer + 0.1 * means(y)
    return y


def through_data(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.buffer.data.lerp_(means(y), 0.1)
    return y


def a_slice(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.buffer[:2] = means(y)[:2]
    return y


def copied(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.buffer.copy_(means(y))
    return y


def counted(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.count.add_(1)
    return y


def a_parameter(net: Net, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        net.conv.weight.mul_(0.5)
    return y


def an_input(net: Net, x: Tensor, y: Tensor) -> Tensor:
    x.clamp_(-0.1, 0.1)
    return y


def into_new_memory(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.conv.weight.data = net.conv.weight.data * 0.5
    return y


REGISTERED = {
    in_place: "buffer buffer",
    augmented: "buffer buffer",
    assigned: "buffer buffer",
    through_data: "buffer buffer",
    a_slice: "buffer buffer",
    copied: "buffer buffer",
    counted: "buffer count",
    a_parameter: "parameter conv.weight",
    an_input: "input 0",
    into_new_memory: "parameter conv.weight",
}


def by_number(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.number += 1
    return y * net.number


def by_parity(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.number += 1
    return y if net.number % 2 else y + 1


def after_a_while(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.number += 1
    return y if net.number < 90 else y + 1


def by_length(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.items.append(0)
    return y * len(net.items)


def by_class(net: Net, x: Tensor, y: Tensor) -> Tensor:
    Net.of_class += 1
    return y * Net.of_class


def by_object(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.holder.value += 1
    return y * net.holder.value


def by_plain_tensor(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.plain = 0.9 * net.plain + 0.1 * means(y)
    return y - net.plain.view(1, -1, 1, 1)


def by_first_data(net: Net, x: Tensor, y: Tensor) -> Tensor:
    if net.grid is None:
        net.grid = y.abs().amax()
    return y / net.grid


def by_past(net: Net, x: Tensor, y: Tensor) -> Tensor:
    past = net.cache.get("past")
    net.cache["past"] = y
    return y if past is None or past.shape != y.shape else y + past


PYTHON = [
    by_number,
    by_parity,
    after_a_while,
    by_length,
    by_class,
    by_object,
    by_plain_tensor,
    by_first_data,
    by_past,
]


def line_of(function: Callable[..., Any], word: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if word in line)


WAYS: dict[str, dict[str, Any]] = {
    "recorded": {},
    "exported": {"forward": lambda net, x: net(x)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("write", REGISTERED, ids=lambda write: write.__name__)
def test_a_change_of_what_is_part_of_the_function_is_refused(write: Any, way: str) -> None:
    lines, first = inspect.getsourcelines(write)
    last = first + len(lines) - 2
    with pytest.raises(UserError, match=f"{REGISTERED[write]}, at .*test_state.py:{last};"):
        capture(Net(write).eval(), X.clone(), **WAYS[way])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("write", PYTHON, ids=lambda write: write.__name__)
def test_outputs_that_depend_on_earlier_runs_are_refused(write: Any, way: str) -> None:
    try:
        with pytest.raises(UserError, match=r"Net") as caught:
            capture(Net(write).eval(), X, **WAYS[way])
    finally:
        assert Net.of_class == 0
    if "cannot be captured" not in str(caught.value):
        assert "gives other outputs after it has run" in str(caught.value)
        assert f"test_state.py:{line_of(write, '=' if write is not by_length else 'append')}" in (
            str(caught.value)
        ) or write in (by_first_data, by_past)


def keeps_a_grid(net: Net, x: Tensor, y: Tensor) -> Tensor:
    if net.grid is None or net.grid.shape != y.shape[2:]:
        net.grid = torch.arange(16.0).view(4, 4)
    return y + net.grid


def keeps_by_key(net: Net, x: Tensor, y: Tensor) -> Tensor:
    key = tuple(y.shape[2:])
    if key not in SEEN:
        SEEN[key] = torch.linspace(0, 1, 4)
    return y * SEEN[key]


def counts_only(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.number += 1
    return y


@pytest.mark.parametrize("write", [keeps_a_grid, keeps_by_key, counts_only])
def test_what_no_output_depends_on_is_captured(write: Any) -> None:
    net = Net(write).eval()
    graph = capture(net, X)
    assert (net.grid, SEEN, net.number) == (None, {}, 0)
    noted = [note for note in graph.notes if "what no output depends on" in note]
    assert [f"test_state.py:{line_of(write, '+= 1')}" in note for note in noted] == (
        [True] if write is counts_only else []
    )
    assert net(X).isfinite().all()
    SEEN.clear()  # this was the call above


# Whatever a module does to itself, it is as it was afterwards.


def cached(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.cache.setdefault(tuple(x.shape), torch.zeros(1, dtype=x.dtype) + y.mean())
    return y


def new_attribute(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.fresh = y
    return y


def hooks(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.conv.register_forward_hook(lambda module, args, output: None)
    return y


def objects(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.array += 1
    net.last.append(x)
    net.holder.value, net.holder.more = x, {"x": x}  # type: ignore[attr-defined]
    return y


def layers(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.added, net.bn = nn.ReLU(), nn.BatchNorm2d(4)
    return y


def randoms(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y + random.random() + np.random.rand() + torch.rand(())


def modes(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.bn.train()
    net.conv.weight.requires_grad_(False)
    return y


def gradients(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    return y


def fails(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.cache["half"] = x
    raise ValueError("halfway")


EVERYTHING = [
    *REGISTERED,
    *PYTHON,
    *(keeps_a_grid, keeps_by_key, counts_only, cached, new_attribute, hooks, objects, layers),
    *(randoms, modes, gradients, fails),
]


def state(net: Net) -> dict[str, Any]:
    """Everything of a network by identity, and by value as text."""
    found: dict[str, Any] = {
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1]),
        "of class": Net.of_class,
        "seen": dict(SEEN),
    }
    for path, module in net.named_modules():
        for name, item in vars(module).items():
            found[f"{path}.{name}"] = id(item)
            if isinstance(item, dict):
                found[f"{path}.{name} holds"] = {key: id(child) for key, child in item.items()}
    for name, tensor in (*net.named_parameters(), *net.named_buffers(), ("plain", net.plain)):
        found[f"values of {name}"] = (tensor.tolist(), tensor.requires_grad, tensor.data_ptr())
        found[f"gradient of {name}"] = None if tensor.grad is None else tensor.grad.tolist()
    found["modes"] = [module.training for module in net.modules()]
    found["held"] = (list(net.items), list(net.last), net.array.tolist(), dict(vars(net.holder)))
    return found


class Several:
    """Functions that are called one after the other."""

    def __init__(self, functions: list[Any]) -> None:
        self.functions = functions

    def __call__(self, net: Net, x: Tensor, y: Tensor) -> Tensor:
        for function in self.functions:
            y = function(net, x, y)
        return y


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(EVERYTHING), max_size=3), st.sampled_from([*WAYS]), st.booleans())
def test_a_module_is_left_as_it_was(writes: list[Any], way: str, training: bool) -> None:
    net, x = Net(Several(writes)).train(training), X.clone()
    net.conv(x).sum().backward()
    before = state(net)
    with contextlib.suppress(UserError):
        capture(net, x, **WAYS[way])
    after = state(net)
    different = [name for name in before.keys() | after.keys() if not same(before, after, name)]
    assert not different, {name: (before.get(name), after.get(name)) for name in different}
    assert torch.equal(x, X)


def same(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    return repr(one.get(name)) == repr(other.get(name))
