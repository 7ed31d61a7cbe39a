"""Times by events, on a device that only writes down what it was told."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pruneopt.passes.timing import cuda_clock
from pruneopt.passes.timing.cuda_clock import ColdWallClock, CudaClock
from pruneopt.passes.timing.timing import compare


@dataclass
class Properties:
    L2_cache_size: int


class FakeDevice:
    """Stands in for `torch.cuda`: a stream's time in milliseconds, and a log of calls."""

    def __init__(self, cache: int = 1 << 20) -> None:
        self.log: list[str] = []
        self.milliseconds = 0.0
        self.cache = cache

    def get_device_properties(self, device: torch.device) -> Properties:
        return Properties(self.cache)

    def current_stream(self, device: torch.device) -> str:
        return f"the stream of {device}"

    def synchronize(self, device: torch.device) -> None:
        self.log.append("synchronize")

    def Event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        api = self

        class Event:
            def record(self, stream: str) -> None:
                api.log.append(f"record in {stream}")
                self.at = api.milliseconds

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        return Event()

    def launch(self, milliseconds: float) -> None:
        self.log.append("launch")
        self.milliseconds += milliseconds


def test_a_run_is_timed_by_events_after_the_cache_was_overwritten() -> None:
    api = FakeDevice()
    clock = CudaClock(torch.device("cuda", 1), api)
    clock._buffer.fill_(1)
    assert clock.seconds(lambda: api.launch(3.0)) == pytest.approx(3e-3)
    record = "record in the stream of cuda:1"
    assert api.log == ["synchronize", record, "launch", record, "synchronize"]
    assert not clock._buffer.any()


@pytest.mark.parametrize(
    ("cache", "size"), [(1 << 20, 2 << 20), (0, 2 * cuda_clock.SMALLEST_CACHE)]
)
def test_the_buffer_is_twice_the_cache(cache: int, size: int) -> None:
    assert CudaClock(torch.device("cuda", 0), FakeDevice(cache))._buffer.numel() == size


def test_sessions_are_compared_by_the_devices_time() -> None:
    api = FakeDevice()
    clock = CudaClock(torch.device("cuda", 0), api)
    found = compare(lambda: api.launch(3.0), lambda: api.launch(2.0), clock=clock, rounds=6)
    assert found.ratio == pytest.approx(1.5)


def test_other_runtimes_are_timed_on_the_wall_after_the_cache_was_overwritten() -> None:
    api = FakeDevice()
    clock = ColdWallClock(torch.device("cuda", 0), api)
    clock._buffer.fill_(1)
    assert clock.seconds(lambda: api.log.append("run")) > 0
    assert api.log == ["synchronize", "run"]
    assert not clock._buffer.any()


@pytest.mark.gpu
def test_events_agree_with_the_wall_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    clock = CudaClock(device)
    x = torch.randn(4096, 4096, device=device)
    for _ in range(3):
        clock.seconds(lambda: x @ x)
    by_events = min(clock.seconds(lambda: [x @ x for _ in range(20)]) for _ in range(5))
    started = clock.now()
    for _ in range(20):
        x @ x
    torch.cuda.synchronize(device)
    assert by_events <= (clock.now() - started) * 1.2
