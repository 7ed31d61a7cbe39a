"""The references, which the kernels are compared with, against torch's own operations in
float64."""

from typing import Any

import pytest
import torch
from ragged.buffers import FP32, Setting
from ragged.convolutions import EPS, Case, Problem, build
from torch import Tensor
from torch.nn import functional

from pruneopt.kernels import reference
from pruneopt.kernels.library import ACTIVATIONS
from pruneopt.kernels.operands import Affine, Output, Partials, Prologue
from pruneopt.kernels.segments import Pool, Pools, Segment, Segments, padded
from pruneopt.kernels.window import Window

ACT = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hardswish": functional.hardswish,
    "silu": functional.silu,
}
TWO = ((20, 17, (2, 3)), (1, 3, (1,)))
CASES = [
    Case("plain", Window(7, 5, (3, 3), (2, 1), (1, 0)), TWO),
    Case("everything", Window(5, 6, (3, 3), padding=(1, 1)), TWO, True, "relu", True, True, True),
    Case(
        "dilated",
        Window(9, 9, (3, 2), (1, 2), (2, 1), (2, 3)),
        TWO,
        affine=True,
        activation="silu",
        prefix=True,
    ),
    Case("grouped", Window(5, 6, (3, 3), padding=(1, 1)), ((12, 20, (2,)),), affine=True, groups=4),
    Case(
        "depthwise",
        Window(5, 6, (3, 3), padding=(1, 1)),
        ((20, 20, (2,)),),
        affine=True,
        depthwise=True,
    ),
    Case("evaluation", Window(5, 6), TWO, output=Output(activation="hardswish")),
]
DOUBLE = Setting("fp64", torch.float64, "ieee", 1e-12, 1e-12, 1e-12)


def images(buffer: Tensor, start: int, count: int, height: int, width: int, n: int) -> Tensor:
    """A part of a buffer as PyTorch has images, `[count, n, height, width]`."""
    shape = (count, height, width, padded(n))
    return buffer[start:][: torch.Size(shape).numel()].view(shape)[..., :n].permute(0, 3, 1, 2)


def expected_input(case: Case, problem: Problem, segment: Segment) -> Tensor:
    size = (segment.images, case.window.height, case.window.width, segment.n_in)

    def mapped(x: Tensor, affine: Affine | None, start: int) -> Tensor:
        if affine is None:
            return x
        parts = (
            part[start : start + segment.n_in].view(1, -1, 1, 1)
            for part in (affine.scale, affine.shift)
        )
        scale, shift = parts
        return x * scale + shift

    prologue = problem.prologue
    x = mapped(images(problem.x, segment.x, *size), prologue.affine, segment.in_table)
    if prologue.residual is not None:
        other = images(prologue.residual, segment.residual, *size)
        x = x + mapped(other, prologue.residual_affine, segment.residual_table)
    return ACT[prologue.activation](x)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_convolutions(case: Case) -> None:
    problem = build(case, DOUBLE, "cpu", 8).float64()
    common: dict[str, Any] = {"prologue": problem.prologue, "epilogue": problem.epilogue}
    if case.depthwise:
        reference.dwconv(
            problem.x, problem.weight, problem.y, problem.segments, case.window, **common
        )
    else:
        more: dict[str, Any] = {"groups": case.groups}
        reference.conv(
            problem.x, problem.weight, problem.y, problem.segments, case.window, **common, **more
        )
    for segment in problem.segments.segments:
        x = expected_input(case, problem, segment)
        groups = segment.n_in if case.depthwise else case.groups
        stored = problem.weight[segment.w :][
            : case.window.taps * segment.w_rows * segment.w_columns
        ]
        stored = stored.view(*case.window.kernel, segment.w_rows, segment.w_columns)
        weight = stored[:, :, : segment.n_in // groups, : segment.n_out].permute(3, 2, 0, 1)
        window = case.window
        y = functional.conv2d(
            x, weight, None, window.stride, window.padding, window.dilation, groups
        )
        out = (segment.images, window.out_height, window.out_width, segment.n_out)
        output = problem.epilogue
        if isinstance(output, Output):
            assert output.bias is not None
            assert output.residual is not None
            y = y + output.bias[segment.params : segment.params + segment.n_out].view(1, -1, 1, 1)
            y = ACT[output.activation](y + images(output.residual, segment.residual, *out))
        torch.testing.assert_close(images(problem.y, segment.y, *out), y, rtol=1e-12, atol=1e-12)
        if problem.prologue.materialised is not None:
            size = (segment.images, window.height, window.width, segment.n_in)
            written = images(problem.prologue.materialised, segment.materialised, *size)
            torch.testing.assert_close(written, x, rtol=1e-12, atol=1e-12)
        if isinstance(output, Partials):
            check_batch_norm(problem, segment, y, case.window.out_pixels)


def check_batch_norm(problem: Problem, segment: Segment, y: Tensor, pixels: int) -> None:
    """Partial statistics become the batch norm that torch computes in training mode."""
    assert isinstance(problem.epilogue, Partials)
    part = Segments([segment])
    reference.finalize(
        problem.epilogue,
        problem.mean,
        problem.variance,
        part,
        pixels,
        gamma=problem.gamma,
        beta=problem.beta,
        affine=problem.affine,
        eps=EPS,
    )
    gamma, beta = (
        tensor[segment.params : segment.params + segment.n_out]
        for tensor in (problem.gamma, problem.beta)
    )
    true = functional.batch_norm(y, None, None, gamma, beta, True, 0.0, EPS)
    span = slice(segment.out_table, segment.out_table + segment.n_out)
    scale, shift = (
        tensor[span].view(1, -1, 1, 1) for tensor in (problem.affine.scale, problem.affine.shift)
    )
    torch.testing.assert_close(y * scale + shift, true, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        problem.variance[span], y.var((0, 2, 3), correction=0), rtol=1e-10, atol=1e-12
    )


def test_pool() -> None:
    """The statistics of all rows together."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randn(rows, 16, generator=generator, dtype=torch.float64) + rows for rows in (4, 8, 6)
    ]
    mean, variance = (
        torch.stack([b.mean(0) for b in batches]),
        torch.stack([b.var(0, correction=0) for b in batches]),
    )
    segments = Segments(
        [
            Segment(n_in=1, n_out=16, images=len(b) // 2, out_table=16 * i)
            for i, b in enumerate(batches)
        ]
    )
    pooled = [torch.full((16,), float("nan"), dtype=torch.float64) for _ in range(4)]
    ones, zeros = torch.ones(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    pools = Pools([Pool(first=0, count=3, out_table=0)], segments)
    reference.pool(
        mean,
        variance,
        pooled[0],
        pooled[1],
        pools,
        2,
        gamma=ones,
        beta=zeros,
        affine=Affine(pooled[2], pooled[3]),
        eps=EPS,
    )
    rows = torch.cat(batches)
    torch.testing.assert_close(pooled[0], rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pooled[1], rows.var(0, correction=0), rtol=1e-12, atol=1e-12)
    normal = functional.batch_norm(rows, None, None, None, None, True, 0.0, EPS)
    torch.testing.assert_close(rows * pooled[2] + pooled[3], normal, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_add_act(activation: str) -> None:
    case = Case("add", Window(3, 4), ((20, 20, (2,)),), True, activation, True, True, True)
    problem = build(case, DOUBLE, "cpu", 8).float64()
    reference.add_act(problem.x, problem.segments, 12, problem.prologue)
    (segment,) = problem.segments.segments
    assert problem.prologue.materialised is not None
    written = images(problem.prologue.materialised, segment.materialised, 2, 3, 4, 20)
    torch.testing.assert_close(
        written, expected_input(case, problem, segment), rtol=1e-12, atol=1e-12
    )


def test_stem_and_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (4, 6, 5, 3), generator=generator, dtype=torch.uint8)
    weight = torch.randn(9, 16, 16, generator=generator, dtype=torch.float64)
    scale, shift = (
        torch.rand(3, generator=generator).double(),
        torch.rand(3, generator=generator).double(),
    )
    window = Window(6, 5, (3, 3), (2, 2), (1, 1))
    segments = Segments([Segment(image=1, images=3, n_in=3, n_out=10)])
    y = torch.full((3, 3, 3, 16), float("nan"), dtype=torch.float64)
    reference.stem(pictures, weight, y, segments, window, normalise=Affine(scale, shift))
    chosen = (pictures[1:].double() * scale + shift).permute(0, 3, 1, 2)
    kernel = weight.view(3, 3, 16, 16)[:, :, :3, :10].permute(3, 2, 0, 1)
    true = functional.conv2d(chosen, kernel, None, 2, 1)
    torch.testing.assert_close(y[..., :10].permute(0, 3, 1, 2), true, rtol=1e-12, atol=1e-12)
    assert (y[..., 10:] == 0).all()
    mean = torch.full((3, 16), float("nan"), dtype=torch.float64)
    reference.mean_pixels(
        y,
        mean,
        Segments([Segment(images=3, n_in=10, n_out=10)]),
        9,
        prologue=Prologue(None, "relu"),
    )
    torch.testing.assert_close(mean[:, :10], true.relu().mean((2, 3)), rtol=1e-12, atol=1e-12)


def test_settings_are_those_of_the_kernels() -> None:
    """Float32 inputs give float32 sums: the reference is also what runs without a GPU."""
    case = CASES[0]
    problem = build(case, FP32, "cpu", 8)
    reference.conv(
        problem.x,
        problem.weight,
        problem.y,
        problem.segments,
        case.window,
        epilogue=problem.epilogue,
    )
    wide = problem.float64()
    wide.y.fill_(float("nan"))
    reference.conv(wide.x, wide.weight, wide.y, wide.segments, case.window, epilogue=wide.epilogue)
    assert (problem.y.double() - wide.y).abs().nan_to_num().max() <= 1e-5
