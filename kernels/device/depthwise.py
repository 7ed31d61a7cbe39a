"""Depthwise convolution of ragged candidates, one output channel per input channel, NHWC."""

from pruneopt.kernels.device.common import (
    IMAGES,
    IN_TABLE,
    MATERIALISED,
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
from pruneopt.kernels.device.convolution import SHAPES
from pruneopt.kernels.device.language import tl, triton


@triton.jit(do_not_specialize=SHAPES)
def depthwise_kernel(
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
    IDENTITY_TAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Programs: tiles of output rows, blocks of channels, segments."""
    tile = tl.program_id(0)
    segment = tl.program_id(2)
    n_out = number(table_ptr, segment, N_OUT)
    rows = number(table_ptr, segment, IMAGES) * out_height * out_width
    channels = stored(n_out)
    if (tl.program_id(1) * BLOCK_C < channels) & (tile * BLOCK_M < rows):
        x_base = x_ptr + offset(table_ptr, segment, X)
        w_base = w_ptr + offset(table_ptr, segment, W)
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
        tap_stride = number(table_ptr, segment, W_ROWS) * tl.multiple_of(
            number(table_ptr, segment, W_COLUMNS), 16
        )
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = channel < channels
        row_ok = row < rows
        ow = row % out_width
        line = row // out_width
        oh = line % out_height
        image = line // out_height
        acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for tap in range(KH * KW):
            ih = oh * STRIDE_H - PAD_H + tap // KW * DILATION_H
            iw = ow * STRIDE_W - PAD_W + tap % KW * DILATION_W
            ok = row_ok & (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
            pixel = ((image * height + ih) * width + iw) * channels
            offsets = pixel[:, None] + channel[None, :]
            a_ok = ok[:, None] & inside[None, :]
            a = read_input(
                x_base,
                scale_base,
                shift_base,
                r_base,
                r_scale_base,
                r_shift_base,
                offsets,
                a_ok,
                channel,
                inside,
                IN_ACT,
            )
            if z_ptr is not None:
                z_base = z_ptr + offset(table_ptr, segment, MATERIALISED)
                tl.store(
                    z_base + offsets,
                    a.to(z_ptr.dtype.element_ty),
                    mask=a_ok & equal(tap, IDENTITY_TAP),
                )
            w = tl.load(w_base + tap * tap_stride + channel, mask=inside, other=0.0).to(tl.float32)
            acc += a.to(tl.float32) * w[None, :]
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
            channel < n_out,
            inside,
            OUT_ACT,
            BLOCK_M,
            BLOCK_C,
        )
