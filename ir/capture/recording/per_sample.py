"""Calls that treat every sample of a batch by itself, whatever the size of the batch.

A tensor is *batched* if its first dimension holds one entry for each sample. A call of this table
takes batched tensors to batched tensors, and the other dimensions of its result do not depend on
the number of samples. A network that makes only such calls, and that never looks at a size, makes
the same calls at any batch size: one run tells what three would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_samplewise"]

aten = torch.ops.aten
Batched = Callable[[Tensor], bool]


def is_samplewise(target: Any, args: tuple[Any, ...], batched: Batched) -> bool:
    """Tell whether a call gives a batched tensor at any batch size.

    ``args`` are all its arguments, by position.
    """
    rule = _RULES.get(target)
    return rule is not None and rule(batched, *args)


def _first(batched: Batched, input: Tensor, *settings: Any) -> bool:
    """Check that the first operand alone has samples; the others are weights and settings."""
    return batched(input) and not any(
        isinstance(item, Tensor) and batched(item) for item in settings
    )


def _of_rank(rank: int) -> Callable[..., bool]:
    """Refuse tensors of one dimension less, which layers over space take without a batch."""
    return lambda batched, input, *settings: (
        input.dim() == rank and _first(batched, input, *settings)
    )


def _along_last(batched: Batched, input: Tensor, *settings: Any) -> bool:
    return input.dim() >= 2 and _first(batched, input, *settings)


def _layer_norm(batched: Batched, input: Tensor, shape: Sequence[int], *settings: Any) -> bool:
    return len(shape) < input.dim() and _first(batched, input, *settings)


def _binary(batched: Batched, input: Tensor, other: Tensor) -> bool:
    """Accept two batched tensors, or one with a weight that is the same for every sample."""
    if batched(input) and batched(other):
        return input.dim() == other.dim()
    tensor, weight = (input, other) if batched(input) else (other, input)
    rank = tensor.dim()
    return batched(tensor) and (
        weight.dim() < rank or (weight.dim() == rank and weight.shape[0] == 1)
    )


def _cat(batched: Batched, tensors: Sequence[Tensor], dim: int) -> bool:
    return all(map(batched, tensors)) and dim % tensors[0].dim() > 0


def _view(batched: Batched, input: Tensor, sizes: Sequence[int]) -> bool:
    """Accept a view in which the samples are what is left when all other sizes are given."""
    rest = 1
    for size in sizes[1:]:
        rest *= size
    return batched(input) and sizes[0] == -1 and rest > 0 and rest * input.shape[0] == input.numel()


def _permute(batched: Batched, input: Tensor, dims: Sequence[int]) -> bool:
    return batched(input) and dims[0] % input.dim() == 0


def _transpose(batched: Batched, input: Tensor, first: int, second: int) -> bool:
    return batched(input) and first % input.dim() > 0 and second % input.dim() > 0


def _flatten(batched: Batched, input: Tensor, start: int, end: int) -> bool:
    return batched(input) and 0 < start % input.dim() <= end % input.dim()


def _unsqueeze(batched: Batched, input: Tensor, dim: int) -> bool:
    return batched(input) and dim % (input.dim() + 1) > 0


def _mean(batched: Batched, input: Tensor, dims: Sequence[int], keepdim: bool) -> bool:
    return batched(input) and len(dims) > 0 and all(dim % input.dim() > 0 for dim in dims)


_RULES: dict[Any, Callable[..., bool]] = {
    **dict.fromkeys(
        (aten.relu.default, aten.relu_.default, aten.silu.default, aten.silu_.default), _first
    ),
    **dict.fromkeys(
        (aten.hardswish.default, aten.hardswish_.default, aten.hardtanh.default), _first
    ),
    **dict.fromkeys(
        (aten.hardtanh_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default), _first
    ),
    **dict.fromkeys((aten.gelu.default, aten.sigmoid.default, aten.tanh.default), _first),
    **dict.fromkeys((aten.dropout.default, aten.dropout_.default), _first),
    **dict.fromkeys((aten.linear.default, aten.batch_norm.default), _along_last),
    **dict.fromkeys((aten.conv1d.default, aten.adaptive_avg_pool1d.default), _of_rank(3)),
    **dict.fromkeys((aten.conv2d.default, aten.adaptive_avg_pool2d.default), _of_rank(4)),
    **dict.fromkeys((aten.conv3d.default, aten.adaptive_avg_pool3d.default), _of_rank(5)),
    **dict.fromkeys((aten.max_pool2d.default, aten.avg_pool2d.default), _of_rank(4)),
    **dict.fromkeys((aten.max_pool3d.default, aten.avg_pool3d.default), _of_rank(5)),
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.sub.Tensor), _binary),
    **dict.fromkeys((aten.view.default, aten.reshape.default), _view),
    aten.layer_norm.default: _layer_norm,
    aten.cat.default: _cat,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.flatten.using_ints: _flatten,
    aten.unsqueeze.default: _unsqueeze,
    aten.mean.dim: _mean,
}
