"""From operands to a kernel's arguments: every buffer is checked against the segment table, then
named."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.launch import check_tensors, interpreted
from pruneopt.kernels.operands import Affine, Epilogue, Output, Partials, Prologue
from pruneopt.kernels.segments import Segments
from pruneopt.kernels.tiles import DTYPES, Tile
from pruneopt.kernels.window import Window

__all__ = [
    "FLOAT",
    "activation_of",
    "check_affine",
    "check_input",
    "check_output",
    "check_partials",
    "check_precision",
    "epilogue_arguments",
    "output_dtypes",
    "prologue_arguments",
    "row_tiles",
    "size_arguments",
    "upcast",
    "window_constants",
]

FLOAT = (torch.float32,)


def check_affine(affine: Affine, segments: Segments, table: str, name: str) -> None:
    """Scale and shift reach over the stored input channels of every segment."""
    device = segments.table.device
    check_tensors(
        device, {f"{name} scale": (affine.scale, FLOAT), f"{name} shift": (affine.shift, FLOAT)}
    )
    for part, tensor in (("scale", affine.scale), ("shift", affine.shift)):
        segments.check(f"{name} {part}", tensor, segments.column(table), segments.width("n_in"))


def check_input(x: Tensor, segments: Segments, pixels: int, prologue: Prologue) -> None:
    """Check the input and what its prologue reads and writes."""
    same = (x.dtype,)
    residual, materialised = prologue.residual, prologue.materialised
    operands = {
        "x": (x, DTYPES),
        "residual": (residual, same),
        "materialised": (materialised, same),
    }
    check_tensors(segments.table.device, operands)
    size = segments.column("images") * pixels * segments.width("n_in")
    segments.check("x", x, segments.column("x"), size)
    if residual is not None:
        segments.check("residual", residual, segments.column("residual"), size)
    if materialised is not None:
        segments.check("materialised", materialised, segments.column("materialised"), size)
    if prologue.affine is not None:
        check_affine(prologue.affine, segments, "in_table", "affine")
    if prologue.residual_affine is not None:
        check_affine(prologue.residual_affine, segments, "residual_table", "residual affine")


def check_output(
    y: Tensor,
    segments: Segments,
    pixels: int,
    epilogue: Epilogue | None,
    tile: Tile,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> None:
    """Check the output and what its epilogue reads and writes."""
    device = segments.table.device
    check_tensors(device, {"y": (y, dtypes)})
    size = segments.column("images") * pixels * segments.width("n_out")
    segments.check("y", y, segments.column("y"), size)
    if isinstance(epilogue, Output):
        check_tensors(
            device, {"bias": (epilogue.bias, FLOAT), "residual": (epilogue.residual, (y.dtype,))}
        )
        if epilogue.bias is not None:
            segments.check(
                "bias", epilogue.bias, segments.column("params"), segments.column("n_out")
            )
        if epilogue.residual is not None:
            segments.check("residual", epilogue.residual, segments.column("residual"), size)
    if isinstance(epilogue, Partials):
        if epilogue.tile_rows != tile.rows:
            raise UserError(
                f"the partial statistics are laid out for tiles of {epilogue.tile_rows} rows, not "
                f"{tile.rows}"
            )
        check_partials(epilogue, segments, pixels)


def check_partials(partials: Partials, segments: Segments, pixels: int) -> None:
    """Partial statistics of every tile of every segment lie inside their buffers."""
    check_tensors(
        segments.table.device,
        {"partial mean": (partials.mean, FLOAT), "partial m2": (partials.m2, FLOAT)},
    )
    rows = segments.column("images") * pixels
    size = (rows + partials.tile_rows - 1) // partials.tile_rows * segments.width("n_out")
    for name, tensor in (("partial mean", partials.mean), ("partial m2", partials.m2)):
        segments.check(name, tensor, segments.column("partials"), size)


def row_tiles(segments: Segments, pixels: int, tile: Tile) -> int:
    """Tiles of rows of the segment that has most."""
    return -(-segments.largest("images") * pixels // tile.rows)


def prologue_arguments(prologue: Prologue) -> dict[str, Tensor | None]:
    affine, other = prologue.affine, prologue.residual_affine
    return {
        "scale_ptr": affine.scale if affine else None,
        "shift_ptr": affine.shift if affine else None,
        "r_ptr": prologue.residual,
        "r_scale_ptr": other.scale if other else None,
        "r_shift_ptr": other.shift if other else None,
        "z_ptr": prologue.materialised,
    }


def epilogue_arguments(epilogue: Epilogue | None) -> dict[str, Tensor | None]:
    output = epilogue if isinstance(epilogue, Output) else None
    partials = epilogue if isinstance(epilogue, Partials) else None
    return {
        "bias_ptr": output.bias if output else None,
        "add_ptr": output.residual if output else None,
        "mean_ptr": partials.mean if partials else None,
        "m2_ptr": partials.m2 if partials else None,
    }


def size_arguments(window: Window) -> dict[str, int]:
    return {
        "height": window.height,
        "width": window.width,
        "out_height": window.out_height,
        "out_width": window.out_width,
    }


def window_constants(window: Window) -> dict[str, Any]:
    pairs = {
        ("KH", "KW"): window.kernel,
        ("STRIDE_H", "STRIDE_W"): window.stride,
        ("PAD_H", "PAD_W"): window.padding,
        ("DILATION_H", "DILATION_W"): window.dilation,
    }
    return {
        name: value
        for names, pair in pairs.items()
        for name, value in zip(names, pair, strict=True)
    }


def check_precision(precision: str) -> None:
    if precision not in ("ieee", "tf32"):
        raise UserError(f"precision {precision!r} is unknown: use ieee or tf32")


def output_dtypes(x: Tensor) -> tuple[torch.dtype, ...]:
    """Dtypes that the outputs of products of `x` may have."""
    return (x.dtype,) if x.dtype == torch.float32 else (x.dtype, torch.float32)


def activation_of(epilogue: Epilogue | None) -> str:
    """Return the activation at the end; statistics are of raw values."""
    return epilogue.activation if isinstance(epilogue, Output) else "identity"


def upcast(kernel: Any, dtype: torch.dtype) -> bool:
    """Tell whether operands become float32 first.

    The interpreter would multiply the bit patterns of bfloat16.
    """
    return dtype == torch.bfloat16 and interpreted(kernel)
