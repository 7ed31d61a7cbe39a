"""The end of a network: the mean over an image's pixels, and the scores of logits."""

from pruneopt.kernels.device.common import (
    FIELDS,
    IMAGE,
    IMAGES,
    IN_TABLE,
    N_IN,
    N_OUT,
    OUT_TABLE,
    RESIDUAL,
    RESIDUAL_TABLE,
    X,
    Y,
    number,
    offset,
    read_input,
    stored,
)
from pruneopt.kernels.device.language import tl, triton


@triton.jit(do_not_specialize=("pixels",))
def mean_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    r_ptr,
    r_scale_ptr,
    r_shift_ptr,
    y_ptr,
    table_ptr,
    pixels,
    IN_ACT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Programs: images, blocks of channels, segments."""
    image = tl.program_id(0)
    segment = tl.program_id(2)
    width = stored(number(table_ptr, segment, N_IN))
    if (tl.program_id(1) * BLOCK_C < width) & (image < number(table_ptr, segment, IMAGES)):
        channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        channel_ok = channel < width
        total = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, pixels, BLOCK_P):
            pixel = start + tl.arange(0, BLOCK_P)
            inside = (pixel < pixels)[:, None] & channel_ok[None, :]
            x = read_input(
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
                (image * pixels + pixel)[:, None] * width + channel[None, :],
                inside,
                channel,
                channel_ok,
                IN_ACT,
            )
            total += tl.sum(x.to(tl.float32), 0)
        at = y_ptr + offset(table_ptr, segment, Y) + image * width + channel
        tl.store(at, (total / pixels).to(y_ptr.dtype.element_ty), mask=channel_ok)


@triton.jit
def _log_sum_exp(values, ok):
    """Per row, in float32; NaN where a value is."""
    top = tl.max(tl.where(ok, values, float("-inf")), 1)
    return top + tl.log(tl.sum(tl.where(ok, tl.exp(values - top[:, None]), 0.0), 1)), top


@triton.jit(do_not_specialize=("teacher_stride",))
def score_kernel(
    logits_ptr,
    labels_ptr,
    teacher_ptr,
    correct_ptr,
    likelihood_ptr,
    divergence_ptr,
    table_ptr,
    teacher_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Programs: blocks of images, segments. A row of logits fits one block."""
    segment = tl.program_id(1)
    images = number(table_ptr, segment, IMAGES)
    classes = number(table_ptr, segment, N_OUT)
    if tl.program_id(0) * BLOCK_M < images:
        image = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        image_ok = image < images
        column = tl.arange(0, BLOCK_N)
        ok = image_ok[:, None] & (column < classes)[None, :]
        base = logits_ptr + offset(table_ptr, segment, Y)
        logits = tl.load(
            base + image[:, None] * stored(classes) + column[None, :], mask=ok, other=0.0
        ).to(tl.float32)
        total, top = _log_sum_exp(logits, ok)
        at = tl.load(table_ptr + segment * FIELDS + IMAGE) + image
        label = tl.load(labels_ptr + at, mask=image_ok, other=0)
        chosen = tl.sum(tl.where(ok & (column[None, :] == label[:, None]), logits, 0.0), 1)
        likelihood = chosen - total
        # The first of equal logits is the answer, as in torch; a row with NaN has none.
        answer = tl.min(tl.where(ok & (logits == top[:, None]), column[None, :], BLOCK_N), 1)
        correct = (answer == label) & (likelihood == likelihood)
        out = offset(table_ptr, segment, OUT_TABLE) + image
        tl.store(correct_ptr + out, correct.to(tl.int32), mask=image_ok)
        tl.store(likelihood_ptr + out, likelihood, mask=image_ok)
        if teacher_ptr is not None:
            source = teacher_ptr + at[:, None] * teacher_stride + column[None, :]
            teacher = tl.load(source, mask=ok, other=0.0).to(tl.float32)
            teacher_total, _ = _log_sum_exp(teacher, ok)
            log_p = teacher - teacher_total[:, None]
            gap = log_p - (logits - total[:, None])
            tl.store(
                divergence_ptr + out,
                tl.sum(tl.where(ok, tl.exp(log_p) * gap, 0.0), 1),
                mask=image_ok,
            )


@triton.jit
def total_kernel(
    correct_ptr,
    likelihood_ptr,
    divergence_ptr,
    correct_sum_ptr,
    likelihood_sum_ptr,
    divergence_sum_ptr,
    table_ptr,
    BLOCK: tl.constexpr,
):
    """Programs: segments. One program adds in a fixed order, so the sums are the same bits in every
    run."""
    segment = tl.program_id(0)
    images = number(table_ptr, segment, IMAGES)
    base = offset(table_ptr, segment, OUT_TABLE)
    right = tl.zeros((BLOCK,), tl.int32)
    likelihood = tl.zeros((BLOCK,), tl.float64)
    divergence = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, images, BLOCK):
        image = start + tl.arange(0, BLOCK)
        ok = image < images
        right += tl.load(correct_ptr + base + image, mask=ok, other=0)
        likelihood += tl.load(likelihood_ptr + base + image, mask=ok, other=0.0).to(tl.float64)
        if divergence_ptr is not None:
            divergence += tl.load(divergence_ptr + base + image, mask=ok, other=0.0).to(tl.float64)
    tl.store(correct_sum_ptr + segment, tl.sum(right, 0))
    tl.store(likelihood_sum_ptr + segment, tl.sum(likelihood, 0))
    if divergence_ptr is not None:
        tl.store(divergence_sum_ptr + segment, tl.sum(divergence, 0))
