"""Convolution problems: candidates on batches, their buffers, and the same in float64 for the
reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pruneopt.kernels.operands import Affine, Output, Partials, Prologue, tiles
from pruneopt.kernels.segments import Segment, Segments, padded
from pruneopt.kernels.window import Window
from ragged.buffers import Buffer, Setting, channels_last, close, table

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """A convolution of candidates. `candidates` are (n_in, n_out, images of each batch)."""

    name: str
    window: Window
    candidates: tuple[tuple[int, int, tuple[int, ...]], ...] = ((20, 17, (2, 1)), (3, 1, (1,)))
    affine: bool = False
    activation: str = "identity"
    residual: bool = False
    residual_affine: bool = False
    materialise: bool = False
    output: Output | None = None
    """Evaluation: an activation, with bias and residual; None takes statistics."""
    groups: int = 1
    depthwise: bool = False
    prefix: bool = False
    mean: float = 0.0
    both: bool = False
    """Run in float16 too where the interpreter is, which is slow."""


@dataclass
class Problem:
    """Buffers of one case in one dtype on one device."""

    x: Tensor
    weight: Tensor
    y: Tensor
    segments: Segments
    prologue: Prologue
    epilogue: Partials | Output
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    affine: Affine

    def float64(self) -> Problem:
        """The same numbers, after rounding, in float64 on the host."""

        def wide(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.double().cpu()
            if isinstance(value, Affine):
                return Affine(value.scale.double().cpu(), value.shift.double().cpu())
            if isinstance(value, Prologue | Partials | Output):
                return replace(
                    value, **{name: wide(getattr(value, name)) for name in type(value).__slots__}
                )
            return value

        parts = {name: wide(value) for name, value in vars(self).items()}
        return Problem(**parts | {"segments": Segments(self.segments.segments)})


def build(case: Case, setting: Setting, device: str, tile_rows: int, seed: int = 0) -> Problem:
    """Lay a case out. Written buffers are NaN, and so are the gaps between parts."""
    generator = torch.Generator().manual_seed(seed)
    names = (
        "x",
        "w",
        "y",
        "table",
        "residual",
        "materialised",
        "partials",
        "out",
        "params",
        "bias",
    )
    buffers = {name: Buffer() for name in names}
    scale, shift, r_scale, r_shift, gamma, beta = (Buffer() for _ in range(6))
    window, segments = case.window, []
    whole = _weight(
        case, max(c[0] for c in case.candidates), max(c[1] for c in case.candidates), generator
    )
    shared = buffers["w"].add(whole) if case.prefix else 0
    for n_in, n_out, batches in case.candidates:
        own = whole if case.prefix else _weight(case, n_in, n_out, generator)
        at = shared if case.prefix else buffers["w"].add(own)
        params = gamma.add(torch.rand(n_out, generator=generator) + 0.5)
        assert beta.add(torch.randn(n_out, generator=generator)) == params
        for images in batches:
            pixels = (images, window.in_pixels)
            in_table = scale.add(table(n_in, generator, 1.0))
            residual_table = r_scale.add(table(n_in, generator, 0.7))
            assert shift.add(table(n_in, generator, 0.1)) == in_table
            assert r_shift.add(table(n_in, generator, -0.1)) == residual_table
            out = images * window.out_pixels
            added = channels_last(pixels, n_in, generator)
            if case.output is not None:
                added = channels_last((out,), n_out, generator)
            segments.append(
                Segment(
                    x=buffers["x"].add(channels_last(pixels, n_in, generator, case.mean)),
                    w=at,
                    y=buffers["y"].reserve(out * padded(n_out)),
                    in_table=in_table,
                    partials=buffers["partials"].reserve(
                        tiles(images, window.out_pixels, tile_rows) * padded(n_out)
                    ),
                    out_table=buffers["out"].reserve(padded(n_out)),
                    params=params,
                    residual=buffers["residual"].add(added),
                    residual_table=residual_table,
                    materialised=buffers["materialised"].reserve(
                        images * window.in_pixels * padded(n_in)
                    ),
                    n_in=n_in,
                    n_out=n_out,
                    w_columns=own.shape[2],
                    w_rows=own.shape[1],
                    images=images,
                )
            )

    def real(buffer: Buffer) -> Tensor:
        return buffer.tensor(torch.float32, device)

    def stored(name: str) -> Tensor:
        return buffers[name].tensor(setting.dtype, device)

    prologue = Prologue(
        Affine(real(scale), real(shift)) if case.affine else None,
        case.activation,
        stored("residual") if case.residual else None,
        Affine(real(r_scale), real(r_shift)) if case.residual_affine else None,
        stored("materialised") if case.materialise else None,
    )
    partials = Partials(real(buffers["partials"]), real(buffers["partials"]), tile_rows)
    output = case.output and Output(real(beta), case.output.activation, stored("residual"))
    return Problem(
        x=stored("x"),
        weight=stored("w"),
        y=stored("y"),
        segments=Segments(segments, device),
        prologue=prologue,
        epilogue=output or partials,
        gamma=real(gamma),
        beta=real(beta),
        mean=real(buffers["out"]),
        variance=real(buffers["out"]),
        affine=Affine(real(buffers["out"]), real(buffers["out"])),
    )


def _weight(case: Case, n_in: int, n_out: int, generator: torch.Generator) -> Tensor:
    """A stored weight `[taps, rows, columns]`, zero outside the channels."""
    taps, depth = case.window.taps, n_in // case.groups
    if case.depthwise:
        made = torch.zeros(taps, 1, padded(n_out), dtype=torch.float64)
        made[:, 0, :n_out] = (
            torch.randn(taps, n_out, generator=generator, dtype=torch.float64) / taps**0.5
        )
        return made
    made = torch.zeros(taps, padded(depth), padded(n_out), dtype=torch.float64)
    values = torch.randn(taps, depth, n_out, generator=generator, dtype=torch.float64)
    made[:, :depth, :n_out] = values / (taps * depth) ** 0.5
    return made


def check_values(found: Problem, expected: Problem, tolerance: float) -> None:
    """Outputs, their pads, and what was materialised."""
    close(found.y, expected.y, tolerance, "y")
    for segment in found.segments.segments:
        width = padded(segment.n_out)
        rows = found.y[segment.y :][: (found.y.numel() - segment.y) // width * width].view(
            -1, width
        )
        rows = rows[: expected_rows(segment, found)]
        assert (rows[:, segment.n_out :] == 0).all(), "pad channels must be exactly zero"
    if found.prologue.materialised is not None:
        assert expected.prologue.materialised is not None
        close(
            found.prologue.materialised,
            expected.prologue.materialised,
            tolerance,
            "materialised input",
        )


def expected_rows(segment: Segment, problem: Problem) -> int:
    """Rows of a segment's output: up to the first gap, where the buffer is NaN."""
    part = problem.y[segment.y :]
    gaps = part.isnan().nonzero()
    return int(gaps[0]) // padded(segment.n_out)


def check_statistics(found: Problem, expected: Problem, setting: Setting) -> None:
    """Mean against the deviation, variance relative, scale and shift; zeros for pads, nothing
    outside."""
    for segment in found.segments.segments:
        part = slice(segment.out_table, segment.out_table + padded(segment.n_out))
        n = segment.n_out
        mean, variance = found.mean[part].double().cpu(), found.variance[part].double().cpu()
        true_mean, true_variance = expected.mean[part], expected.variance[part]
        deviation = true_variance[:n].sqrt()
        assert ((mean - true_mean)[:n].abs() <= setting.mean * deviation).all(), "mean"
        assert (
            (variance - true_variance)[:n].abs() <= setting.variance * true_variance[:n]
        ).all(), "variance"
        for tensor in (found.mean, found.variance, found.affine.scale, found.affine.shift):
            assert (tensor[part][n:] == 0).all(), "pads of the tables must be zero"
    for name in ("scale", "shift"):
        tables = getattr(found.affine, name), getattr(expected.affine, name)
        close(*tables, 4 * max(setting.mean, setting.variance), name)
    close(found.mean, expected.mean, 1, "mean")
