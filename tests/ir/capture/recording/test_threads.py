"""While one thread captures, others run their networks as ever; nothing of a capture stays."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from nets import Double
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.capture.recording.one_thread import replaced_here
from pruneopt.ir.text.printer import print_graph

X = torch.randn(2, 3, 8, 8)
PATCHED: tuple[tuple[type, str], ...] = (
    (nn.Module, "__call__"),
    (torch.autograd.Function, "apply"),
    (torch.jit.ScriptFunction, "__call__"),
)


@torch.jit.script
def halved(x: Tensor) -> Tensor:
    return x / 2


class Hooked(nn.Module):
    """A network that calls a function in the midst of its forward."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.function()
        return self.head(torch.relu(y))


def replaced() -> list[Any]:
    """Return the attributes that a capture replaces, as they are now."""
    return [
        *(vars(owner)[name] for owner, name in PATCHED),
        torch.compiler._is_compiling_flag,
        torch.compiler._is_exporting_flag,
        torch._C._len_torch_function_stack(),
        torch._ops._len_torch_dispatch_stack_pre_dispatch(),
    ]


PLAIN = replaced()


def run_a_network() -> list[Any]:
    """Run a network in a thread that has nothing to do with captures."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    weight, bias = network.parameters()
    with torch.no_grad():
        return [
            torch.equal(network(X), torch.relu(torch.conv2d(X, weight, bias))),
            Double.apply(torch.ones(2)).tolist(),
            halved(torch.ones(2)).tolist(),
            torch.zeros(1).device.type,
            bool(torch.compiler.is_compiling()),
            bool(torch.compiler.is_exporting()),
            *(getattr(owner, name).__qualname__ for owner, name in PATCHED[:2]),
        ]


def test_other_threads_run_their_networks_as_ever() -> None:
    seen: list[list[Any]] = []
    with ThreadPoolExecutor(1) as other:
        graph = capture(
            Hooked(lambda: seen.append(other.submit(run_a_network).result(timeout=60))), X
        )
    assert seen
    assert all(found == run_a_network() for found in seen)
    assert seen[0][:3] == [True, [2.0, 2.0], [0.5, 0.5]]
    assert graph.exported_because is None
    assert [op.base for op in graph.ops] == ["conv2d", "relu", "conv2d"]
    assert replaced() == PLAIN


def test_the_capturing_thread_is_told_that_it_exports() -> None:
    seen: list[bool] = []
    capture(Hooked(lambda: seen.append(bool(torch.compiler.is_exporting()))), X, check=False)
    assert seen
    assert all(seen)
    assert not torch.compiler.is_exporting()


def test_captures_in_several_threads_give_what_each_gives_alone() -> None:
    shared = Hooked(lambda: None)
    networks = [
        shared,
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(1), nn.Linear(288, 2)),
        shared,
        nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)),
    ]
    alone = [print_graph(capture(network, X)) for network in networks]
    before = [dict(network.named_parameters()) for network in networks]
    together = Barrier(len(networks))

    def repeated(network: nn.Module) -> list[str]:
        together.wait(timeout=60)
        return [print_graph(capture(network, X)) for _ in range(10)]

    with ThreadPoolExecutor(len(networks)) as pool:
        found = list(pool.map(repeated, networks))
    assert found == [[text] * 10 for text in alone]
    for network, parameters in zip(networks, before, strict=True):
        assert network.training
        assert all(tensor is parameters[name] for name, tensor in network.named_parameters())
    assert replaced() == PLAIN


def test_a_second_capture_waits_for_the_first() -> None:
    inside, go_on, done = Event(), Event(), Event()

    def hold() -> None:
        inside.set()
        assert go_on.wait(timeout=60)

    def second() -> None:
        capture(nn.Linear(3, 2), torch.randn(2, 3))
        done.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(capture, Hooked(hold), X)
        assert inside.wait(timeout=60)
        other = pool.submit(second)
        assert not done.wait(timeout=0.2)
        go_on.set()
        first.result(timeout=60)
        other.result(timeout=60)
    assert done.is_set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ValueError])
def test_nothing_stays_of_a_capture_that_ends_early(error: type[BaseException]) -> None:
    def stop() -> None:
        raise error("enough")

    network = Hooked(stop).train()
    weights = dict(network.named_parameters())
    with pytest.raises(UserError if issubclass(error, Exception) else error, match="enough"):
        capture(network, X)
    assert replaced() == PLAIN
    assert all(module.training for module in network.modules())
    assert all(tensor is weights[name] for name, tensor in network.named_parameters())
    assert run_a_network()[0]
    assert capture(Hooked(lambda: None), X).exported_because is None


def test_nothing_stays_of_an_export_that_is_interrupted() -> None:
    calls = iter([ValueError("not recorded"), KeyboardInterrupt("enough")])

    def stop() -> None:
        raise next(calls)

    with pytest.raises(KeyboardInterrupt, match="enough"):
        capture(Hooked(stop), X)
    assert replaced() == PLAIN
    assert capture(Hooked(lambda: None), X).exported_because is None


def test_a_network_that_captures_another_one_is_refused_and_nothing_stays() -> None:
    inner = nn.Linear(3, 2)
    with pytest.raises(UserError, match="in the forward of one that is being captured"):
        capture(Hooked(lambda: capture(inner, torch.randn(2, 3))), X)
    assert replaced() == PLAIN
    assert capture(inner, torch.randn(2, 3)).exported_because is None


class Owner:
    def name(self) -> str:
        return "plain"


def test_a_replacement_is_of_one_thread_and_nests() -> None:
    with ThreadPoolExecutor(1) as other, replaced_here(Owner, "name", lambda self: "outer"):
        assert (Owner().name(), other.submit(lambda: Owner().name()).result()) == ("outer", "plain")
        with replaced_here(Owner, "name", lambda self: "inner"):
            assert Owner().name() == "inner"
            assert other.submit(lambda: Owner().name()).result() == "plain"
        assert Owner().name() == "outer"
        assert other.submit(lambda: Owner().name()).result() == "plain"
    assert Owner().name() == "plain"


def test_a_replacement_that_another_patch_puts_back_later_is_without_effect() -> None:
    """As the tracer of torch.fx does in another thread: it began within ours and ends after it."""
    plain = vars(Owner)["name"]
    with replaced_here(Owner, "name", lambda self: "ours"):
        saved = vars(Owner)["name"]
        Owner.name = lambda self: "theirs"  # type: ignore[method-assign]
    assert Owner().name() == "theirs"
    Owner.name = saved  # type: ignore[method-assign]
    assert Owner().name() == "plain"
    Owner.name = plain  # type: ignore[method-assign]
