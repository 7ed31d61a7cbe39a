"""Convolutions of ragged candidates: `conv` and `dwconv`, with a prologue on load and an epilogue
on store.

Layouts, all contiguous, with channels last:

- activations `[images, height, width, padded(n)]`, stored raw (before batch norm); pad channels are
  exactly zero;
- weights `[taps, w_rows, w_columns]`: rows are input channels (of one group), columns are output
  channels. A candidate reads the first rows and columns, so one weight in order of importance
  serves every prefix of it;
- tables of scale and shift, partial statistics and bias: float32.

A launch covers every segment of its table. Results are the same bits in every run: no program adds
to another's result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.device.convolution import conv_kernel
from pruneopt.kernels.device.depthwise import depthwise_kernel
from pruneopt.kernels.launch import Launch, architecture, check_tensors
from pruneopt.kernels.operands import Epilogue, Output, Prologue
from pruneopt.kernels.segments import Segments
from pruneopt.kernels.tiles import Precision, Tile, conv_tile, depthwise_tile
from pruneopt.kernels.window import Window
from pruneopt.kernels.wiring import (
    activation_of,
    check_input,
    check_output,
    check_precision,
    epilogue_arguments,
    output_dtypes,
    prologue_arguments,
    row_tiles,
    size_arguments,
    upcast,
    window_constants,
)

__all__ = ["conv", "conv_launch", "dwconv", "dwconv_launch"]


def conv(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    groups: int = 1,
    precision: Precision = "ieee",
    tile: Tile | None = None,
) -> None:
    """`y = epilogue(conv2d(prologue(x), weight))`, zero padding applied after the prologue.

    Args:
        x: inputs of all segments, float32, float16 or bfloat16.
        weight: of the dtype of `x`, `[taps, w_rows, w_columns]` per candidate; rows are channels of
            one group.
        y: outputs, of the dtype of `x` or float32; written whole, pads included.
        segments: fields x, w, y, images, n_in, n_out, w_rows, w_columns, and those of the prologue
            and epilogue.
        window: the geometry that all segments share.
        prologue: on load; None reads `x` as it is.
        epilogue: `Partials` for batch-norm statistics of the stored values, `Output` for
            evaluation, or None.
        groups: equal shares of channels, in order.
        precision: of float32 products; `tf32` uses matrix units.
        tile: None takes the table's (`tiles.conv_tile`); statistics need its `rows` as their
            `tile_rows`.

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    conv_launch(
        x,
        weight,
        y,
        segments,
        window,
        prologue=prologue,
        epilogue=epilogue,
        groups=groups,
        precision=precision,
        tile=tile,
    ).run()


def conv_launch(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    groups: int = 1,
    precision: Precision = "ieee",
    tile: Tile | None = None,
) -> Launch:
    """Return the launch that `conv` runs; for the arguments see there."""
    prologue = prologue or Prologue()
    _check_shares(segments, groups)
    check_precision(precision)
    _check_residuals(prologue, epilogue)
    if prologue.materialised is not None and (groups > 1 or window.identity_tap is None):
        raise UserError(
            "this convolution does not read every pixel once, so it cannot write its input: use "
            "add_act"
        )
    widest = segments.largest("n_out")
    if tile is None:
        tile = conv_tile(
            widest, segments.largest("n_in"), x.dtype, architecture(x.device), precision, groups
        )
    check_input(x, segments, window.in_pixels, prologue)
    check_output(y, segments, window.out_pixels, epilogue, tile, output_dtypes(x))
    check_tensors(x.device, {"weight": (weight, (x.dtype,))})
    rows = segments.width("n_in") if groups == 1 else segments.column("n_in") // groups
    segments.check_weight(weight, window.taps, rows)
    # With groups, the last group's tiles reach over the pads: at most 15 channels after its own.
    share = int(segments.width("n_out").max()) if groups == 1 else widest // groups + 15
    return Launch(
        kernel=conv_kernel,
        grid=(
            row_tiles(segments, window.out_pixels, tile),
            groups * -(-share // tile.columns),
            len(segments),
        ),
        arguments={
            "x_ptr": x,
            "w_ptr": weight,
            "y_ptr": y,
            **prologue_arguments(prologue),
            **epilogue_arguments(epilogue),
            "table_ptr": segments.table,
            **size_arguments(window),
        },
        constants={
            **window_constants(window),
            "IN_ACT": prologue.activation,
            "OUT_ACT": activation_of(epilogue),
            "GROUPS": groups,
            "IDENTITY_TAP": window.identity_tap if prologue.materialised is not None else None,
            "PRECISION": precision,
            "UPCAST": upcast(conv_kernel, x.dtype),
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": tile.depth,
        },
        warps=tile.warps,
        stages=tile.stages,
    )


def dwconv(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    tile: Tile | None = None,
) -> None:
    """`y = epilogue(depthwise(prologue(x), weight))`: channel c of the output reads channel c of
    the input.

    Args:
        x: inputs of all segments, float32, float16 or bfloat16.
        weight: of the dtype of `x`, `[taps, w_rows, w_columns]` with `w_rows=1`; the channels are
            the columns.
        y: outputs, of the dtype of `x` or float32.
        segments: as for `conv`; n_in and n_out are the same.
        window: the geometry that all segments share.
        prologue: on load.
        epilogue: on store.
        tile: None takes the table's (`tiles.depthwise_tile`).

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    dwconv_launch(
        x, weight, y, segments, window, prologue=prologue, epilogue=epilogue, tile=tile
    ).run()


def dwconv_launch(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    tile: Tile | None = None,
) -> Launch:
    """Return the launch that `dwconv` runs; for the arguments see there."""
    prologue = prologue or Prologue()
    if not torch.equal(segments.column("n_in"), segments.column("n_out")):
        raise UserError(
            "a depthwise convolution has as many outputs as inputs: set n_in = n_out in every "
            "segment"
        )
    _check_residuals(prologue, epilogue)
    if prologue.materialised is not None and window.identity_tap is None:
        raise UserError(
            "this convolution does not read every pixel once, so it cannot write its input: use "
            "add_act"
        )
    if tile is None:
        tile = depthwise_tile(segments.largest("n_out"), architecture(x.device))
    check_input(x, segments, window.in_pixels, prologue)
    check_output(y, segments, window.out_pixels, epilogue, tile, output_dtypes(x))
    check_tensors(x.device, {"weight": (weight, (x.dtype,))})
    segments.check_weight(weight, window.taps, torch.ones_like(segments.column("n_in")))
    columns = -(-int(segments.width("n_out").max()) // tile.columns)
    return Launch(
        kernel=depthwise_kernel,
        grid=(row_tiles(segments, window.out_pixels, tile), columns, len(segments)),
        arguments={
            "x_ptr": x,
            "w_ptr": weight,
            "y_ptr": y,
            **prologue_arguments(prologue),
            **epilogue_arguments(epilogue),
            "table_ptr": segments.table,
            **size_arguments(window),
        },
        constants={
            **window_constants(window),
            "IN_ACT": prologue.activation,
            "OUT_ACT": activation_of(epilogue),
            "IDENTITY_TAP": window.identity_tap if prologue.materialised is not None else None,
            "BLOCK_M": tile.rows,
            "BLOCK_C": tile.columns,
        },
        warps=tile.warps,
        stages=tile.stages,
    )


def _check_residuals(prologue: Prologue, epilogue: Epilogue | None) -> None:
    """Refuse two residuals: a segment has one place for them."""
    if (
        prologue.residual is not None
        and isinstance(epilogue, Output)
        and epilogue.residual is not None
    ):
        raise UserError(
            "a convolution adds a residual before or after, not both: finish the input with "
            "add_act first"
        )


def _check_shares(segments: Segments, groups: int) -> None:
    if groups < 1 or bool(
        (segments.column("n_in") % groups + segments.column("n_out") % groups).any()
    ):
        raise UserError(
            f"groups={groups} does not divide the channels of every segment into equal shares"
        )
