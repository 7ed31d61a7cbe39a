"""A program made once serves every candidate: laid out for the widest, its launches recorded once
and started for others.

Results are compared with those of a run of each candidate by itself, in float64 on the plain
PyTorch of the kernels, which reads its segments from the tables on the device, as kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_candidates import batches, cut, lively
from nets import zoo
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.passes.evaluation.fresh_statistics import Statistics, fresh_statistics
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.lowering.backends import ReferenceKernels, Step
from pruneopt.passes.lowering.cuda_graphs import LaunchRecorder
from pruneopt.passes.lowering.lower_evaluation import lower_evaluation
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.lowering.prepared import image_bytes
from pruneopt.passes.lowering.run_evaluation import PreparedEvaluation, run_evaluation
from pruneopt.passes.lowering.run_statistics import (
    BatchStatistics,
    PreparedStatistics,
    run_statistics,
)
from pruneopt.passes.lowering.storage import Activation, Memory

Found = list[list[list[BatchStatistics]]]
EXACT = ReferenceKernels(torch.float64)


class Recorder:
    """Records as a CUDA graph does: runs launches to have them ready, keeps them, and starts them
    again and again."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.started = 0

    def __call__(self, steps: Sequence[Step]) -> Step:
        self.recorded.append(len(steps))
        kept = tuple(steps)
        for step in kept:
            step()

        def start() -> None:
            self.started += 1
            for step in kept:
                step()

        return start


class Small(nn.Module):
    """Fused whole: strides, a depthwise convolution, a biased one, groups, a sum, and a frozen
    norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = (
            nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
        )
        self.dw, self.dwn = (
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
            nn.BatchNorm2d(24, affine=False),
        )
        self.point, self.pointn = nn.Conv2d(24, 24, 1), nn.BatchNorm2d(24)
        self.side, self.frozen = nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24).eval()
        self.frozen.train = lambda mode=True: self.frozen  # type: ignore[method-assign]
        self.mix, self.mixn = nn.Conv2d(24, 12, 3, padding=1, groups=2), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(x + self.pointn(self.point(nn.functional.silu(self.dwn(self.dw(x))))))
        y = torch.relu(self.mixn(self.mix(self.frozen(self.side(y)))))
        logits: Tensor = self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))
        return logits


class Chain(nn.Sequential):
    """Convolutions and norms alone: no op of its statistics pass stays with PyTorch."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 40, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(40), nn.ReLU6()),
            *(
                nn.Conv2d(40, 40, 3, padding=1, groups=40, bias=False),
                nn.BatchNorm2d(40),
                nn.ReLU6(),
            ),
            *(nn.Conv2d(40, 33, 1, bias=False), nn.BatchNorm2d(33), nn.Hardswish()),
            *(nn.Conv2d(33, 20, 1, bias=False), nn.BatchNorm2d(20)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)),
        )


def captured(net: nn.Module, size: int) -> Graph:
    return capture(lively(net), torch.zeros(1, 3, size, size, dtype=torch.float64))


def same(found: Found, wanted: Found) -> None:
    for left, right in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert (left.name, left.count) == (right.name, right.count)
        torch.testing.assert_close(left.mean, right.mean, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(left.variance, right.variance, rtol=1e-11, atol=1e-11)


def alone(graph: Graph, given: Sequence[Tensor]) -> Found:
    return run_statistics([lower_statistics(graph)], [graph.weights], given, EXACT)


def by_the_interpreter(graph: Graph, batch: Tensor, found: Sequence[BatchStatistics]) -> None:
    wanted = Statistics()
    fresh_statistics(graph, graph.weights, [batch], Averaging("mean"), into=wanted)
    for item in found:
        torch.testing.assert_close(item.mean, wanted.means[item.name][0], rtol=1e-9, atol=1e-9)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "chain": (Chain, 9, 1),
    "small": (Small, 9, 2),  # the convolution in front of its frozen norm is left to PyTorch
    # Its shortcuts are slices and pads, which PyTorch does between recorded launches.
    "resnet20": (lambda: zoo("resnet20"), 32, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recording", [False, True])
def test_one_layout_for_all_candidates(name: str, recording: bool) -> None:
    torch.manual_seed(0)
    make, size, graphs = NETWORKS[name]
    graph = captured(make(), size)
    recorder = Recorder()
    prepared = PreparedStatistics([lower_statistics(graph)], EXACT, recorder if recording else None)
    given = batches(size, 3, 3, 2)
    for number, candidate in enumerate([*cut(graph, [0.3, 0.05, 0.9]), graph]):
        prepared.load([lower_statistics(candidate)], [candidate.weights])
        found = prepared.run(given)
        same(found, alone(candidate, given))
        by_the_interpreter(candidate, given[2], found[0][2])
        if recording:
            assert len(recorder.recorded) == graphs
            assert recorder.started == len(recorder.recorded) * (number + 1)
    if recording:
        told = f"{sum(recorder.recorded)} launches in {len(recorder.recorded)} CUDA graph"
        assert prepared.launches.told.startswith(told)


def test_more_batches_of_a_loaded_candidate() -> None:
    """Fewer batches and smaller ones use a part of the room; what was given out is not written to
    again."""
    graph = captured(Chain(), 9)
    recorder = Recorder()
    prepared = PreparedStatistics([lower_statistics(graph)], EXACT, recorder)
    (candidate,) = cut(graph, [0.3])
    prepared.load([lower_statistics(candidate)], [candidate.weights])
    given = batches(9, 4, 4, 4, 4, 3)
    parts = [prepared.run(given[:3]), prepared.run(given[3:4]), prepared.run(given[4:])]
    assert recorder.recorded == [8]
    same([[batch for part in parts for batch in part[0]]], alone(candidate, given))
    # More than ever before is laid out anew, and the candidate stays loaded.
    same(prepared.run(given), alone(candidate, given))
    assert recorder.recorded == [8, 8]


def test_batches_that_are_written_to_are_read_again() -> None:
    graph = captured(Chain(), 9)
    prepared = PreparedStatistics([lower_statistics(graph)], EXACT)
    prepared.load([lower_statistics(graph)], [graph.weights])
    given = batches(9, 4)
    prepared.run(given)
    given[0].mul_(2)
    same(prepared.run(given), alone(graph, given))
    with torch.inference_mode():
        untracked = given[0].clone()
        prepared.run([untracked])
        untracked.add_(1)
        found = prepared.run([untracked])
    same(found, alone(graph, [given[0] + 1]))


def test_several_candidates_at_once() -> None:
    torch.manual_seed(0)
    graph = captured(Small(), 9)
    lowered, recorder = lower_statistics(graph), Recorder()
    prepared = PreparedStatistics([lowered, lowered], EXACT, recorder)
    given = batches(9, 2, 3)
    some = cut(graph, [0.3, 0.05, 0.9, 0.5])
    for pair in (some[:2], some[3:], some[2:]):
        prepared.load([lower_statistics(item) for item in pair], [item.weights for item in pair])
        found = prepared.run(given)
        for own, item in zip(found, pair, strict=True):
            same([own], alone(item, given))
    assert len(recorder.recorded) == 2
    with pytest.raises(InternalError, match="3 candidates for the buffers of 2"):
        prepared.load([lowered] * 3, [graph.weights] * 3)


@pytest.mark.parametrize("recording", [False, True])
def test_evaluation(recording: bool) -> None:
    torch.manual_seed(0)
    graph = captured(Small(), 9)
    folded = fold_batch_norms(graph)
    recorder = Recorder()
    capturing: LaunchRecorder | None = recorder if recording else None
    prepared = PreparedEvaluation([lower_evaluation(folded.graph)], EXACT, capturing)
    kept: list[tuple[Tensor, Tensor]] = []
    for candidate in cut(graph, [0.3, 0.9, 0.05]):
        own = fold_batch_norms(candidate)
        lowered, weights = lower_evaluation(own.graph), own.weights(candidate.weights)
        prepared.load([lowered], [weights])
        for x in batches(9, 4, 2):
            with torch.no_grad():
                kept.append((prepared.run(x)[0], Interpreter(candidate).run(candidate.weights, x)))
            torch.testing.assert_close(
                kept[-1][0], run_evaluation([lowered], [weights], x, EXACT)[0]
            )
    for found, wanted in kept:
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert len(recorder.recorded) == int(recording)


class Token(nn.Module):
    """Something that depends on weights and the number of images alone, and on weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.token, self.scale = (
            nn.Conv2d(3, 8, 3),
            nn.Parameter(torch.randn(1, 4)),
            nn.Parameter(torch.ones(8)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)) * self.scale.exp()[:, None, None]
        return torch.cat([x.mean((2, 3)), self.token.expand(x.shape[0], -1)], 1)


def test_what_depends_on_the_number_of_images_is_made_for_every_batch() -> None:
    graph = captured(Token(), 9)
    prepared = PreparedEvaluation([lower_evaluation(graph)], EXACT)
    prepared.load([lower_evaluation(graph)], [graph.weights])
    for x in batches(9, 4, 2, 3):
        with torch.no_grad():
            torch.testing.assert_close(prepared.run(x)[0], Interpreter(graph).run(graph.weights, x))


class Calls(TorchDispatchMode):
    """The names of all operations that PyTorch runs, and where the first tensor of each lies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []
        self.places: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.__name__)
        self.places.append(args[0].data_ptr() if args and isinstance(args[0], Tensor) else 0)
        return func(*args, **(kwargs or {}))


def test_starting_recorded_launches_allocates_nothing_and_waits_for_nothing() -> None:
    """Between two candidates only copies into what is there; to start them, not one operation of
    PyTorch."""
    graph = captured(Chain(), 9)
    started: list[int] = []
    program_of = PreparedStatistics(
        [lower_statistics(graph)], EXACT, lambda steps: lambda: started.append(len(steps))
    )
    given = batches(9, 3, 3)
    one, other = cut(graph, [0.3, 0.6])
    program_of.load([lower_statistics(one)], [one.weights])
    program_of.run(given)
    program = program_of.launches._loaded
    assert program is not None
    with Calls() as starting:
        program.start()
    assert starting.seen == []
    assert started == [8, 8]
    with Calls() as loading:
        program.load([lower_statistics(other).graph], [other.weights])
    made = {
        "empty",
        "zeros",
        "clone",
        "_to_copy",
        "_local_scalar_dense",
        "nonzero",
        "item",
        "new_empty",
    }
    assert {name.partition(".")[0] for name in loading.seen} & made == set()
    assert any(name.startswith("_foreach_copy_") for name in loading.seen)
    with Calls() as placing:
        program.place(given)
    assert not any(name.startswith(("_local_scalar_dense", "_to_copy")) for name in placing.seen)
    table = program.layout.tables._memory.data_ptr()
    copies = [
        place
        for name, place in zip(placing.seen, placing.places, strict=True)
        if name.startswith("copy_")
    ]
    assert copies.count(table) == 1  # one copy for all tables
    assert isinstance(program.layout.input, Activation)
    # The batches lie there already.
    assert program.layout.input.buffer.data_ptr() not in placing.places


def test_what_cannot_be_recorded_runs_by_itself() -> None:
    def refuse(steps: Sequence[Step]) -> Step:
        steps[0]()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graph = captured(Chain(), 9)
    prepared = PreparedStatistics([lower_statistics(graph)], EXACT, refuse)
    (candidate,) = cut(graph, [0.3])
    prepared.load([lower_statistics(candidate)], [candidate.weights])
    given = batches(9, 3)
    why = (
        "8 launches one by one, as they could not be recorded as a CUDA graph: operation not "
        "permitted"
    )
    with pytest.warns(RuntimeWarning, match=why) as told:
        found = prepared.run(given)
    assert len(told) == 1
    same(found, alone(candidate, given))
    assert prepared.launches.told.startswith(why)


def test_a_candidate_without_room_is_laid_out_by_itself() -> None:
    """Groups are part of a kernel, and a wider candidate than expected has no room."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 48, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4)),
    )
    graph, given, recorder = captured(net, 9), batches(9, 2), Recorder()
    prepared = PreparedStatistics([lower_statistics(graph)], EXACT, recorder)
    (fewer,) = cut(graph, [0.2])
    (grouped,) = (
        op for op in lower_statistics(fewer).graph.ops if op.attrs.get("groups") not in (None, 1)
    )
    assert grouped.attrs["groups"] != 24
    for candidate, why in ((graph, ""), (fewer, "groups instead of 24"), (graph, "")):
        prepared.load([lower_statistics(candidate)], [candidate.weights])
        same(prepared.run(given), alone(candidate, given))
        assert why in prepared.launches.told
    assert len(recorder.recorded) == 1
    narrow = PreparedStatistics([lower_statistics(fewer)], EXACT)
    narrow.load([lower_statistics(graph)], [graph.weights])
    same(narrow.run(given), alone(graph, given))
    assert "there is room for" in narrow.launches.told


def test_batches_of_another_size() -> None:
    graph = captured(Chain(), 9)
    prepared = PreparedStatistics([lower_statistics(graph)], EXACT)
    prepared.load([lower_statistics(graph)], [graph.weights])
    with pytest.raises(
        UserError, match=r"a batch of shape \[2, 3, 11, 11\] does not fit where there is room for"
    ):
        prepared.run(batches(11, 2))


def test_memory_is_used_again_and_never_twice_at_once() -> None:
    """Random buffers of two precisions, each filled with a number of its own, which must stand
    there to its end."""
    rng = np.random.default_rng(0)
    memory = Memory(torch.device("cpu"))
    held: list[tuple[Tensor, float]] = []
    most = 0
    for number in range(300):
        while held and (len(held) > 5 or rng.random() < 0.4):
            buffer, value = held.pop(int(rng.integers(len(held))))
            assert bool((buffer == value).all())
            memory.give(buffer)
        dtype = (torch.float16, torch.float32)[int(rng.integers(2))]
        buffer = memory.take(16 * int(rng.integers(1, 200)), dtype)
        assert buffer.data_ptr() % 16 == 0
        held.append((buffer.fill_(float(number)), float(number)))
        most = max(most, sum(item.nbytes for item, _ in held))
    assert most <= memory.bytes < 3 * most


def test_memory_of_an_image() -> None:
    graph = captured(Chain(), 9)
    prepared = PreparedStatistics([lower_statistics(graph)], EXACT)
    prepared.load([lower_statistics(graph)], [graph.weights])
    prepared.run(batches(9, 8, 8))
    program = prepared.launches._loaded
    assert program is not None
    each = image_bytes(lower_statistics(graph).graph, EXACT)
    # Partial statistics are for tiles of 128 rows: one image has a whole one, here mostly empty.
    assert 0.7 * 16 * each < prepared.launches.bytes == program.layout.memory.bytes <= 16 * each
    # What the depthwise convolution reads and writes, and the input.
    largest = 2 * 5 * 5 * 48 + 9 * 9 * 16
    assert each >= 8 * largest
