"""The first convolution, which reads pictures of bytes and normalises them in registers."""

from pruneopt.kernels.device.common import (
    FIELDS,
    IMAGE,
    IMAGES,
    N_OUT,
    W_COLUMNS,
    W_ROWS,
    W,
    number,
    offset,
    stored,
    write_tile,
)
from pruneopt.kernels.device.convolution import SHAPES
from pruneopt.kernels.device.language import tl, triton


@triton.jit(do_not_specialize=SHAPES)
def stem_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    scale_ptr,
    shift_ptr,
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
    OUT_ACT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Programs: tiles of output rows, tiles of output channels, segments. Depth runs over taps
    times colours."""
    tile = tl.program_id(0)
    segment = tl.program_id(2)
    n_out = number(table_ptr, segment, N_OUT)
    rows = number(table_ptr, segment, IMAGES) * out_height * out_width
    if (tl.program_id(1) * BLOCK_N < stored(n_out)) & (tile * BLOCK_M < rows):
        first = tl.load(table_ptr + segment * FIELDS + IMAGE)
        x_base = x_ptr + first * height * width * CHANNELS
        w_base = w_ptr + offset(table_ptr, segment, W)
        w_columns = tl.multiple_of(number(table_ptr, segment, W_COLUMNS), 16)
        w_rows = number(table_ptr, segment, W_ROWS)
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_ok = row < rows
        channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = channel < stored(n_out)
        ow = row % out_width
        line = row // out_width
        oh = line % out_height
        image = line // out_height
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, KH * KW * CHANNELS, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            k_ok = k < KH * KW * CHANNELS
            tap = k // CHANNELS
            colour = k % CHANNELS
            ih = (oh * STRIDE_H - PAD_H)[:, None] + (tap // KW * DILATION_H)[None, :]
            iw = (ow * STRIDE_W - PAD_W)[:, None] + (tap % KW * DILATION_W)[None, :]
            ok = (
                row_ok[:, None]
                & k_ok[None, :]
                & (ih >= 0)
                & (ih < height)
                & (iw >= 0)
                & (iw < width)
            )
            pixel = ((image * height)[:, None] + ih) * width + iw
            byte = tl.load(x_base + pixel * CHANNELS + colour[None, :], mask=ok, other=0)
            scale = tl.load(scale_ptr + colour)
            shift = tl.load(shift_ptr + colour)
            a = tl.where(ok, byte.to(tl.float32) * scale[None, :] + shift[None, :], 0.0)
            w_offsets = (tap * w_rows + colour)[:, None] * w_columns + channel[None, :]
            w = tl.load(w_base + w_offsets, mask=k_ok[:, None] & inside[None, :], other=0.0)
            if UPCAST:
                w = w.to(tl.float32)
            else:
                a = a.to(w_ptr.dtype.element_ty)
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
            channel < n_out,
            inside,
            OUT_ACT,
            BLOCK_M,
            BLOCK_N,
        )
