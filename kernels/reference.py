"""Every kernel in plain PyTorch, on the same buffers and tables, on any device and also in float64.

These are what the kernels are tested against, and what computes where there is no GPU. They are
written for reading: one segment after another, each as the operation that PyTorch has for it. Sums
are in float32, or in float64 where the tensors are. Arguments are those of the kernels; buffers
must be contiguous, and written ones are written in place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pruneopt.kernels.library import ACTIVATIONS
from pruneopt.kernels.operands import Affine, Epilogue, Output, Partials, Prologue, Scores, tiles
from pruneopt.kernels.segments import Pools, Segment, Segments, padded
from pruneopt.kernels.window import POINT, Window

__all__ = [
    "add_act",
    "conv",
    "dwconv",
    "finalize",
    "head",
    "mean_pixels",
    "pack",
    "pool",
    "score",
    "stem",
]


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
) -> None:
    """Compute as `convolution.conv`."""
    for segment in segments.segments:
        pixels = _input(x, segment, window.in_pixels, prologue or Prologue())
        kernel = _weight(weight, segment, window, segment.n_in // groups)
        _convolve(pixels, kernel, y, segment, window, groups, epilogue)


def dwconv(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
) -> None:
    """Compute as `convolution.dwconv`."""
    for segment in segments.segments:
        pixels = _input(x, segment, window.in_pixels, prologue or Prologue())
        _convolve(
            pixels, _weight(weight, segment, window, 1), y, segment, window, segment.n_in, epilogue
        )


def stem(
    pictures: Tensor,
    weight: Tensor,
    y: Tensor,
    segments: Segments,
    window: Window,
    *,
    normalise: Affine,
    epilogue: Epilogue | None = None,
) -> None:
    """Compute as `stem.stem`."""
    for segment in segments.segments:
        chosen = pictures[segment.image : segment.image + segment.images]
        pixels = (chosen.to(_wide(weight)) * normalise.scale + normalise.shift).flatten(1, 2)
        _convolve(
            pixels, _weight(weight, segment, window, segment.n_in), y, segment, window, 1, epilogue
        )


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
    """Compute as `statistics.finalize`."""
    for segment in segments.segments:
        rows = segment.images * pixels
        shape = (tiles(segment.images, pixels, partials.tile_rows), padded(segment.n_out))
        means, squares = (
            _part(part, segment.partials, shape) for part in (partials.mean, partials.m2)
        )
        starts = torch.arange(shape[0], device=means.device) * partials.tile_rows
        counts = (rows - starts).clamp(max=partials.tile_rows).to(means)[:, None]
        average = (means * counts).sum(0) / rows
        spread = (squares + (means - average).square() * counts).sum(0) / rows
        _write_statistics(mean, variance, segment.out_table, average, spread)
        if affine is not None and gamma is not None and beta is not None:
            _write_affine(affine, segment.out_table, average, spread, segment, gamma, beta, eps)


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
    """Compute as `statistics.pool`."""
    for item in pools.pools:
        part = pools.segments.segments[item.first : item.first + item.count]
        width = (padded(part[0].n_out),)
        means = torch.stack([_part(batch_mean, segment.out_table, width) for segment in part])
        variances = torch.stack(
            [_part(batch_variance, segment.out_table, width) for segment in part]
        )
        counts = torch.tensor([segment.images * pixels for segment in part]).to(means)[:, None]
        average = (means * counts).sum(0) / counts.sum()
        spread = ((variances + (means - average).square()) * counts).sum(0) / counts.sum()
        _write_statistics(mean, variance, item.out_table, average, spread)
        _write_affine(affine, item.out_table, average, spread, part[0], gamma, beta, eps)


def add_act(x: Tensor, segments: Segments, pixels: int, prologue: Prologue) -> None:
    """Compute as `elementwise.add_act`."""
    for segment in segments.segments:
        _input(x, segment, pixels, prologue)


def pack(weight: Tensor, keep_out: Tensor, keep_in: Tensor, packed: Tensor) -> None:
    """Compute as `elementwise.pack`."""
    packed.zero_()
    taps = weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
    groups = keep_in[None] if keep_in.dim() == 1 else keep_in
    for group, outputs in enumerate(keep_out.chunk(len(groups))):
        first = group * len(outputs)
        gathered = taps[outputs.to(taps.device)][:, groups[group].to(taps.device)]
        packed[:, : groups.shape[1], first : first + len(outputs)] = gathered.permute(2, 1, 0)


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
) -> None:
    """Compute as `head.head`."""
    first, second = segments
    mean_pixels(x, pooled, first, pixels, prologue=prologue)
    conv(pooled, weight, logits, second, POINT, epilogue=Output(bias))
    score(logits, labels, scores, second, teacher=teacher)


def mean_pixels(
    x: Tensor, y: Tensor, segments: Segments, pixels: int, *, prologue: Prologue | None = None
) -> None:
    """Compute as `head.mean_pixels`."""
    for segment in segments.segments:
        mean = _input(x, segment, pixels, prologue or Prologue()).mean(1)
        _part(y, segment.y, (segment.images, padded(segment.n_in))).copy_(mean)


def score(
    logits: Tensor,
    labels: Tensor,
    scores: Scores,
    segments: Segments,
    *,
    teacher: Tensor | None = None,
) -> None:
    """Compute as `head.score`."""
    for index, segment in enumerate(segments.segments):
        rows = _part(logits, segment.y, (segment.images, padded(segment.n_out)))[
            :, : segment.n_out
        ].to(_wide(logits))
        chosen = labels[segment.image : segment.image + segment.images]
        likelihood = -functional.cross_entropy(rows, chosen, reduction="none")
        correct = (rows.argmax(1) == chosen) & ~likelihood.isnan()
        where = (segment.images,)
        _part(scores.correct, segment.out_table, where).copy_(correct)
        _part(scores.likelihood, segment.out_table, where).copy_(likelihood)
        scores.correct_sum[index] = correct.sum()
        scores.likelihood_sum[index] = likelihood.double().sum()
        if (
            teacher is not None
            and scores.divergence is not None
            and scores.divergence_sum is not None
        ):
            taught = teacher[segment.image : segment.image + segment.images].to(rows).log_softmax(1)
            divergence = functional.kl_div(
                rows.log_softmax(1), taught, reduction="none", log_target=True
            ).sum(1)
            _part(scores.divergence, segment.out_table, where).copy_(divergence)
            scores.divergence_sum[index] = divergence.double().sum()


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype that sums are taken in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _part(buffer: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    """Return a segment's part of a buffer, as a view."""
    size = torch.Size(shape).numel()
    return buffer.view(-1)[start : start + size].view(shape)


def _affine(x: Tensor, affine: Affine | None, start: int) -> Tensor:
    if affine is None:
        return x
    width = (x.shape[-1],)
    return x * _part(affine.scale, start, width) + _part(affine.shift, start, width)


def _input(x: Tensor, segment: Segment, pixels: int, prologue: Prologue) -> Tensor:
    """Return the finished input `[images, pixels, padded(n_in)]`, and write it if that is asked."""
    shape = (segment.images, pixels, padded(segment.n_in))
    value = _affine(_part(x, segment.x, shape).to(_wide(x)), prologue.affine, segment.in_table)
    if prologue.residual is not None:
        other = _part(prologue.residual, segment.residual, shape).to(value)
        value = value + _affine(other, prologue.residual_affine, segment.residual_table)
    value = ACTIVATIONS[prologue.activation](value)
    if prologue.materialised is not None:
        _part(prologue.materialised, segment.materialised, shape).copy_(value)
    return value


def _weight(weight: Tensor, segment: Segment, window: Window, n_in: int) -> Tensor:
    """Return a candidate's weight as PyTorch has it, `[n_out, n_in, height, width]`."""
    stored = _part(weight, segment.w, (window.taps, segment.w_rows, segment.w_columns))
    chosen = stored[:, :n_in, : segment.n_out].permute(2, 1, 0)
    return chosen.reshape(segment.n_out, n_in, *window.kernel).to(_wide(weight))


def _convolve(
    pixels: Tensor,
    kernel: Tensor,
    y: Tensor,
    segment: Segment,
    window: Window,
    groups: int,
    epilogue: Epilogue | None,
) -> None:
    """Convolve one segment, from finished inputs `[images, pixels, at least n_in]`, and finish."""
    images = (
        pixels[..., : segment.n_in].unflatten(1, (window.height, window.width)).permute(0, 3, 1, 2)
    )
    made = functional.conv2d(
        images, kernel, None, window.stride, window.padding, window.dilation, groups
    )
    rows = made.permute(0, 2, 3, 1).flatten(0, 2)
    shape = (len(rows), padded(segment.n_out))
    if isinstance(epilogue, Output):
        if epilogue.bias is not None:
            rows = rows + _part(epilogue.bias, segment.params, (segment.n_out,))
        if epilogue.residual is not None:
            rows = rows + _part(epilogue.residual, segment.residual, shape)[:, : segment.n_out]
        rows = ACTIVATIONS[epilogue.activation](rows)
    stored = _part(y, segment.y, shape)
    stored.copy_(functional.pad(rows, (0, shape[1] - segment.n_out)))
    if isinstance(epilogue, Partials):
        count = tiles(1, len(rows), epilogue.tile_rows)
        mean, m2 = (
            _part(part, segment.partials, (count, shape[1]))
            for part in (epilogue.mean, epilogue.m2)
        )
        for index, tile in enumerate(stored.to(_wide(y)).split(epilogue.tile_rows)):
            mean[index] = tile.mean(0)
            m2[index] = (tile - tile.mean(0)).square().sum(0)


def _write_statistics(
    mean: Tensor, variance: Tensor, start: int, average: Tensor, spread: Tensor
) -> None:
    _part(mean, start, tuple(average.shape)).copy_(average)
    _part(variance, start, tuple(spread.shape)).copy_(spread)


def _write_affine(
    affine: Affine,
    start: int,
    average: Tensor,
    spread: Tensor,
    segment: Segment,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
) -> None:
    """Scale and shift of a batch norm with these statistics, zero for pads."""
    width, n = (len(average),), segment.n_out
    scale, shift = (_part(part, start, width).zero_() for part in (affine.scale, affine.shift))
    scale[:n] = _part(gamma, segment.params, (n,)) / (spread[:n] + eps).sqrt()
    shift[:n] = _part(beta, segment.params, (n,)) - average[:n] * scale[:n]
