"""Calls of torch that are written down without going through its dispatcher.

Most calls of a network are a few dozen functions (`F.relu`, `torch.conv2d`, `Tensor.permute`). For
these, the ATen call they lead to can be told from their arguments, and what it gives from the
shapes of its operands. Whatever is not covered here, or called in a way that is not, takes the long
way and means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ATEN_CALL_OF", "PASS_THROUGH", "SIZES", "Found", "Shape", "result_shape"]

aten = torch.ops.aten
Shape = Sequence[int]
Found = tuple[Any, tuple[Any, ...]] | None
"""An ATen overload and its positional arguments; None where the long way must be taken."""

SIZES: frozenset[Any] = frozenset(
    (Tensor.size, Tensor.numel, Tensor.stride, Tensor.shape.__get__)  # type: ignore[attr-defined]
)
"""Questions for the size of a tensor: no call at all, but one whose answer grows with the batch."""
PASS_THROUGH: frozenset[Any] = frozenset(
    (
        *(getattr(Tensor, name) for name in ("dim", "ndimension", "element_size")),
        *(
            getattr(Tensor, name).__get__
            for name in ("ndim", "dtype", "layout", "is_sparse", "is_cuda")
        ),
        *(
            torch.is_floating_point,
            torch.is_complex,
            torch.is_tensor,
            Tensor.is_floating_point,
            Tensor.is_complex,
        ),
    )
)
"""Questions for anything else in the type of a tensor, the same at every batch size."""


# Exact types here and below: a truth value, a NumPy number or a tensor in the place of a number is
# read by PyTorch in its own way, and such a call takes the long way.


def _numbers(items: Any, count: int) -> bool:
    return (
        type(items) in (tuple, list)
        and len(items) == count
        and all(type(item) is int for item in items)
    )


def _whole(items: Any) -> bool:
    return all(type(item) is int for item in items)


# Layers


def _conv(target: Any, rank: int) -> Callable[..., Found]:
    def translate(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> Found:
        if not (_numbers(stride, rank) and _numbers(padding, rank) and _numbers(dilation, rank)):
            return None
        return target, (input, weight, bias, stride, padding, dilation, groups)

    return translate


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Found:
    if training or type(momentum) is not float or type(eps) is not float:
        return None
    flag = torch.backends.cudnn.enabled
    return aten.batch_norm.default, (
        input,
        weight,
        bias,
        running_mean,
        running_var,
        False,
        momentum,
        eps,
        flag,
    )


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Found:
    if type(eps) is not float or not _whole(normalized_shape):
        return None
    return aten.layer_norm.default, (
        input,
        normalized_shape,
        weight,
        bias,
        eps,
        torch.backends.cudnn.enabled,
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Found:
    return aten.linear.default, (input, weight, bias)


def _dropout(input: Tensor, p: Any = 0.5, training: bool = True, inplace: bool = False) -> Found:
    if training or type(p) is not float or not 0.0 <= p <= 1.0:
        return None
    return (aten.dropout_.default if inplace else aten.dropout.default), (input, p, False)


# Activations


def _activation(plain: Any, in_place: Any) -> Callable[..., Found]:
    def translate(input: Tensor, inplace: bool = False) -> Found:
        return (in_place if inplace else plain), (input,)

    return translate


def _unary(target: Any) -> Callable[..., Found]:
    def translate(input: Tensor) -> Found:
        return target, (input,)

    return translate


def _gelu(input: Tensor, approximate: str = "none") -> Found:
    return (aten.gelu.default, (input,)) if approximate == "none" else None


def _hardtanh(
    input: Tensor, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False
) -> Found:
    if type(min_val) is not float or type(max_val) is not float or min_val > max_val:
        return None
    return (aten.hardtanh_.default if inplace else aten.hardtanh.default), (input, min_val, max_val)


# Element by element


def _binary(target: Any) -> Callable[..., Found]:
    def translate(input: Any, other: Any) -> Found:
        if not isinstance(input, Tensor) or not isinstance(other, Tensor):
            return None
        return target, (input, other)

    return translate


def _matmul(input: Tensor, other: Tensor) -> Found:
    return aten.matmul.default, (input, other)


# Shapes


def _sized(target: Any) -> Callable[..., Found]:
    """Translate `x.view(2, 3)` and `x.view((2, 3))`."""

    def translate(self: Tensor, *sizes: Any) -> Found:
        if len(sizes) == 1 and type(sizes[0]) is not int:
            sizes = tuple(sizes[0]) if isinstance(sizes[0], tuple | list) else ("",)
        return (target, (self, sizes)) if sizes and _whole(sizes) else None

    return translate


def _permute(input: Tensor, dims: Any) -> Found:
    return (
        (aten.permute.default, (input, dims))
        if isinstance(dims, tuple | list) and _whole(dims)
        else None
    )


def _transpose(input: Tensor, dim0: Any, dim1: Any) -> Found:
    return (
        (aten.transpose.int, (input, dim0, dim1))
        if type(dim0) is int and type(dim1) is int
        else None
    )


def _flatten(input: Tensor, start_dim: Any = 0, end_dim: Any = -1) -> Found:
    if type(start_dim) is not int or type(end_dim) is not int:
        return None
    return aten.flatten.using_ints, (input, start_dim, end_dim)


def _unsqueeze(input: Tensor, dim: Any) -> Found:
    return (aten.unsqueeze.default, (input, dim)) if type(dim) is int else None


def _cat(tensors: Any, dim: Any = 0) -> Found:
    if (
        type(dim) is not int
        or not isinstance(tensors, tuple | list)
        or not all(type(t) is Tensor for t in tensors)
    ):
        return None
    return aten.cat.default, (tensors, dim)


# Pooling


def _adaptive(target: Any, rank: int) -> Callable[..., Found]:
    def translate(input: Tensor, output_size: Any) -> Found:
        sizes = (output_size,) * rank if type(output_size) is int else output_size
        return (target, (input, sizes)) if _numbers(sizes, rank) else None

    return translate


def _spread(item: Any, rank: int) -> tuple[int, ...] | None:
    """Return a setting for each spatial dimension, given as one number for all or one each.

    There is none of them for None.
    """
    if item is None or type(item) is int:
        return () if item is None else (item,) * rank
    return tuple(item) if _numbers(item, rank) else None


def _max_pool(target: Any, rank: int) -> Callable[..., Found]:
    def translate(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Found:
        settings = [_spread(item, rank) for item in (kernel_size, stride, padding, dilation)]
        if return_indices or None in settings:
            return None
        return target, (input, *settings, ceil_mode)

    return translate


def _avg_pool(target: Any, rank: int) -> Callable[..., Found]:
    def translate(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Found:
        settings = [_spread(item, rank) for item in (kernel_size, stride, padding)]
        if None in settings:
            return None
        return target, (input, *settings, ceil_mode, count_include_pad, divisor_override)

    return translate


def _mean(input: Tensor, dim: Any, keepdim: bool = False) -> Found:
    dims = (dim,) if type(dim) is int else dim
    if not isinstance(dims, tuple | list) or not dims or not _whole(dims):
        return None
    return aten.mean.dim, (input, dims, keepdim)


ATEN_CALL_OF: dict[Any, Callable[..., Found]] = {
    torch.conv1d: _conv(aten.conv1d.default, 1),
    torch.conv2d: _conv(aten.conv2d.default, 2),
    torch.conv3d: _conv(aten.conv3d.default, 3),
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.dropout: _dropout,
    F.relu: _activation(aten.relu.default, aten.relu_.default),
    F.silu: _activation(aten.silu.default, aten.silu_.default),
    F.hardswish: _activation(aten.hardswish.default, aten.hardswish_.default),
    F.hardsigmoid: _activation(aten.hardsigmoid.default, aten.hardsigmoid_.default),
    F.hardtanh: _hardtanh,
    F.gelu: _gelu,
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), _unary(aten.sigmoid.default)),
    **dict.fromkeys((torch.tanh, Tensor.tanh), _unary(aten.tanh.default)),
    **dict.fromkeys((torch.relu, Tensor.relu), _unary(aten.relu.default)),
    **dict.fromkeys((torch.add, Tensor.add), _binary(aten.add.Tensor)),
    **dict.fromkeys((torch.mul, Tensor.mul), _binary(aten.mul.Tensor)),
    **dict.fromkeys((torch.sub, Tensor.sub), _binary(aten.sub.Tensor)),
    Tensor.add_: _binary(aten.add_.Tensor),
    **dict.fromkeys((torch.matmul, Tensor.matmul), _matmul),
    Tensor.view: _sized(aten.view.default),
    Tensor.reshape: _sized(aten.reshape.default),
    Tensor.permute: _sized(aten.permute.default),
    torch.permute: _permute,
    **dict.fromkeys((torch.transpose, Tensor.transpose), _transpose),
    **dict.fromkeys((torch.flatten, Tensor.flatten), _flatten),
    **dict.fromkeys((torch.unsqueeze, Tensor.unsqueeze), _unsqueeze),
    torch.cat: _cat,
    **dict.fromkeys((torch.mean, Tensor.mean), _mean),
    F.max_pool2d: _max_pool(aten.max_pool2d.default, 2),
    F.max_pool3d: _max_pool(aten.max_pool3d.default, 3),
    F.avg_pool2d: _avg_pool(aten.avg_pool2d.default, 2),
    F.avg_pool3d: _avg_pool(aten.avg_pool3d.default, 3),
    F.adaptive_avg_pool1d: _adaptive(aten.adaptive_avg_pool1d.default, 1),
    F.adaptive_avg_pool2d: _adaptive(aten.adaptive_avg_pool2d.default, 2),
    F.adaptive_avg_pool3d: _adaptive(aten.adaptive_avg_pool3d.default, 3),
}
"""Function -> what tells its ATen call; a `TypeError` means that it was called in another way."""


# What calls give


def result_shape(target: Any, args: tuple[Any, ...]) -> Shape | None:
    """Return the shape of the one new tensor that a call gives; None where running it must tell.

    The tensor is contiguous and has the first operand's dtype.
    """
    rule = _SHAPES.get(target)
    return rule(*args) if rule is not None else None


def _plain(*tensors: Tensor) -> bool:
    """Tell whether all tensors are contiguous and of one dtype."""
    dtype = tensors[0].dtype
    return all(tensor.is_contiguous() and tensor.dtype is dtype for tensor in tensors)


def _conv_shape(
    input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Shape | None:
    sizes, kernel = input.shape, weight.shape
    if (
        len(sizes) != len(kernel)
        or sizes[1] != kernel[1] * groups
        or kernel[0] % groups
        or not _plain(input, weight)
    ):
        return None
    if bias is not None and (bias.shape != kernel[:1] or bias.dtype is not input.dtype):
        return None
    spatial = [
        (size + 2 * pad - dilate * (width - 1) - 1) // step + 1
        for size, width, step, pad, dilate in zip(
            sizes[2:], kernel[2:], stride, padding, dilation, strict=True
        )
    ]
    return None if min(spatial) < 1 else (sizes[0], kernel[0], *spatial)


def _linear_shape(input: Tensor, weight: Tensor, bias: Any) -> Shape | None:
    sizes, (*outs, ins) = input.shape, weight.shape
    if len(outs) != 1 or len(sizes) < 2 or sizes[-1] != ins or not _plain(input, weight):
        return None
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype is not input.dtype):
        return None
    return (*sizes[:-1], outs[0])


def _broadcast(input: Tensor, other: Tensor) -> Shape | None:
    """Return the shape of two tensors, each of which may be spread out where it has size 1."""
    a, b = input.shape, other.shape
    if len(a) != len(b) or not _plain(input, other):
        return None
    if a == b:
        return a
    fits = all(x == y or 1 in (x, y) for x, y in zip(a, b, strict=True))
    return [x if y == 1 else y for x, y in zip(a, b, strict=True)] if fits else None


def _pooled(input: Tensor, sizes: Sequence[int]) -> Shape | None:
    rank = len(sizes)
    if (
        input.dim() != rank + 2
        or not input.is_contiguous()
        or not input.is_floating_point()
        or 0 in input.shape
    ):
        return None
    return (*input.shape[:2], *sizes)


def _cat_shape(tensors: Sequence[Tensor], dim: int) -> Shape | None:
    if not tensors or not _plain(*tensors):
        return None
    first = tensors[0].shape
    if not -len(first) <= dim < len(first) or len(first) < 2:
        return None
    dim %= len(first)
    rest = (*first[:dim], *first[dim + 1 :])
    if any((*t.shape[:dim], *t.shape[dim + 1 :]) != rest for t in tensors):
        return None
    return (*first[:dim], sum(tensor.shape[dim] for tensor in tensors), *first[dim + 1 :])


_SHAPES: dict[Any, Callable[..., Shape | None]] = {
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _conv_shape),
    aten.linear.default: _linear_shape,
    **dict.fromkeys((aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor), _broadcast),
    aten.cat.default: _cat_shape,
    aten.adaptive_avg_pool2d.default: _pooled,
    aten.adaptive_avg_pool3d.default: _pooled,
}
