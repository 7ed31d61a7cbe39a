"""Code that all kernels share: the segment table, the prologue on load, the epilogue on store.

Traps that shape this code. Offsets and widths read from the table carry `tl.multiple_of`: without
it 16-byte copies become scalar ones, and nothing fails. An absent buffer is None, which a function
may take but, before Triton 3.7, not return. Sums are taken in float32: the interpreter would add
float16 in float16. Maxima pass NaN on: a candidate that diverged must not look like one that does
not.
"""

from pruneopt.kernels.device.language import tl, triton

# Columns of the segment table, in the order of `segments.Segment`; a test compares the two.
X = tl.constexpr(0)
W = tl.constexpr(1)
Y = tl.constexpr(2)
IN_TABLE = tl.constexpr(3)
PARTIALS = tl.constexpr(4)
OUT_TABLE = tl.constexpr(5)
PARAMS = tl.constexpr(6)
RESIDUAL = tl.constexpr(7)
RESIDUAL_TABLE = tl.constexpr(8)
MATERIALISED = tl.constexpr(9)
IMAGE = tl.constexpr(10)
N_IN = tl.constexpr(11)
N_OUT = tl.constexpr(12)
W_COLUMNS = tl.constexpr(13)
W_ROWS = tl.constexpr(14)
IMAGES = tl.constexpr(15)
FIELDS = tl.constexpr(16)


@triton.jit
def offset(table_ptr, segment, FIELD: tl.constexpr):
    """Return the place at which a segment's part of a buffer begins, int64."""
    return tl.multiple_of(tl.load(table_ptr + segment * FIELDS + FIELD), 16)


@triton.jit
def number(table_ptr, segment, FIELD: tl.constexpr):
    """Return a width or a count, int32."""
    return tl.load(table_ptr + segment * FIELDS + FIELD).to(tl.int32)


@triton.jit
def stored(width):
    """Return the padded width."""
    return tl.multiple_of((width + 15) // 16 * 16, 16)


@triton.jit
def activate(x, ACT: tl.constexpr):
    """Apply an activation by name, in float32."""
    if ACT == "relu" or ACT == "relu6":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACT == "relu6":
        x = tl.minimum(x, 6.0, propagate_nan=tl.PropagateNan.ALL)
    if ACT == "hardswish":
        gate = tl.maximum(x + 3.0, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = x * tl.minimum(gate, 6.0, propagate_nan=tl.PropagateNan.ALL) * (1.0 / 6.0)
    if ACT == "silu":
        x = x / (1.0 + tl.exp(-x))
    return x


@triton.jit
def scaled(x, scale_ptr, shift_ptr, channel, channel_ok):
    """`x * scale + shift`, the channels being the columns of `x`."""
    scale = tl.load(scale_ptr + channel, mask=channel_ok, other=0.0)
    shift = tl.load(shift_ptr + channel, mask=channel_ok, other=0.0)
    return x * scale[None, :] + shift[None, :]


@triton.jit
def read_input(
    x_ptr,
    scale_ptr,
    shift_ptr,
    r_ptr,
    r_scale_ptr,
    r_shift_ptr,
    offsets,
    inside,
    channel,
    channel_ok,
    ACT: tl.constexpr,
):
    """Return a tile of the finished input `[rows, channels]`, zero outside.

    Padding comes after the prologue. Pointers are those of the segment. Without a prologue the
    stored values come back as they are, else float32.
    """
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    if scale_ptr is not None or r_ptr is not None or ACT != "identity":
        x = x.to(tl.float32)
        if scale_ptr is not None:
            x = scaled(x, scale_ptr, shift_ptr, channel, channel_ok)
        if r_ptr is not None:
            r = tl.load(r_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            if r_scale_ptr is not None:
                r = scaled(r, r_scale_ptr, r_shift_ptr, channel, channel_ok)
            x = x + r
        x = tl.where(inside, activate(x, ACT), 0.0)
    return x


@triton.jit
def equal(counter, VALUE: tl.constexpr):
    """Compare as a tensor `[1]`: the interpreter would make an integer of a scalar mask."""
    return tl.zeros((1,), tl.int32) + counter == VALUE


@triton.jit
def write_tile(
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
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Finish a tile and store it: bias, residual, activation; statistics of what was stored.

    Args:
        acc: the tile `[ROWS, CHANNELS]`, float32; it begins at row `tile * ROWS` of `rows`.
        channel: output channel of each column; `real` where it exists, `inside` where it is stored
            (pads included).
    """
    width = stored(number(table_ptr, segment, N_OUT))
    row = tile * ROWS + tl.arange(0, ROWS)
    row_ok = row < rows
    offsets = row[:, None] * width + channel[None, :]
    if bias_ptr is not None:
        bias = tl.load(
            bias_ptr + offset(table_ptr, segment, PARAMS) + channel, mask=real, other=0.0
        )
        acc = acc + bias[None, :]
    if add_ptr is not None:
        base = add_ptr + offset(table_ptr, segment, RESIDUAL)
        acc = acc + tl.load(base + offsets, mask=row_ok[:, None] & inside[None, :], other=0.0).to(
            tl.float32
        )
    acc = tl.where(real[None, :], activate(acc, ACT), 0.0)
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(
        y_ptr + offset(table_ptr, segment, Y) + offsets, y, mask=row_ok[:, None] & inside[None, :]
    )
    if mean_ptr is not None:
        value = tl.where(row_ok[:, None], y.to(tl.float32), 0.0)
        count = tl.minimum(rows - tile * ROWS, ROWS).to(tl.float32)
        mean = tl.sum(value, 0) / count
        away = tl.where(row_ok[:, None], value - mean[None, :], 0.0)
        at = offset(table_ptr, segment, PARTIALS) + tile.to(tl.int64) * width + channel
        tl.store(mean_ptr + at, mean, mask=inside)
        tl.store(m2_ptr + at, tl.sum(away * away, 0), mask=inside)
