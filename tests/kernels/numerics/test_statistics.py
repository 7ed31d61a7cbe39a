"""Batch-norm statistics: combined over tiles, pooled over batches, and against the moments of the
input."""

from typing import Any

import pytest
import torch
from ragged.buffers import FP32, Buffer, Setting, close
from ragged.convolutions import Case, build
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")

from pruneopt.kernels import convolution, reference, statistics
from pruneopt.kernels.launch import architecture
from pruneopt.kernels.operands import Affine, Partials
from pruneopt.kernels.segments import Pool, Pools, Segment, Segments, padded
from pruneopt.kernels.tiles import conv_tile
from pruneopt.kernels.window import Window

pytestmark = pytest.mark.gpu

PIXELS, TILE = 7, 4
CANDIDATES = ((17, (3, 2, 1)), (40, (2, 2)))
"""Widths, and images of each batch."""


def problem(device: str, centre: float) -> tuple[Partials, Segments, Tensor, Tensor, list[Tensor]]:
    """Partials of random rows, and these rows per segment."""
    generator = torch.Generator().manual_seed(1)
    means, squares, out, gamma, beta = Buffer(), Buffer(), Buffer(), Buffer(), Buffer()
    segments, data = [], []
    for n_out, batches in CANDIDATES:
        params = gamma.add(torch.rand(n_out, generator=generator) + 0.5)
        beta.add(torch.randn(n_out, generator=generator))
        for images in batches:
            rows = torch.zeros(images * PIXELS, padded(n_out), dtype=torch.float64)
            rows[:, :n_out] = (
                torch.randn(len(rows), n_out, generator=generator, dtype=torch.float64) + centre
            )
            tiles = rows.split(TILE)
            start = means.add(torch.stack([tile.mean(0) for tile in tiles]))
            squares.add(torch.stack([(tile - tile.mean(0)).square().sum(0) for tile in tiles]))
            place = out.reserve(padded(n_out))
            segments.append(
                Segment(
                    partials=start,
                    out_table=place,
                    params=params,
                    n_in=1,
                    n_out=n_out,
                    images=images,
                )
            )
            data.append(rows[:, :n_out])
    partials = Partials(
        means.tensor(torch.float32, device), squares.tensor(torch.float32, device), TILE
    )
    scale, shift = (buffer.tensor(torch.float32, device) for buffer in (gamma, beta))
    return partials, Segments(segments, device), scale, shift, data


@pytest.mark.parametrize("centre", [0.0, 30.0])
def test_batches_and_their_pool(device: str, centre: float) -> None:
    """Against the rows themselves, whose variance contains that of the batches' means."""
    partials, segments, gamma, beta, data = problem(device, centre)
    size = max(segment.out_table + padded(segment.n_out) for segment in segments.segments)
    mean, variance, scale, shift = (
        torch.full((size,), float("nan"), device=device) for _ in range(4)
    )
    statistics.finalize(
        partials,
        mean,
        variance,
        segments,
        PIXELS,
        gamma=gamma,
        beta=beta,
        affine=Affine(scale, shift),
        eps=1e-3,
    )
    for segment, rows in zip(segments.segments, data, strict=True):
        part = slice(segment.out_table, segment.out_table + segment.n_out)
        near(mean[part], variance[part], rows)
        weights = (gamma, beta)
        g, b = (
            tensor[segment.params : segment.params + segment.n_out].double().cpu()
            for tensor in weights
        )
        true = functional.batch_norm(rows, None, None, g, b, True, 0.0, 1e-3)
        found = rows * scale[part].double().cpu() + shift[part].double().cpu()
        assert (found - true).abs().max() <= 1e-6 * (5 + centre)
    firsts = [0, len(CANDIDATES[0][1])]
    ranges = enumerate(zip(firsts, CANDIDATES, strict=True))
    pools = Pools(
        [
            Pool(first=first, count=len(batches), out_table=48 * i)
            for i, (first, (_, batches)) in ranges
        ],
        segments,
    )
    pooled = [torch.full((96,), float("nan"), device=device) for _ in range(4)]
    statistics.pool(
        mean,
        variance,
        pooled[0],
        pooled[1],
        pools,
        PIXELS,
        gamma=gamma,
        beta=beta,
        affine=Affine(pooled[2], pooled[3]),
        eps=1e-3,
    )
    expected = [torch.full((96,), float("nan"), dtype=torch.float64) for _ in range(4)]
    wide = [tensor.double().cpu() for tensor in (mean, variance, gamma, beta)]
    local = Pools(pools.pools, Segments(segments.segments))
    reference.pool(
        wide[0],
        wide[1],
        expected[0],
        expected[1],
        local,
        PIXELS,
        gamma=wide[2],
        beta=wide[3],
        affine=Affine(expected[2], expected[3]),
        eps=1e-3,
    )
    for name, got, want in zip(
        ("mean", "variance", "scale", "shift"), pooled, expected, strict=True
    ):
        close(got, want, 1e-6, name)
    for pool, first, (n_out, batches) in zip(pools.pools, firsts, CANDIDATES, strict=True):
        rows = torch.cat(data[first : first + len(batches)])
        part = slice(pool.out_table, pool.out_table + n_out)
        near(pooled[0][part], pooled[1][part], rows)


def near(mean: Tensor, variance: Tensor, rows: Tensor) -> None:
    """Float32 statistics of float64 rows; digits are lost in the ratio of mean to deviation
    only."""
    spread, centre = torch.var_mean(rows, 0, unbiased=False)
    ratio = 1 + (centre.abs() / spread.sqrt()).max()
    assert ((mean.double().cpu() - centre).abs() <= 2e-7 * ratio * spread.sqrt()).all()
    assert ((variance.double().cpu() - spread).abs() <= 4e-7 * ratio * spread).all()


def test_statistics_follow_from_the_moments_of_the_patches(
    setting: Setting, device: str, interpreted: bool
) -> None:
    """`mean = W m` and `variance = diag(W S W')`, with mean and covariance of the input's patches
    in float64."""
    if interpreted and setting is not FP32:
        pytest.skip("one float width is enough in the interpreter")
    window = Window(5, 6, (3, 3), (2, 1), (1, 1))
    case = Case("moments", window, ((20, 17, (3,)), (7, 9, (2,))), prefix=True, mean=0.5)
    tile = conv_tile(17, 20, setting.dtype, architecture(torch.device(device)), setting.precision)
    made = build(case, setting, device, tile.rows)
    assert isinstance(made.epilogue, Partials)
    common: dict[str, Any] = {"epilogue": made.epilogue, "precision": setting.precision}
    convolution.conv(made.x, made.weight, made.y, made.segments, window, **common)
    statistics.finalize(made.epilogue, made.mean, made.variance, made.segments, window.out_pixels)
    for segment in made.segments.segments:
        shape = (segment.images, window.height, window.width, padded(segment.n_in))
        x = (
            made.x[segment.x :][: torch.Size(shape).numel()]
            .view(shape)[..., : segment.n_in]
            .double()
            .cpu()
        )
        patches = functional.unfold(
            x.permute(0, 3, 1, 2), window.kernel, window.dilation, window.padding, window.stride
        )
        rows = patches.transpose(1, 2).flatten(0, 1)
        stored = made.weight[segment.w :][: 9 * segment.w_rows * segment.w_columns].double().cpu()
        weight = stored.view(9, segment.w_rows, segment.w_columns)[
            :, : segment.n_in, : segment.n_out
        ]
        weight = weight.permute(2, 1, 0).flatten(1)
        mean = weight @ rows.mean(0)
        variance = ((weight @ torch.cov(rows.T, correction=0)) * weight).sum(1)
        part = slice(segment.out_table, segment.out_table + segment.n_out)
        found_mean, found_variance = (
            made.mean[part].double().cpu(),
            made.variance[part].double().cpu(),
        )
        assert ((found_mean - mean).abs() <= setting.mean * variance.sqrt()).all()
        assert ((found_variance - variance).abs() <= setting.variance * variance).all()
