"""Convolutions against the float64 reference, which `test_reference.py` compares with torch's
own."""

import dataclasses
from typing import Any

import pytest
import torch
from ragged.buffers import FAR, FP32, Setting
from ragged.convolutions import EPS, Case, Problem, build, check_statistics, check_values

pytest.importorskip("triton")

from pruneopt.kernels import convolution, reference, statistics
from pruneopt.kernels.launch import architecture
from pruneopt.kernels.library import ACTIVATIONS
from pruneopt.kernels.operands import Output, Partials
from pruneopt.kernels.segments import Segment, Segments
from pruneopt.kernels.tiles import Tile, conv_tile, depthwise_tile
from pruneopt.kernels.window import Window

pytestmark = pytest.mark.gpu

ONE = ((20, 17, (1,)),)
LOOSE = Setting("bf16", torch.bfloat16, "ieee", 1.5e-2, 1.5e-2, 2e-2)
SAME = Window(4, 5, (3, 3), padding=(1, 1))
POINTS = Window(5, 7)
CASES = [
    Case("point", POINTS, ((40, 48, (2,)), (17, 31, (1, 1)), (1, 3, (1,)))),
    Case("point, affine, relu", POINTS, affine=True, activation="relu", both=True),
    Case("same", SAME, both=True),
    Case("same, affine, relu", SAME, affine=True, activation="relu", both=True),
    Case(
        "stride 2, odd size", Window(7, 5, (3, 3), (2, 2), (1, 1)), affine=True, activation="relu6"
    ),
    Case("point, stride 2", Window(6, 5, (1, 1), (2, 2)), affine=True, activation="relu"),
    Case(
        "rectangular, dilated",
        Window(7, 8, (3, 2), (1, 2), (2, 1), (2, 3)),
        ONE,
        affine=True,
        activation="silu",
    ),
    Case(
        "wide padding",
        Window(3, 3, (2, 3), (1, 1), (2, 2)),
        ((16, 16, (1,)),),
        affine=True,
        activation="hardswish",
    ),
    Case("prefix of one weight", SAME, ((33, 20, (1,)), (17, 31, (1,)), (2, 1, (1,))), prefix=True),
    Case(
        "residual",
        POINTS,
        affine=True,
        activation="relu",
        residual=True,
        materialise=True,
        both=True,
    ),
    Case(
        "both affine", SAME, ONE, affine=True, residual=True, residual_affine=True, materialise=True
    ),
    Case("one row", Window(1, 1), ((48, 5, (1,)),), output=Output()),
    Case("evaluation", POINTS, output=Output(activation="relu"), both=True),
    Case("evaluation, silu", SAME, ONE, output=Output(activation="silu")),
    Case("evaluation, hardswish", POINTS, ONE, output=Output(activation="hardswish")),
    Case("grouped", SAME, ((12, 20, (2,)), (4, 8, (1,))), affine=True, activation="relu", groups=4),
    Case("grouped, 32 of a group", POINTS, ((40, 80, (1,)),), groups=2),
]
LARGE = [
    Case(
        "point",
        Window(14, 14),
        ((150, 200, (3, 2)), (64, 33, (3,))),
        affine=True,
        activation="relu",
    ),
    Case(
        "same",
        Window(14, 14, (3, 3), padding=(1, 1)),
        ((96, 130, (2,)), (24, 70, (2,))),
        affine=True,
        prefix=True,
    ),
    Case(
        "narrow",
        Window(28, 28, (3, 3), (2, 2), (1, 1)),
        ((33, 24, (4,)),),
        output=Output(activation="relu6"),
    ),
]
"""Full tiles of every bucket, which take the interpreter too long."""
DEPTHWISE = [
    Case(
        "same", SAME, ((20, 20, (2, 1)), (1, 1, (1,))), affine=True, activation="relu6", both=True
    ),
    Case(
        "stride 2",
        Window(7, 5, (3, 3), (2, 2), (1, 1)),
        ((33, 33, (1,)),),
        affine=True,
        activation="hardswish",
    ),
    Case("dilated", Window(6, 5, (3, 3), (1, 1), (2, 2), (2, 2)), ((17, 17, (1,)),)),
    Case("residual", SAME, ((17, 17, (1,)),), affine=True, residual=True, materialise=True),
    Case(
        "evaluation",
        Window(5, 5, (5, 5), padding=(2, 2)),
        ((9, 9, (1,)),),
        output=Output(activation="silu"),
    ),
    Case("prefix of one weight", POINTS, ((33, 33, (1,)), (17, 17, (1,))), prefix=True),
]


def tile_of(case: Case, setting: Setting, device: str) -> Tile:
    arch = architecture(torch.device(device))
    n_in = max(candidate[0] for candidate in case.candidates)
    n_out = max(candidate[1] for candidate in case.candidates)
    if case.depthwise:
        return depthwise_tile(n_out, arch)
    return conv_tile(n_out, n_in, setting.dtype, arch, setting.precision, case.groups)


def run(case: Case, setting: Setting, problem: Problem) -> None:
    """The kernels, as a planner calls them."""
    common: dict[str, Any] = {"prologue": problem.prologue, "epilogue": problem.epilogue}
    if case.depthwise:
        convolution.dwconv(
            problem.x, problem.weight, problem.y, problem.segments, case.window, **common
        )
    else:
        more: dict[str, Any] = {"groups": case.groups, "precision": setting.precision}
        convolution.conv(
            problem.x, problem.weight, problem.y, problem.segments, case.window, **common, **more
        )
    if isinstance(problem.epilogue, Partials):
        tables: dict[str, Any] = {
            "gamma": problem.gamma,
            "beta": problem.beta,
            "affine": problem.affine,
            "eps": EPS,
        }
        statistics.finalize(
            problem.epilogue,
            problem.mean,
            problem.variance,
            problem.segments,
            case.window.out_pixels,
            **tables,
        )


def expect(case: Case, problem: Problem) -> None:
    """The reference on the same buffers in float64."""
    common: dict[str, Any] = {"prologue": problem.prologue, "epilogue": problem.epilogue}
    if case.depthwise:
        reference.dwconv(
            problem.x, problem.weight, problem.y, problem.segments, case.window, **common
        )
    else:
        reference.conv(
            problem.x,
            problem.weight,
            problem.y,
            problem.segments,
            case.window,
            **common,
            groups=case.groups,
        )
    if isinstance(problem.epilogue, Partials):
        tables: dict[str, Any] = {
            "gamma": problem.gamma,
            "beta": problem.beta,
            "affine": problem.affine,
            "eps": EPS,
        }
        reference.finalize(
            problem.epilogue,
            problem.mean,
            problem.variance,
            problem.segments,
            case.window.out_pixels,
            **tables,
        )


def check(case: Case, setting: Setting, device: str) -> None:
    found = build(case, setting, device, tile_of(case, setting, device).rows)
    expected = found.float64()
    run(case, setting, found)
    expect(case, expected)
    check_values(found, expected, setting.value)
    if isinstance(found.epilogue, Partials):
        check_statistics(found, expected, setting)
        check_stored(case, found)
    if device == "cuda":
        again = build(case, setting, device, tile_of(case, setting, device).rows)
        run(case, setting, again)
        for name in ("y", "mean", "variance"):
            first, second = getattr(found, name), getattr(again, name)
            assert torch.equal(first.nan_to_num(), second.nan_to_num()), (
                f"{name} differs between two runs"
            )


def check_stored(case: Case, found: Problem) -> None:
    """The statistics are those of the stored values, whatever these were rounded to."""
    for segment in found.segments.segments:
        rows = segment.images * case.window.out_pixels
        width = -(-segment.n_out // 16) * 16
        stored = (
            found.y[segment.y : segment.y + rows * width]
            .view(rows, width)[:, : segment.n_out]
            .double()
        )
        variance, mean = torch.var_mean(stored, 0, unbiased=False)
        part = slice(segment.out_table, segment.out_table + segment.n_out)
        far = 1 + (mean.abs() / variance.sqrt().clamp(min=1e-30)).max()
        assert ((found.mean[part] - mean).abs() <= 1e-6 * far * variance.sqrt() + 1e-12).all()
        assert ((found.variance[part] - variance).abs() <= 2e-6 * far * variance + 1e-12).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conv(case: Case, setting: Setting, device: str, interpreted: bool) -> None:
    if interpreted and setting is not FP32 and not case.both:
        pytest.skip("one float width is enough for this case in the interpreter")
    check(case, setting, device)


@pytest.mark.parametrize("case", DEPTHWISE, ids=lambda case: case.name)
def test_dwconv(case: Case, setting: Setting, device: str, interpreted: bool) -> None:
    if interpreted and setting is not FP32 and not case.both:
        pytest.skip("one float width is enough for this case in the interpreter")
    check(dataclasses.replace(case, depthwise=True), setting, device)


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_large_tiles(case: Case, setting: Setting, device: str, interpreted: bool) -> None:
    if interpreted:
        pytest.skip("for a GPU")
    check(case, setting, device)


def test_bases_beyond_32_bits(device: str, interpreted: bool) -> None:
    """The same segment at the beginning and behind 2^31 elements gives the same."""
    if interpreted:
        pytest.skip("for a GPU: the buffers take 9 GB")
    far, size = 2**31 + 64, 35 * 32
    x, y = (torch.zeros(far + size, dtype=torch.float16, device=device) for _ in range(2))
    x[:size] = torch.randn(size, device=device)
    x[far:] = x[:size]
    weight = torch.randn(1, 32, 32, device=device).half()
    places = [Segment(x=start, y=start, n_in=32, n_out=32, images=1) for start in (0, far)]
    convolution.conv(x, weight, y, Segments(places, device), POINTS)
    assert y[:size].abs().max() > 0
    assert torch.equal(y[:size], y[far:])


def test_bfloat16_in_the_interpreter(interpreted: bool) -> None:
    """It stores bfloat16 truncated, but its products are of float32: the error is that of
    storing."""
    if not interpreted:
        pytest.skip("for the interpreter; on a GPU bfloat16 is a setting like others")
    case = Case("bf16", SAME, ((20, 17, (1,)),), affine=True, activation="relu")
    found = build(case, LOOSE, "cpu", tile_of(case, LOOSE, "cpu").rows)
    expected = found.float64()
    run(case, LOOSE, found)
    expect(case, expected)
    check_values(found, expected, LOOSE.value)
    check_statistics(found, expected, LOOSE)


def test_mean_far_from_zero(device: str) -> None:
    """Sums of squares would lose six of seven digits here."""
    check(Case("far", POINTS, ((20, 17, (2,)),), mean=1000.0), FAR, device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_passed_on(activation: str, device: str) -> None:
    """A candidate that diverged must not look like one that does not."""
    case = Case("nan", POINTS, ((4, 4, (1,)),), activation=activation)
    problem = build(case, FP32, device, tile_of(case, FP32, device).rows)
    start = problem.segments.segments[0].x
    problem.x[start + 16] = float("nan")
    run(case, FP32, problem)
    y = problem.y[problem.segments.segments[0].y :][: 35 * 16].view(35, 16)
    assert y[1, :4].isnan().all()
    assert not y[0].isnan().any()
    assert problem.mean[:4].isnan().all()
