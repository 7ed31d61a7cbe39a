"""The end of a network: `mean_pixels`, the linear layer by `conv` over one pixel, `score`; `head`
is all three.

Scores are per image first: two candidates are compared on the same images, and stages of a race add
to each other. The sums are taken by one program per segment, so they are the same bits in every
run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.convolution import conv
from pruneopt.kernels.device.head import mean_kernel, score_kernel, total_kernel
from pruneopt.kernels.launch import Launch, architecture, check_tensors
from pruneopt.kernels.operands import Output, Prologue, Scores
from pruneopt.kernels.segments import Segments
from pruneopt.kernels.tiles import DTYPES, Precision, Tile, elementwise_tile
from pruneopt.kernels.window import POINT
from pruneopt.kernels.wiring import FLOAT, check_input, output_dtypes, prologue_arguments

__all__ = ["head", "mean_pixels", "mean_pixels_launch", "score", "score_launches"]

_LARGEST = 16384
"""Most classes whose logits one program holds."""


def head(
    x: Tensor,
    pixels: int,
    weight: Tensor,
    bias: Tensor | None,
    pooled: Tensor,
    logits: Tensor,
    labels: Tensor,
    scores: Scores,
    segments: tuple[Segments, Segments],
    *,
    prologue: Prologue | None = None,
    teacher: Tensor | None = None,
    precision: Precision = "ieee",
) -> None:
    """`score(linear(mean over pixels(prologue(x))))`: four small launches, for the arguments see
    the parts.

    Args:
        x: the last activation, as for `mean_pixels`.
        pixels: of one image.
        weight: of the linear layer, `[1, w_rows, w_columns]` per candidate, of the dtype of `x`.
        bias: of the linear layer, float32, from `params` on.
        pooled: of the dtype of `x`, `[images, padded(n_in)]` per segment; written.
        logits: float32, `[images, padded(classes)]` per segment; written.
        labels: as for `score`.
        scores: written.
        segments: those of `mean_pixels` (x to pooled) and those of the linear layer and `score`
            (pooled to logits).
        prologue: of `x`.
        teacher: as for `score`.
        precision: of float32 products.

    Raises:
        UserError: operands that do not fit each other, the tables or the device.
    """
    first, second = segments
    mean_pixels(x, pooled, first, pixels, prologue=prologue)
    conv(pooled, weight, logits, second, POINT, epilogue=Output(bias), precision=precision)
    score(logits, labels, scores, second, teacher=teacher)


def mean_pixels(
    x: Tensor, y: Tensor, segments: Segments, pixels: int, *, prologue: Prologue | None = None
) -> None:
    """`y = mean over an image's pixels of prologue(x)`.

    Args:
        x: float32, float16 or bfloat16, `[images, pixels, padded(n_in)]` per segment.
        y: of the dtype of `x` or float32, `[images, padded(n_in)]` per segment, from `y` on;
            written, pads included.
        segments: fields x, y, images, n_in, and those of the prologue; n_in and n_out are the same.
        pixels: of one image.
        prologue: on load; it cannot write its input here.

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    mean_pixels_launch(x, y, segments, pixels, prologue=prologue).run()


def mean_pixels_launch(
    x: Tensor,
    y: Tensor,
    segments: Segments,
    pixels: int,
    *,
    prologue: Prologue | None = None,
    tile: Tile | None = None,
) -> Launch:
    """Return the launch that `mean_pixels` runs; for the arguments see there."""
    prologue = prologue or Prologue()
    if prologue.materialised is not None:
        raise UserError("mean_pixels does not write its input: use add_act")
    if not torch.equal(segments.column("n_in"), segments.column("n_out")):
        raise UserError(
            "a mean over pixels has as many outputs as inputs: set n_in = n_out in every segment"
        )
    check_input(x, segments, pixels, prologue)
    check_tensors(segments.table.device, {"y": (y, output_dtypes(x))})
    width = segments.width("n_in")
    segments.check("y", y, segments.column("y"), segments.column("images") * width)
    if tile is None:
        tile = elementwise_tile(segments.largest("n_in"), architecture(x.device))
    reads = {name: value for name, value in prologue_arguments(prologue).items() if name != "z_ptr"}
    return Launch(
        kernel=mean_kernel,
        grid=(segments.largest("images"), -(-int(width.max()) // tile.columns), len(segments)),
        arguments={"x_ptr": x, **reads, "y_ptr": y, "table_ptr": segments.table, "pixels": pixels},
        constants={"IN_ACT": prologue.activation, "BLOCK_P": tile.rows, "BLOCK_C": tile.columns},
        warps=tile.warps,
        stages=tile.stages,
    )


def score(
    logits: Tensor,
    labels: Tensor,
    scores: Scores,
    segments: Segments,
    *,
    teacher: Tensor | None = None,
) -> None:
    """Count right answers and add log-likelihoods, and divergences from a teacher.

    Args:
        logits: float32, float16 or bfloat16, `[images, padded(classes)]` per segment, from `y` on.
        labels: int64 `[images of the data set]`; a segment's begin at its `image`.
        scores: written; entries of images that no segment has stay as they are.
        segments: fields y, n_out (classes), image, images, out_table.
        teacher: logits of the original network, `[images of the data set, classes]`, or None.

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    for launch in score_launches(logits, labels, scores, segments, teacher=teacher):
        launch.run()


def score_launches(
    logits: Tensor,
    labels: Tensor,
    scores: Scores,
    segments: Segments,
    *,
    teacher: Tensor | None = None,
) -> tuple[Launch, Launch]:
    """Return what `score` launches, per image and the sums; for the arguments see there."""
    _check_scores(logits, labels, scores, segments, teacher)
    classes = segments.largest("n_out")
    block = 16
    while block < classes:
        block *= 2
    rows = max(1, min(16, 4096 // block))
    per_image: dict[str, Tensor | int | float | None] = {
        "correct_ptr": scores.correct,
        "likelihood_ptr": scores.likelihood,
        "divergence_ptr": scores.divergence,
    }
    sums: dict[str, Tensor | int | float | None] = {
        "correct_sum_ptr": scores.correct_sum,
        "likelihood_sum_ptr": scores.likelihood_sum,
        "divergence_sum_ptr": scores.divergence_sum,
    }
    each = Launch(
        kernel=score_kernel,
        grid=(-(-segments.largest("images") // rows), len(segments), 1),
        arguments={
            "logits_ptr": logits,
            "labels_ptr": labels,
            "teacher_ptr": teacher,
            **per_image,
            "table_ptr": segments.table,
            "teacher_stride": 0 if teacher is None else teacher.shape[1],
        },
        constants={"BLOCK_M": rows, "BLOCK_N": block},
        warps=4,
        stages=1,
    )
    total = Launch(
        kernel=total_kernel,
        grid=(len(segments), 1, 1),
        arguments={**per_image, **sums, "table_ptr": segments.table},
        constants={"BLOCK": 256},
        warps=4,
        stages=1,
    )
    return each, total


def _check_scores(
    logits: Tensor, labels: Tensor, scores: Scores, segments: Segments, teacher: Tensor | None
) -> None:
    device = segments.table.device
    images, starts = segments.column("images"), segments.column("image")
    integer, double = (torch.int32,), (torch.float64,)
    check_tensors(
        device,
        {
            "logits": (logits, DTYPES),
            "labels": (labels, (torch.int64,)),
            "teacher": (teacher, DTYPES),
            "correct": (scores.correct, integer),
            "likelihood": (scores.likelihood, FLOAT),
            "divergence": (scores.divergence, FLOAT),
            "correct_sum": (scores.correct_sum, integer),
            "likelihood_sum": (scores.likelihood_sum, double),
            "divergence_sum": (scores.divergence_sum, double),
        },
    )
    classes = segments.largest("n_out")
    if classes > _LARGEST:
        raise UserError(f"{classes} classes are too many: the limit is {_LARGEST}")
    if (teacher is None) != (scores.divergence is None) or (teacher is None) != (
        scores.divergence_sum is None
    ):
        raise UserError(
            "a teacher, divergence and divergence_sum belong together: give all three or none"
        )
    if teacher is not None:
        if teacher.dim() != 2 or bool((segments.column("n_out") != teacher.shape[1]).any()):
            raise UserError(
                f"teacher logits of shape {list(teacher.shape)} do not fit {classes} classes"
            )
        segments.check("teacher", teacher, starts * classes, images * classes)
    segments.check("logits", logits, segments.column("y"), images * segments.width("n_out"))
    segments.check("labels", labels, starts, images)
    for name in ("correct", "likelihood", "divergence"):
        each, total = getattr(scores, name), getattr(scores, f"{name}_sum")
        if each is not None:
            segments.check(name, each, segments.column("out_table"), images)
        if total is not None and total.numel() < len(segments):
            raise UserError(f"{name}_sum has {total.numel()} numbers for {len(segments)} segments")
