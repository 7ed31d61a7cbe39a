"""The fastest of the shipped tiles for every class of convolutions of the benchmark's networks,
kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_device import Device, Run, spread
from gpu_guard import Clock, Row, guarded
from gpu_networks import MAIN_KEEP, Sizes, network
from torch import Tensor

from pruneopt import Graph
from pruneopt.kernels.operands import Affine, Partials, Prologue, tiles
from pruneopt.kernels.segments import Segment, Segments, padded
from pruneopt.kernels.tiles import Tile
from pruneopt.kernels.window import Window
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.lowering.shape_match import depthwise

__all__ = ["tuner_part"]

LEFT = 20.0
"""Seconds that are left to the parts behind."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A convolution that stands for its class; ``groups=0`` is depthwise."""

    n_out: int
    n_in: int
    window: Window
    groups: int

    @property
    def work(self) -> int:
        """Elements that are moved for an image."""
        return self.n_in * self.window.in_pixels + self.n_out * self.window.out_pixels


def tuner_part(
    names: Sequence[str],
    device: Device,
    sizes: Sizes,
    clock: Clock,
    path: Path,
    save: Callable[[], None],
    row: Row,
) -> None:
    """Tune classes in the order of what they move in all networks, as many as there is time for; a
    file grows with each."""
    from pruneopt.kernels import tuning
    from pruneopt.kernels.launch import architecture

    samples: dict[tuning.Problem, list[Sample]] = {}
    for name in names:
        for sample in _samples(
            lower_statistics(network(name, sizes, device).uniform(MAIN_KEEP).sliced()).graph
        ):
            problem = tuning.Problem.of(
                sample.n_out, sample.n_in, sample.window, sample.groups, device.half
            )
            samples.setdefault(problem, []).append(sample)
    ordered = sorted(samples, key=lambda problem: -sum(sample.work for sample in samples[problem]))
    row |= {"file": path.name, "classes": {}}
    choices: dict[tuning.Problem, tuning.Choice] = {}

    def tuned(problem: tuning.Problem, found: Row) -> None:
        measure = _Measure(max(samples[problem], key=lambda sample: sample.work), device, sizes)
        choice = choices[problem] = tuning.choose(problem, architecture(device.place), measure)
        default = choice.seconds[problem.default(architecture(device.place))]
        found |= {
            "default_us": 1e6 * default,
            "us": 1e6 * choice.seconds[choice.tile],
            "tile": str(choice.tile),
        }
        found |= {"tried": len(choice.seconds), "did not run": list(choice.failed.values())}

    for number, problem in enumerate(ordered):
        if clock.left < LEFT:
            row["left out"] = (
                f"{len(ordered) - number} of {len(ordered)} classes: {max(clock.left, 0):.0f} s "
                "were left"
            )
            break
        guarded(
            row["classes"].setdefault(str(problem), {}),
            partial(tuned, problem, row["classes"][str(problem)]),
        )
        tuning.save(path, tuning.device_key(device.place), choices)
        save()


def _samples(graph: Graph) -> Iterator[Sample]:
    """Yield the fused convolutions of a lowered statistics pass."""
    for op in graph.ops:
        if op.base == "pruneopt.conv_statistics":
            _, n_in, height, width = op.needed(0).type.shape(1)
            n_out, _, *kernel = op.needed(6).type.shape(1)
            pairs: list[Any] = [
                tuple(kernel),
                *(op.attrs[name] for name in ("stride", "padding", "dilation")),
            ]
            groups: Any = 0 if depthwise(op) else op.attrs["groups"]
            yield Sample(n_out, n_in, Window(height, width, *pairs), groups)


class _Measure:
    """Seconds that a tile takes, once its output is that of the first tile."""

    def __init__(self, sample: Sample, device: Device, sizes: Sizes) -> None:
        self.sample, self.device, self.sizes, place = sample, device, sizes, device.place
        self.images, share = sizes.layer_images, max(1, sample.groups)
        rows = padded(sample.n_in // share) if sample.groups else 1
        generator = torch.Generator(place).manual_seed(0)
        draw = partial(torch.randn, generator=generator, device=place)
        stored = padded(sample.n_in)
        self.x = draw(self.images * sample.window.in_pixels * stored).to(device.half)
        self.w = (
            draw(sample.window.taps, rows, padded(sample.n_out))
            / (sample.window.taps * rows) ** 0.5
        ).to(device.half)
        self.y = torch.empty(
            self.images * sample.window.out_pixels * padded(sample.n_out),
            dtype=device.half,
            device=place,
        )
        real = torch.arange(stored, device=place) < sample.n_in
        self.affine = Affine(real * (1 + 0.1 * draw(stored)), real * 0.1 * draw(stored))
        own = Segment(n_in=sample.n_in, n_out=sample.n_out, images=self.images, w_rows=rows)
        self.segments = Segments([own], place)
        self.wanted: Tensor | None = None

    def __call__(self, tile: Tile) -> float:
        run = self._launch(tile)
        run()  # compiles
        self._compare()

        def often() -> None:
            for _ in range(self.sizes.launches):
                run()

        taken = [self.device.timed(often).event for _ in range(max(1, self.sizes.repeats))]
        return spread(taken)[0] / 1e3 / self.sizes.launches

    def _compare(self) -> None:
        """Raises ValueError for a tile with which the kernel computes something else."""
        made = self.y.float()
        if self.wanted is None:
            self.wanted = made.clone()
        off = float((made - self.wanted).abs().max() / self.wanted.abs().max())
        if not off < 1e-2:
            raise ValueError(f"its output is off by {off:.2g} of the largest value")

    def _launch(self, tile: Tile) -> Run:
        from pruneopt.kernels.convolution import conv_launch, dwconv_launch

        sample, place = self.sample, self.device.place
        count = tiles(self.images, sample.window.out_pixels, tile.rows) * padded(sample.n_out)
        partials = Partials(
            torch.empty(count, device=place), torch.empty(count, device=place), tile.rows
        )
        operands = self.x, self.w, self.y, self.segments, sample.window
        around: dict[str, Any] = {
            "prologue": Prologue(self.affine, "relu"),
            "epilogue": partials,
            "tile": tile,
        }
        if not sample.groups:
            return dwconv_launch(*operands, **around).run
        return conv_launch(*operands, **around, groups=sample.groups).run
