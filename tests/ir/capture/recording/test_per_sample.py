"""One run in the place of three: only for networks that treat every sample by itself and look at no
size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.recording import capture as fast_capture
from pruneopt.ir.capture.recording import recorder
from pruneopt.ir.capture.recording.capture import recorded_graph
from pruneopt.ir.capture.recording.known_functions import ATEN_CALL_OF
from pruneopt.ir.capture.recording.module_state import CannotRecordError
from pruneopt.ir.capture.recording.per_sample import is_samplewise
from pruneopt.ir.graph import Graph


@torch.jit.script
def half_of_the_batch(x: Tensor) -> int:
    return x.size(0) // 2


class Network(nn.Module):
    """A network whose forward is a function."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.function = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            function,
        )
        self.layer, self.head = nn.LayerNorm(4), nn.Linear(4, 2)
        self.pool, self.drop = nn.MaxPool2d(3, 2, 1), nn.Dropout(0.1, inplace=True)
        self.scale, self.pair = (
            nn.Parameter(torch.randn(4, 1, 1)),
            nn.Parameter(torch.randn(2, 4, 6, 6)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.norm(self.conv(x)))


ONCE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a chain": lambda net, x: net.head(
        F.adaptive_avg_pool2d(F.relu(x, inplace=True), 1).flatten(1)
    ),
    "a residual": lambda net, x: (
        net.drop(x + torch.cat([x, x], 1).mean((1, 3), keepdim=True)) * net.scale
    ),
    "pools": lambda net, x: (
        net.pool(x) + F.max_pool2d(x, 2) - F.avg_pool2d(x, (2, 2), count_include_pad=False)
    ),
    "a view": lambda net, x: net.head(x.mean([2, 3]).view(-1, 4)).unsqueeze(-1).transpose(1, 2),
    "channels last": lambda net, x: net.layer(x.permute(0, 2, 3, 1)).permute(0, x.dim() - 1, 1, 2),
}
THRICE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a shape": lambda net, x: x.reshape(x.shape[0], -1),
    "a size": lambda net, x: x.view(x.size(0) * 2, -1),
    "a length": lambda net, x: x.reshape(len(x), -1),
    "samples in one": lambda net, x: x.view(-1, 36),
    "the batch moved": lambda net, x: x.transpose(0, 1) * 2,
    "the batch flattened": lambda net, x: torch.flatten(x, 0, 1),
    "part of the batch": lambda net, x: x[:2] * 2,
    "a script": lambda net, x: x.reshape(half_of_the_batch(x) * 8, -1),
    "a product of weights": lambda net, x: x * (net.scale * net.scale),
}


def recorded(module: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> tuple[Graph, int]:
    """The graph, and how many runs it took."""
    counts = []

    def counted(*args: Any) -> Any:
        runs = recorder.record(*args)
        counts.append(len(runs))
        return runs

    monkeypatch.setattr(fast_capture, "record", counted)
    graph = recorded_graph(module.eval(), (x,), ModuleTable(module, frozenset()), "net", ())
    return graph, counts[0]


@pytest.mark.parametrize("name", ONCE)
def test_one_run_tells_what_three_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Network(ONCE[name]), torch.randn(1, 3, 6, 6)
    graph, runs = recorded(module, monkeypatch, x)
    assert runs == 1
    monkeypatch.setattr(recorder, "is_samplewise", lambda *args: False)
    other, runs = recorded(module, monkeypatch, x)
    assert runs == 3
    assert graph == other


@pytest.mark.parametrize("name", THRICE)
def test_what_may_follow_the_batch_is_run_three_times(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these may be taken for samplewise: a refusal, as for a part of the batch, leaves it
    to torch.export."""
    module, x = Network(THRICE[name]), torch.randn(2, 3, 6, 6)
    try:
        graph, runs = recorded(module, monkeypatch, x)
    except CannotRecordError:
        return
    assert runs == 3
    monkeypatch.setattr(recorder, "is_samplewise", lambda *args: False)
    assert graph == recorded(module, monkeypatch, x)[0]


def test_a_weight_with_an_entry_for_each_sample_is_left_to_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fits a batch of two, which the one run has."""
    module = Network(lambda net, x: x + net.pair)
    with pytest.raises(CannotRecordError):
        recorded(module, monkeypatch, torch.randn(2, 3, 6, 6))


def test_scripts_are_called_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotRecordError, match="batch size"):
        recorded(Network(THRICE["a script"]), monkeypatch, torch.randn(2, 3, 6, 6))
    assert half_of_the_batch(torch.ones(6, 1)) == 3
    assert type(vars(torch.jit.ScriptFunction)["__call__"]).__name__ == "instancemethod"


WEIGHT, SCALE = torch.randn(4, 4, 1, 1), torch.randn(4)
CALLS: list[tuple[Any, tuple[Any, ...], bool]] = [
    (F.relu, (), True),
    (F.gelu, (), True),
    (torch.conv2d, (WEIGHT, None, (1, 1), (0, 0), (1, 1), 1), True),
    (F.linear, (torch.randn(3, 6),), True),
    (F.batch_norm, (SCALE, SCALE.abs()), True),
    (F.layer_norm, ((6,),), True),
    (F.layer_norm, ((2, 4, 6, 6),), False),
    (torch.mul, (torch.randn(1, 4, 1, 1),), True),
    (torch.mul, (torch.randn(2, 4, 1, 1),), False),
    (torch.add, (torch.randn(4, 1, 1),), True),
    (Tensor.view, (-1, 144), True),
    (Tensor.view, (-1, 36), False),
    (Tensor.reshape, (2, -1), False),
    (torch.permute, ((0, 3, 1, 2),), True),
    (torch.permute, ((1, 0, 2, 3),), False),
    (torch.transpose, (1, -1), True),
    (torch.transpose, (0, 1), False),
    (torch.transpose, (1, -4), False),
    (torch.flatten, (1,), True),
    (torch.flatten, (), False),
    (torch.unsqueeze, (1,), True),
    (torch.unsqueeze, (-5,), False),
    (torch.mean, ((2, 3),), True),
    (torch.mean, ((-1, 0),), False),
    (F.max_pool2d, (2,), True),
    (F.adaptive_avg_pool2d, (1,), True),
]


@pytest.mark.parametrize(("function", "settings", "samplewise"), CALLS)
def test_a_samplewise_call_treats_every_sample_by_itself(
    function: Any, settings: tuple[Any, ...], samplewise: bool
) -> None:
    x = torch.randn(2, 4, 6, 6)
    found = ATEN_CALL_OF[function](x, *settings)
    assert found is not None
    target, args = found
    assert is_samplewise(target, args, lambda tensor: tensor is x) is samplewise
    if samplewise:
        five = torch.cat([x, x, x[:1]])
        result = target(five, *args[1:])
        single = torch.cat([target(row, *args[1:]) for row in five.split(1)])
        torch.testing.assert_close(result, single)
        assert target(x, *args[1:]).shape[1:] == result.shape[1:]
