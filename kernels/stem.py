"""The first convolution of a network, from pictures of bytes: `stem`.

Its result is the same for every candidate that keeps the first layer, so compute it once and keep
it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.device.stem import stem_kernel
from pruneopt.kernels.launch import Launch, architecture, check_tensors
from pruneopt.kernels.operands import Affine, Epilogue
from pruneopt.kernels.segments import Segments
from pruneopt.kernels.tiles import DTYPES, Precision, Tile, stem_tile
from pruneopt.kernels.window import Window
from pruneopt.kernels.wiring import (
    FLOAT,
    activation_of,
    check_output,
    check_precision,
    epilogue_arguments,
    output_dtypes,
    row_tiles,
    size_arguments,
    upcast,
    window_constants,
)

__all__ = ["stem", "stem_launch"]


def stem(
    pictures: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    normalise: Affine,
    epilogue: Epilogue | None = None,
    precision: Precision = "ieee",
    tile: Tile | None = None,
) -> None:
    """`y = epilogue(conv2d(pictures * scale + shift, weight))`, zero padding applied after
    normalising.

    Args:
        pictures: uint8 `[pictures, height, width, colours]`; a segment begins at its field `image`.
        weight: as for `conv`, `[taps, w_rows, w_columns]`; the rows are colours. Its dtype is that
            of the products.
        y: outputs, of the dtype of `weight` or float32; written whole, pads included.
        segments: fields image, w, y, images, n_in (colours), n_out, w_rows, w_columns, and those of
            the epilogue.
        window: the geometry; its height and width are those of the pictures.
        normalise: scale and shift per colour, float32 `[colours]`: `1 / (255 std)` and `-mean /
            std`.
        epilogue: on store.
        precision: of float32 products.
        tile: None takes the table's (`tiles.stem_tile`).

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    stem_launch(
        pictures,
        weight,
        y,
        segments,
        window,
        normalise=normalise,
        epilogue=epilogue,
        precision=precision,
        tile=tile,
    ).run()


def stem_launch(
    pictures: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    normalise: Affine,
    epilogue: Epilogue | None = None,
    precision: Precision = "ieee",
    tile: Tile | None = None,
) -> Launch:
    """Return the launch that `stem` runs; for the arguments see there."""
    check_precision(precision)
    if tile is None:
        tile = stem_tile(segments.largest("n_out"), architecture(pictures.device))
    colours = _check_pictures(pictures, segments, window, normalise)
    check_tensors(pictures.device, {"weight": (weight, DTYPES)})
    check_output(y, segments, window.out_pixels, epilogue, tile, output_dtypes(weight))
    segments.check_weight(weight, window.taps, segments.column("n_in"))
    columns = -(-int(segments.width("n_out").max()) // tile.columns)
    return Launch(
        kernel=stem_kernel,
        grid=(row_tiles(segments, window.out_pixels, tile), columns, len(segments)),
        arguments={
            "x_ptr": pictures,
            "w_ptr": weight,
            "y_ptr": y,
            "scale_ptr": normalise.scale,
            "shift_ptr": normalise.shift,
            **epilogue_arguments(epilogue),
            "table_ptr": segments.table,
            **size_arguments(window),
        },
        constants={
            **window_constants(window),
            "OUT_ACT": activation_of(epilogue),
            "CHANNELS": colours,
            "PRECISION": precision,
            "UPCAST": upcast(stem_kernel, weight.dtype),
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": tile.depth,
        },
        warps=tile.warps,
        stages=tile.stages,
    )


def _check_pictures(pictures: Tensor, segments: Segments, window: Window, normalise: Affine) -> int:
    """Pictures fit the window and the table; the number of colours."""
    check_tensors(
        segments.table.device,
        {
            "pictures": (pictures, (torch.uint8,)),
            "scale": (normalise.scale, FLOAT),
            "shift": (normalise.shift, FLOAT),
        },
    )
    if pictures.dim() != 4 or tuple(pictures.shape[1:3]) != (window.height, window.width):
        wanted = f"[pictures, {window.height}, {window.width}, colours]"
        raise UserError(
            f"pictures of shape {list(pictures.shape)} do not fit the window: give them as {wanted}"
        )
    colours = pictures.shape[3]
    if bool((segments.column("n_in") != colours).any()):
        raise UserError(f"the pictures have {colours} colours: set n_in={colours} in every segment")
    if normalise.scale.shape != (colours,) or normalise.shift.shape != (colours,):
        raise UserError(f"scale and shift must have one number for each of the {colours} colours")
    size = window.in_pixels * colours
    segments.check(
        "pictures", pictures, segments.column("image") * size, segments.column("images") * size
    )
    return colours
