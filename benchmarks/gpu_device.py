"""Where the GPU benchmark runs. In a rehearsal that is the processor, and nothing that is timed
means anything."""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_guard import guarded
from torch.profiler import ProfilerActivity, profile

from pruneopt.passes.lowering.backends import Step
from pruneopt.passes.lowering.cuda_graphs import CudaGraphs, LaunchRecorder

__all__ = ["Device", "Timing", "interleaved", "spread"]

Run = Callable[[], object]
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run: between two CUDA events, and by the wall clock until the device was
    idle."""

    event: float
    wall: float


class Device:
    """A GPU, or in a rehearsal the processor. All that the two do differently is here.

    Attributes:
        place: where tensors are put.
        half: of activations; bfloat16, which the interpreter cannot compute, so that a rehearsal
            takes float16.
    """

    def __init__(self, rehearsal: bool) -> None:
        self.rehearsal = rehearsal
        self.place = torch.device("cpu" if rehearsal else "cuda")
        self.half = torch.float16 if rehearsal else torch.bfloat16

    def synchronise(self) -> None:
        if not self.rehearsal:
            torch.cuda.synchronize()

    def healthy(self) -> bool:
        """Give back memory that nobody holds; whether the device still answers, which it does not
        after a fault."""
        gc.collect()
        try:
            self.synchronise()
            if not self.rehearsal:
                torch.cuda.empty_cache()
        except RuntimeError:
            return False
        return True

    def timed(self, run: Run) -> Timing:
        self.synchronise()
        if self.rehearsal:
            started = time.perf_counter()
            run()
            wall = 1e3 * (time.perf_counter() - started)
            return Timing(wall, wall)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        begin.record()
        run()
        end.record()
        self.synchronise()
        return Timing(begin.elapsed_time(end), 1e3 * (time.perf_counter() - started))

    def captured(self, run: Run) -> Run:
        """Record a run as a CUDA graph; in a rehearsal the run itself."""
        if self.rehearsal:
            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    @property
    def recorder(self) -> LaunchRecorder:
        """What records launches; in a rehearsal they are kept and started one by one."""
        return CudaGraphs(self.place) if not self.rehearsal else _kept

    def peak(self, run: Run) -> int | None:
        """Return the most bytes that a run holds beyond what was held before; None in a
        rehearsal."""
        if self.rehearsal:
            return None
        self.synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.synchronise()
        return torch.cuda.max_memory_allocated() - before

    def launches(self, run: Run) -> dict[str, Any]:
        """Return kernels that a run starts, and the milliseconds they are at work; nothing in a
        rehearsal."""
        activities = (
            [ProfilerActivity.CPU]
            if self.rehearsal
            else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        )
        with profile(activities=activities) as seen:
            run()
            self.synchronise()
        events = [event for event in seen.events() or () if event.device_type.name == "CUDA"]
        if not events:
            return {"kernels": None}
        kernels = [event for event in events if not event.name.startswith("Mem")]
        return {
            "kernels": len(kernels),
            "busy_ms": sum(event.time_range.elapsed_us() for event in events) / 1e3,
        }

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute float32 products in full."""
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

    def describe(self) -> dict[str, Any]:
        """Return the device, its clocks now, and the libraries that drive it."""
        if self.rehearsal:
            return {"name": "rehearsal on the processor"}
        properties = torch.cuda.get_device_properties(0)
        found: dict[str, Any] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        return found | self.clocks()

    def clocks(self) -> dict[str, str]:
        """Return clocks, power and temperature as the driver's tool gives them, where it is
        there."""
        if self.rehearsal or shutil.which("nvidia-smi") is None:
            return {}
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        return {"nvidia-smi": done.stdout.strip() or done.stderr.strip()[:200]}


def _kept(steps: Sequence[Step]) -> Step:
    kept = tuple(steps)

    def start() -> None:
        for step in kept:
            step()

    return start


def interleaved(
    device: Device, runs: Mapping[str, Run], warmups: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Time several runs in turn, so that a change of clocks meets all of them.

    The first run of each is given apart: libraries choose algorithms and compile in it. One that
    fails drops out.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in runs}
    timings: dict[str, list[Timing]] = {name: [] for name in runs}

    def take(name: str) -> None:
        timings[name].append(device.timed(runs[name]))

    for turn in range(1 + warmups + repeats):
        for name in runs:
            if "error" not in found[name]:
                guarded(found[name], partial(take, name))
        if turn == 0:
            for name, taken in timings.items():
                found[name] |= {"first_ms": round(taken[0].wall, 3)} if taken else {}
    for name, taken in timings.items():
        if "error" not in found[name]:
            kept = taken[1 + warmups :] or taken  # a rehearsal runs once
            median, quartiles = spread([timing.event for timing in kept])
            wall = statistics.median(timing.wall for timing in kept)
            found[name] |= {
                "ms": median,
                "iqr_ms": quartiles,
                "wall_ms": round(wall, 4),
                "repeats": len(kept),
            }
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Return median and distance of the quartiles."""
    if len(values) < 2:
        return round(values[0], 4), 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return round(middle, 4), round(high - low, 4)
