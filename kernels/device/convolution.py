"""Implicit matrix product: a convolution of ragged candidates in one launch, NHWC."""

from pruneopt.kernels.device.common import (
    IMAGES,
    IN_TABLE,
    MATERIALISED,
    N_IN,
    N_OUT,
    RESIDUAL,
    RESIDUAL_TABLE,
    W_COLUMNS,
    W_ROWS,
    W,
    X,
    equal,
    number,
    offset,
    read_input,
    stored,
    write_tile,
)
from pruneopt.kernels.device.language import tl, triton

SHAPES = ("height", "width", "out_height", "out_width")
"""Arguments that must not be specialised on: one compilation serves images of every size."""


@triton.jit(do_not_specialize=SHAPES)
def conv_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    scale_ptr,
    shift_ptr,
    r_ptr,
    r_scale_ptr,
    r_shift_ptr,
    z_ptr,
    bias_ptr,
    add_ptr,
    mean_ptr,
    m2_ptr,
    table_ptr,
    height,
    width,
    out_height,
    out_width,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    IN_ACT: tl.constexpr,
    OUT_ACT: tl.constexpr,
    GROUPS: tl.constexpr,
    IDENTITY_TAP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Programs: tiles of output rows, tiles of output channels (group by group), segments."""
    tile = tl.program_id(0)
    segment = tl.program_id(2)
    n_in = number(table_ptr, segment, N_IN)
    n_out = number(table_ptr, segment, N_OUT)
    rows = number(table_ptr, segment, IMAGES) * out_height * out_width
    in_width = stored(n_in)
    if GROUPS == 1:
        group = 0
        local_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        depth = in_width
        inside = local_n < stored(n_out)
        readable = inside
        real = local_n < n_out
        channel = local_n
        first_channel = 0
        busy = tl.program_id(1) * BLOCK_N < stored(n_out)
    else:
        # The pads after the last group's channels belong to that group; its tiles reach over them.
        share = n_out // GROUPS
        tiles_n = tl.num_programs(1) // GROUPS
        group = tl.program_id(1) // tiles_n
        local_n = (tl.program_id(1) - group * tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
        depth = n_in // GROUPS
        real = local_n < share
        readable = real
        channel = group * share + local_n
        inside = real | (equal(group, GROUPS - 1) & (channel < stored(n_out)))
        first_channel = group * depth
        busy = True
    if busy & (tile * BLOCK_M < rows):
        x_base = x_ptr + offset(table_ptr, segment, X)
        w_base = w_ptr + offset(table_ptr, segment, W)
        w_columns = tl.multiple_of(number(table_ptr, segment, W_COLUMNS), 16)
        w_rows = number(table_ptr, segment, W_ROWS)
        scale_base = (
            scale_ptr + offset(table_ptr, segment, IN_TABLE) if scale_ptr is not None else None
        )
        shift_base = (
            shift_ptr + offset(table_ptr, segment, IN_TABLE) if shift_ptr is not None else None
        )
        r_base = r_ptr + offset(table_ptr, segment, RESIDUAL) if r_ptr is not None else None
        r_scale_base = (
            r_scale_ptr + offset(table_ptr, segment, RESIDUAL_TABLE)
            if r_scale_ptr is not None
            else None
        )
        r_shift_base = (
            r_shift_ptr + offset(table_ptr, segment, RESIDUAL_TABLE)
            if r_shift_ptr is not None
            else None
        )
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_ok = row < rows
        ow = row % out_width
        line = row // out_width
        oh = line % out_height
        image = line // out_height
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        steps = tl.cdiv(depth, BLOCK_K)
        # One flat loop over taps and channels: unrolled taps take ten times as long to compile and
        # spill.
        for step in range(KH * KW * steps):
            tap = step // steps
            k = (step - tap * steps) * BLOCK_K + tl.arange(0, BLOCK_K)
            k_ok = k < depth
            ih = oh * STRIDE_H - PAD_H + tap // KW * DILATION_H
            iw = ow * STRIDE_W - PAD_W + tap % KW * DILATION_W
            ok = row_ok & (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
            pixel = ((image * height + ih) * width + iw) * in_width
            k_channel = first_channel + k
            offsets = pixel[:, None] + k_channel[None, :]
            a_ok = ok[:, None] & k_ok[None, :]
            a = read_input(
                x_base,
                scale_base,
                shift_base,
                r_base,
                r_scale_base,
                r_shift_base,
                offsets,
                a_ok,
                k_channel,
                k_ok,
                IN_ACT,
            )
            if z_ptr is not None:
                # A mask, not a branch: a branch would keep the loop from being pipelined.
                writer = equal(tl.program_id(1), 0) & equal(tap, IDENTITY_TAP)
                z_base = z_ptr + offset(table_ptr, segment, MATERIALISED)
                tl.store(z_base + offsets, a.to(z_ptr.dtype.element_ty), mask=a_ok & writer)
            w_offsets = (tap * w_rows + k)[:, None] * w_columns + channel[None, :]
            w = tl.load(w_base + w_offsets, mask=k_ok[:, None] & readable[None, :], other=0.0)
            if UPCAST:
                a = a.to(tl.float32)
                w = w.to(tl.float32)
            else:
                a = a.to(x_ptr.dtype.element_ty)
            acc = tl.dot(a, w, acc, input_precision=PRECISION)
        write_tile(
            acc,
            y_ptr,
            bias_ptr,
            add_ptr,
            mean_ptr,
            m2_ptr,
            table_ptr,
            segment,
            tile,
            rows,
            channel,
            real,
            inside,
            OUT_ACT,
            BLOCK_M,
            BLOCK_N,
        )
