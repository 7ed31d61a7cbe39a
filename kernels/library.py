"""The fused operations as ops of PyTorch (``torch.ops.pruneopt``), on whole tensors `[N, C, H, W]`,
in plain PyTorch.

They are what a lowered graph is written in: what each computes stands here, on any device and in
any precision. On a GPU the kernels of this package do the same for many candidates at once, on
packed buffers.

An input that is not finished is given as ``raw`` with what is still to be done: ``activation(raw *
scale + shift + residual * residual_scale + residual_shift)``; what is None is left out. Scales and
shifts are `[C]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pruneopt.errors import UserError

__all__ = ["ACTIVATIONS"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x.clone(),
    "relu": functional.relu,
    "relu6": functional.relu6,
    "hardswish": functional.hardswish,
    "silu": functional.silu,
}
"""Every activation of the kernels by its name; each maps 0 to 0, so that pad channels stay zero."""


def _spread(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is not None:
        x = x * scale[:, None, None]
    return x if shift is None else x + shift[:, None, None]


def finish(
    raw: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_shift: Tensor | None,
    activation: str,
) -> Tensor:
    """Return a finished input, `[N, C, H, W]`.

    Raises:
        UserError: an activation that kernels do not have.
    """
    if activation not in ACTIVATIONS:
        raise UserError(
            f"kernels have no activation {activation}: use one of {', '.join(ACTIVATIONS)}"
        )
    x = _spread(raw, scale, shift)
    if residual is not None:
        x = x + _spread(residual, residual_scale, residual_shift)
    return ACTIVATIONS[activation](x)


def conv_statistics(
    raw: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_shift: Tensor | None,
    weight: Tensor,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve an input finished on the way in; return the statistics of what comes out, too.

    Returns:
        the raw output `[N, C', H', W']`, its mean and biased variance per channel `[C']`, and the
        finished input, for others that read it.
    """
    x = finish(raw, scale, shift, residual, residual_scale, residual_shift, activation)
    out = functional.conv2d(x, weight, None, list(stride), list(padding), list(dilation), groups)
    return out, *_statistics(out), x


def conv_output(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve a finished input in evaluation mode: ``activation(conv(x) + bias + residual)``."""
    out = functional.conv2d(x, weight, bias, list(stride), list(padding), list(dilation), groups)
    return finish(out, None, None, residual, None, None, activation)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel `[C]` of a tensor that no kernel made."""
    return _statistics(x)


def norm_affine(
    mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the scale and shift `[C]` that a batch norm with these statistics amounts to."""
    scale = torch.rsqrt(variance + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


def mean_pixels(
    raw: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_shift: Tensor | None,
    activation: str,
) -> Tensor:
    """Return the mean over pixels of an input finished on the way in, `[N, C, 1, 1]`."""
    return finish(raw, scale, shift, residual, residual_scale, residual_shift, activation).mean(
        (2, 3), keepdim=True
    )


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
    return mean, variance


for _function in (conv_statistics, conv_output, statistics, norm_affine, mean_pixels):
    _op = torch.library.custom_op(f"pruneopt::{_function.__name__}", _function, mutates_args=())
    _op.register_fake(_function)
_op = torch.library.custom_op("pruneopt::add_act", finish, mutates_args=())
_op.register_fake(finish)
