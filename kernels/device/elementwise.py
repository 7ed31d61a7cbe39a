"""Kernels without products: finishing an activation, gathering a weight."""

from pruneopt.kernels.device.common import (
    IMAGES,
    IN_TABLE,
    MATERIALISED,
    N_IN,
    RESIDUAL,
    RESIDUAL_TABLE,
    X,
    number,
    offset,
    read_input,
    stored,
)
from pruneopt.kernels.device.language import tl, triton


@triton.jit(do_not_specialize=("pixels",))
def add_act_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    r_ptr,
    r_scale_ptr,
    r_shift_ptr,
    z_ptr,
    table_ptr,
    pixels,
    IN_ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Programs: tiles of rows, blocks of channels, segments."""
    tile = tl.program_id(0)
    segment = tl.program_id(2)
    width = stored(number(table_ptr, segment, N_IN))
    rows = number(table_ptr, segment, IMAGES) * pixels
    if (tl.program_id(1) * BLOCK_C < width) & (tile * BLOCK_M < rows):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        channel_ok = channel < width
        inside = (row < rows)[:, None] & channel_ok[None, :]
        offsets = row[:, None] * width + channel[None, :]
        z = read_input(
            x_ptr + offset(table_ptr, segment, X),
            scale_ptr + offset(table_ptr, segment, IN_TABLE) if scale_ptr is not None else None,
            shift_ptr + offset(table_ptr, segment, IN_TABLE) if shift_ptr is not None else None,
            r_ptr + offset(table_ptr, segment, RESIDUAL) if r_ptr is not None else None,
            r_scale_ptr + offset(table_ptr, segment, RESIDUAL_TABLE)
            if r_scale_ptr is not None
            else None,
            r_shift_ptr + offset(table_ptr, segment, RESIDUAL_TABLE)
            if r_shift_ptr is not None
            else None,
            offsets,
            inside,
            channel,
            channel_ok,
            IN_ACT,
        )
        tl.store(
            z_ptr + offset(table_ptr, segment, MATERIALISED) + offsets,
            z.to(z_ptr.dtype.element_ty),
            mask=inside,
        )


@triton.jit(do_not_specialize=("n_in", "n_out", "all_in", "taps", "share", "rows", "columns"))
def pack_kernel(
    source_ptr,
    keep_out_ptr,
    keep_in_ptr,
    packed_ptr,
    n_in,
    n_out,
    all_in,
    taps,
    share,
    rows,
    columns,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Programs: blocks of input channels, blocks of output channels, taps. The source is `[out, in,
    taps]`."""
    tap = tl.program_id(2)
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    kept = (i < n_in)[:, None] & (o < n_out)[None, :]
    source_o = tl.load(keep_out_ptr + o, mask=o < n_out, other=0)
    source_i = tl.load(keep_in_ptr + (o // share)[None, :] * n_in + i[:, None], mask=kept, other=0)
    value = tl.load(
        source_ptr + (source_o[None, :] * all_in + source_i) * taps + tap, mask=kept, other=0.0
    )
    at = packed_ptr + (tap * rows + i).to(tl.int64)[:, None] * columns + o[None, :]
    tl.store(
        at, value.to(packed_ptr.dtype.element_ty), mask=(i < rows)[:, None] & (o < columns)[None, :]
    )
