"""From partial statistics to batch norm: `finalize` per batch, and `pool` over all batches of a
candidate.

`finalize` gives what a batch norm in training mode uses: each segment by its own statistics. For
running statistics its means and (biased) variances are weighted afterwards, as `bn_statistics`
says. `pool` gives the statistics of all samples together, which is what the following layers then
see: layer by layer, without any order of batches.
"""

from __future__ import annotations

from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.device.finalize import finalize_kernel, pool_kernel
from pruneopt.kernels.launch import Launch, check_tensors
from pruneopt.kernels.operands import Affine, Partials
from pruneopt.kernels.segments import Pools, Segments
from pruneopt.kernels.wiring import FLOAT, check_partials

__all__ = ["finalize", "finalize_launch", "pool", "pool_launch"]

_CHANNELS = 32
_TILES = 32


def finalize(
    partials: Partials,
    mean: Tensor,
    variance: Tensor,
    segments: Segments,
    pixels: int,
    *,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    affine: Affine | None = None,
    eps: float = 1e-5,
) -> None:
    """Combine the tiles of every segment (Chan et al., 1979), and write the affine map that its
    batch norm is.

    Args:
        partials: as a convolution wrote them.
        mean: float32, per segment `[padded(n_out)]` from `out_table` on; written, zero for pads.
        variance: likewise, biased (divided by the number of values).
        segments: fields partials, out_table, params, images, n_out.
        pixels: of one output image, `window.out_pixels`.
        gamma: float32 weight of the batch norm, from `params` on; needed for `affine`.
        beta: float32 bias of the batch norm, likewise.
        affine: where scale and shift are written, from `out_table` on, zero for pads; None writes
            statistics only.
        eps: of the batch norm.

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    finalize_launch(
        partials, mean, variance, segments, pixels, gamma=gamma, beta=beta, affine=affine, eps=eps
    ).run()


def finalize_launch(
    partials: Partials,
    mean: Tensor,
    variance: Tensor,
    segments: Segments,
    pixels: int,
    *,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    affine: Affine | None = None,
    eps: float = 1e-5,
) -> Launch:
    """Return the launch that `finalize` runs; for the arguments see there."""
    if affine is not None and (gamma is None or beta is None):
        raise UserError("scale and shift are made of gamma and beta: give both, or ones and zeros")
    check_partials(partials, segments, pixels)
    width = segments.width("n_out")
    written = {"mean": mean, "variance": variance}
    if affine is not None:
        written |= {"scale": affine.scale, "shift": affine.shift}
        _check_parameters(gamma, beta, segments)
    check_tensors(
        segments.table.device, {name: (tensor, FLOAT) for name, tensor in written.items()}
    )
    for name, tensor in written.items():
        segments.check(name, tensor, segments.column("out_table"), width)
    return Launch(
        kernel=finalize_kernel,
        grid=(-(-int(width.max()) // _CHANNELS), len(segments), 1),
        arguments={
            "mean_ptr": partials.mean,
            "m2_ptr": partials.m2,
            "gamma_ptr": gamma if affine else None,
            "beta_ptr": beta if affine else None,
            "scale_ptr": affine.scale if affine else None,
            "shift_ptr": affine.shift if affine else None,
            "batch_mean_ptr": mean,
            "batch_var_ptr": variance,
            "table_ptr": segments.table,
            "pixels": pixels,
            "eps": float(eps),
        },
        constants={"TILE_ROWS": partials.tile_rows, "BLOCK_C": _CHANNELS, "BLOCK_T": _TILES},
        warps=4,
        stages=2,
    )


def pool(
    batch_mean: Tensor,
    batch_variance: Tensor,
    mean: Tensor,
    variance: Tensor,
    pools: Pools,
    pixels: int,
    *,
    gamma: Tensor,
    beta: Tensor,
    affine: Affine,
    eps: float = 1e-5,
) -> None:
    """Statistics of all samples of several segments, and the affine map of a batch norm that uses
    them.

    The pooled variance is that of the samples: it contains the variance of the batches' means.

    Args:
        batch_mean: of `finalize`, from each segment's `out_table` on.
        batch_variance: likewise, biased.
        mean: float32, per pool `[padded(n_out)]` from the pool's `out_table` on; written, zero for
            pads.
        variance: likewise, biased. Neither may overlap what is read.
        pools: which segments belong together.
        pixels: of one output image, `window.out_pixels`.
        gamma: float32 weight of the batch norm, from `params` on.
        beta: float32 bias of the batch norm, likewise.
        affine: where scale and shift are written, from the pool's `out_table` on.
        eps: of the batch norm.

    Raises:
        UserError: operands that do not fit each other, the table or the device.
    """
    pool_launch(
        batch_mean,
        batch_variance,
        mean,
        variance,
        pools,
        pixels,
        gamma=gamma,
        beta=beta,
        affine=affine,
        eps=eps,
    ).run()


def pool_launch(
    batch_mean: Tensor,
    batch_variance: Tensor,
    mean: Tensor,
    variance: Tensor,
    pools: Pools,
    pixels: int,
    *,
    gamma: Tensor,
    beta: Tensor,
    affine: Affine,
    eps: float = 1e-5,
) -> Launch:
    """Return the launch that `pool` runs; for the arguments see there."""
    segments = pools.segments
    read = {"batch mean": batch_mean, "batch variance": batch_variance}
    written = {"mean": mean, "variance": variance, "scale": affine.scale, "shift": affine.shift}
    check_tensors(
        segments.table.device, {name: (tensor, FLOAT) for name, tensor in (read | written).items()}
    )
    _check_parameters(gamma, beta, segments)
    width = segments.width("n_out")
    for name, tensor in read.items():
        segments.check(name, tensor, segments.column("out_table"), width)
    starts = pools.host[:, 2]
    for name, tensor in written.items():
        segments.check(name, tensor, starts, width[pools.host[:, 0]])
    return Launch(
        kernel=pool_kernel,
        grid=(-(-int(width.max()) // _CHANNELS), len(pools), 1),
        arguments={
            "batch_mean_ptr": batch_mean,
            "batch_var_ptr": batch_variance,
            "gamma_ptr": gamma,
            "beta_ptr": beta,
            "scale_ptr": affine.scale,
            "shift_ptr": affine.shift,
            "mean_ptr": mean,
            "var_ptr": variance,
            "table_ptr": segments.table,
            "pools_ptr": pools.table,
            "pixels": pixels,
            "eps": float(eps),
        },
        constants={"BLOCK_C": _CHANNELS},
        warps=1,
        stages=2,
    )


def _check_parameters(gamma: Tensor | None, beta: Tensor | None, segments: Segments) -> None:
    check_tensors(segments.table.device, {"gamma": (gamma, FLOAT), "beta": (beta, FLOAT)})
    for name, tensor in (("gamma", gamma), ("beta", beta)):
        if tensor is not None:
            segments.check(name, tensor, segments.column("params"), segments.column("n_out"))
