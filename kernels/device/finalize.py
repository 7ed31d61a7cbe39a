"""Partial statistics to statistics, and these to the affine map of the next layer (Chan's
combination)."""

from pruneopt.kernels.device.common import (
    FIELDS,
    IMAGES,
    N_OUT,
    OUT_TABLE,
    PARAMS,
    PARTIALS,
    number,
    offset,
    stored,
)
from pruneopt.kernels.device.language import tl, triton


@triton.jit
def _write_affine(
    gamma_ptr, beta_ptr, scale_ptr, shift_ptr, params, at, mean, var, eps, channel, real, inside
):
    """`scale = gamma / sqrt(var + eps)`, `shift = beta - mean * scale`; zero for pads."""
    gamma = tl.load(gamma_ptr + params + channel, mask=real, other=0.0)
    beta = tl.load(beta_ptr + params + channel, mask=real, other=0.0)
    scale = tl.where(real, gamma / tl.sqrt(var + eps), 0.0)
    tl.store(scale_ptr + at + channel, scale, mask=inside)
    tl.store(shift_ptr + at + channel, tl.where(real, beta - mean * scale, 0.0), mask=inside)


@triton.jit(do_not_specialize=("pixels",))
def finalize_kernel(
    mean_ptr,
    m2_ptr,
    gamma_ptr,
    beta_ptr,
    scale_ptr,
    shift_ptr,
    batch_mean_ptr,
    batch_var_ptr,
    table_ptr,
    pixels,
    eps,
    TILE_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Programs: blocks of channels, segments. Sums of means are relative to the first tile's."""
    segment = tl.program_id(1)
    n_out = number(table_ptr, segment, N_OUT)
    width = stored(n_out)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < width
    real = channel < n_out
    rows = number(table_ptr, segment, IMAGES) * pixels
    if (tl.program_id(0) * BLOCK_C < width) & (rows > 0):
        n_tiles = tl.cdiv(rows, TILE_ROWS)
        mean_base = mean_ptr + offset(table_ptr, segment, PARTIALS)
        m2_base = m2_ptr + offset(table_ptr, segment, PARTIALS)
        first = tl.load(mean_base + channel, mask=inside, other=0.0)
        total = tl.zeros((BLOCK_C,), tl.float64)
        for t in range(0, n_tiles, BLOCK_T):
            tile = t + tl.arange(0, BLOCK_T)
            count = tl.maximum(tl.minimum(rows - tile * TILE_ROWS, TILE_ROWS), 0).to(tl.float32)
            ok = (tile < n_tiles)[:, None] & inside[None, :]
            mean = tl.load(
                mean_base + tile.to(tl.int64)[:, None] * width + channel[None, :],
                mask=ok,
                other=0.0,
            )
            total += tl.sum(tl.where(ok, (mean - first[None, :]) * count[:, None], 0.0), 0).to(
                tl.float64
            )
        grand = first + (total / rows).to(tl.float32)
        total = tl.zeros((BLOCK_C,), tl.float64)
        for t in range(0, n_tiles, BLOCK_T):
            tile = t + tl.arange(0, BLOCK_T)
            count = tl.maximum(tl.minimum(rows - tile * TILE_ROWS, TILE_ROWS), 0).to(tl.float32)
            ok = (tile < n_tiles)[:, None] & inside[None, :]
            at = tile.to(tl.int64)[:, None] * width + channel[None, :]
            mean = tl.load(mean_base + at, mask=ok, other=0.0)
            m2 = tl.load(m2_base + at, mask=ok, other=0.0)
            away = tl.where(ok, mean - grand[None, :], 0.0)
            total += tl.sum(m2 + away * away * count[:, None], 0).to(tl.float64)
        var = (total / rows).to(tl.float32)
        at = offset(table_ptr, segment, OUT_TABLE)
        tl.store(batch_mean_ptr + at + channel, grand, mask=inside)
        tl.store(batch_var_ptr + at + channel, var, mask=inside)
        if scale_ptr is not None:
            params = offset(table_ptr, segment, PARAMS)
            _write_affine(
                gamma_ptr,
                beta_ptr,
                scale_ptr,
                shift_ptr,
                params,
                at,
                grand,
                var,
                eps,
                channel,
                real,
                inside,
            )


@triton.jit(do_not_specialize=("pixels",))
def pool_kernel(
    batch_mean_ptr,
    batch_var_ptr,
    gamma_ptr,
    beta_ptr,
    scale_ptr,
    shift_ptr,
    mean_ptr,
    var_ptr,
    table_ptr,
    pools_ptr,
    pixels,
    eps,
    BLOCK_C: tl.constexpr,
):
    """Programs: blocks of channels, pools. Every batch weighs as many rows as it has."""
    pool = tl.program_id(1)
    begin = tl.load(pools_ptr + pool * 3).to(tl.int32)
    end = begin + tl.load(pools_ptr + pool * 3 + 1).to(tl.int32)
    n_out = number(table_ptr, begin, N_OUT)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < stored(n_out)
    real = channel < n_out
    if tl.program_id(0) * BLOCK_C < stored(n_out):
        first = tl.load(
            batch_mean_ptr + offset(table_ptr, begin, OUT_TABLE) + channel, mask=inside, other=0.0
        )
        total = tl.zeros((BLOCK_C,), tl.float64)
        count = tl.zeros((1,), tl.int64)
        for segment in range(begin, end):
            rows = tl.load(table_ptr + segment * FIELDS + IMAGES) * pixels
            mean = tl.load(
                batch_mean_ptr + offset(table_ptr, segment, OUT_TABLE) + channel,
                mask=inside,
                other=0.0,
            )
            total += (mean - first).to(tl.float64) * rows.to(tl.float64)
            count += rows
        grand = first + (total / count.to(tl.float64)).to(tl.float32)
        total = tl.zeros((BLOCK_C,), tl.float64)
        for segment in range(begin, end):
            rows = tl.load(table_ptr + segment * FIELDS + IMAGES) * pixels
            source = offset(table_ptr, segment, OUT_TABLE) + channel
            mean = tl.load(batch_mean_ptr + source, mask=inside, other=0.0)
            var = tl.load(batch_var_ptr + source, mask=inside, other=0.0)
            away = mean - grand
            total += (var + away * away).to(tl.float64) * rows.to(tl.float64)
        var = (total / count.to(tl.float64)).to(tl.float32)
        at = tl.multiple_of(tl.load(pools_ptr + pool * 3 + 2), 16)
        params = offset(table_ptr, begin, PARAMS)
        tl.store(mean_ptr + at + channel, grand, mask=inside)
        tl.store(var_ptr + at + channel, var, mask=inside)
        _write_affine(
            gamma_ptr,
            beta_ptr,
            scale_ptr,
            shift_ptr,
            params,
            at,
            grand,
            var,
            eps,
            channel,
            real,
            inside,
        )
