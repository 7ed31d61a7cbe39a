"""Kernels around the convolutions: `add_act` finishes an activation, `pack` gathers a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.device.elementwise import add_act_kernel, pack_kernel
from pruneopt.kernels.launch import Launch, architecture, check_tensors
from pruneopt.kernels.operands import Prologue
from pruneopt.kernels.segments import ALIGNMENT, LIMIT, Segments
from pruneopt.kernels.tiles import DTYPES, Tile, elementwise_tile
from pruneopt.kernels.wiring import check_input, prologue_arguments, row_tiles

__all__ = ["add_act", "add_act_launch", "pack", "pack_launch"]

_INPUTS, _OUTPUTS = 32, 64


def add_act(
    x: Tensor, segments: Segments, pixels: int, prologue: Prologue, *, tile: Tile | None = None
) -> None:
    """`materialised = activation(affine(x) + residual_affine(residual))`, written out for several
    readers.

    The same fields of a segment say where things lie as for a convolution that writes its input.

    Args:
        x: inputs of all segments, float32, float16 or bfloat16, `[images, pixels, padded(n_in)]`
            per segment.
        segments: fields x, in_table, residual, residual_table, materialised, images, n_in.
        pixels: of one image.
        prologue: what is done; `materialised` must be given, of the dtype of `x`.
        tile: None takes the table's (`tiles.elementwise_tile`).

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    add_act_launch(x, segments, pixels, prologue, tile=tile).run()


def add_act_launch(
    x: Tensor, segments: Segments, pixels: int, prologue: Prologue, *, tile: Tile | None = None
) -> Launch:
    """Return the launch that `add_act` runs; for the arguments see there."""
    if prologue.materialised is None:
        raise UserError("add_act has nowhere to write: give the prologue's materialised")
    check_input(x, segments, pixels, prologue)
    if tile is None:
        tile = elementwise_tile(segments.largest("n_in"), architecture(x.device))
    columns = -(-int(segments.width("n_in").max()) // tile.columns)
    return Launch(
        kernel=add_act_kernel,
        grid=(row_tiles(segments, pixels, tile), columns, len(segments)),
        arguments={
            "x_ptr": x,
            **prologue_arguments(prologue),
            "table_ptr": segments.table,
            "pixels": pixels,
        },
        constants={"IN_ACT": prologue.activation, "BLOCK_M": tile.rows, "BLOCK_C": tile.columns},
        warps=tile.warps,
        stages=tile.stages,
    )


def pack(weight: Tensor, keep_out: Tensor, keep_in: Tensor, packed: Tensor) -> None:
    """Gather a convolution's weight into the kernels' layout, in the order of the indices, zero
    elsewhere.

    With all channels in order of importance this is done once, and every prefix is a view of it.
    With an arbitrary subset it is done for every candidate.

    Args:
        weight: `[out, in, ...taps]`, contiguous, as PyTorch has it (`in` counts channels of one
            group).
        keep_out: which outputs, int64 `[n_out]` on the host.
        keep_in: which inputs, int64 `[n_in]` on the host; or `[groups, n_in]`, where every group
            keeps its own, and the outputs are that many equal shares.
        packed: `[taps, rows, columns]`, any of the kernels' dtypes; written whole. Rows and columns
            are multiples of 16 (`padded`), or for a depthwise weight (`in` is 1) rows may be 1.

    Raises:
        UserError: indices or shapes that do not fit.
    """
    pack_launch(weight, keep_out, keep_in, packed).run()


def pack_launch(weight: Tensor, keep_out: Tensor, keep_in: Tensor, packed: Tensor) -> Launch:
    """Return the launch that `pack` runs; for the arguments see there."""
    check_tensors(packed.device, {"weight": (weight, DTYPES), "packed": (packed, DTYPES)})
    groups, n_in = (1, len(keep_in)) if keep_in.dim() == 1 else (keep_in.shape[0], keep_in.shape[1])
    _check_packing(weight, keep_out, keep_in, packed)
    _, rows, columns = packed.shape
    if groups < 1 or len(keep_out) % groups:
        raise UserError(f"{len(keep_out)} outputs are not {groups} equal shares")
    _check_indices("keep_out", keep_out, weight.shape[0])
    _check_indices("keep_in", keep_in, weight.shape[1])
    taps = packed.shape[0]
    return Launch(
        kernel=pack_kernel,
        grid=(-(-rows // _INPUTS), -(-columns // _OUTPUTS), taps),
        arguments={
            "source_ptr": weight,
            "keep_out_ptr": keep_out.to(weight.device),
            "keep_in_ptr": keep_in.contiguous().to(weight.device),
            "packed_ptr": packed,
            "n_in": n_in,
            "n_out": len(keep_out),
            "all_in": weight.shape[1],
            "taps": taps,
            "share": len(keep_out) // groups,
            "rows": rows,
            "columns": columns,
        },
        constants={"BLOCK_I": _INPUTS, "BLOCK_O": _OUTPUTS},
        warps=4,
        stages=1,
    )


def _check_packing(weight: Tensor, keep_out: Tensor, keep_in: Tensor, packed: Tensor) -> None:
    """Ranks and sizes of a weight, its indices and its packed form."""
    if weight.dim() < 2 or packed.dim() != 3 or keep_out.dim() != 1 or keep_in.dim() not in (1, 2):
        raise UserError(
            "pack takes a weight [out, in, ...], indices [n_out] and [n_in] or [groups, n_in], and "
            "3 axes"
        )
    taps, rows, columns = packed.shape
    if taps != weight[0, 0].numel():
        raise UserError(
            f"a weight with {weight[0, 0].numel()} taps does not fit packed of shape "
            f"{list(packed.shape)}"
        )
    if (
        rows < keep_in.shape[-1]
        or columns < len(keep_out)
        or columns % ALIGNMENT
        or (rows % ALIGNMENT and rows != 1)
    ):
        raise UserError(
            f"{keep_in.shape[-1]} inputs and {len(keep_out)} outputs do not fit packed of shape "
            f"{list(packed.shape)}: "
            f"round both up to multiples of {ALIGNMENT}"
        )
    if weight.numel() >= LIMIT or packed.numel() >= LIMIT:
        raise UserError(
            f"a weight of {weight.numel()} elements is too large: the limit is {LIMIT - 1}"
        )


def _check_indices(name: str, index: Tensor, size: int) -> None:
    if index.dtype != torch.int64 or index.device.type != "cpu" or index.numel() == 0:
        raise UserError(f"{name} must be int64 indices on the host, and not empty")
    if int(index.min()) < 0 or int(index.max()) >= size:
        raise UserError(
            f"{name} reaches from {int(index.min())} to {int(index.max())}, outside 0 to {size - 1}"
        )
