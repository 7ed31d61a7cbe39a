"""Layers whose one ATen call is told from their settings, without running their Python.

They are most of a convolutional network. Only layers of PyTorch itself, as they are: no subclass,
no hook, no forward of one's own, and evaluation mode. Everything else runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from pruneopt.ir.capture.recording.known_functions import ATEN_CALL_OF, Found

__all__ = ["module_call"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def module_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Found:
    """Return the one ATen call that ``module(*args)`` makes; None where it has to be run."""
    kind = type(module)
    if kind not in _LAYERS or kwargs or len(args) != 1 or type(args[0]) is not Tensor:
        return None
    translate, forward = _LAYERS[kind]
    own = vars(module)
    # A hook may change the result, and a forward put on the object (``forward=``) is another one.
    if any(own[name] for name in HOOKS) or torch_module._has_any_global_hook():
        return None
    if "forward" in own or own["training"] or kind.forward is not forward:
        return None
    return translate(module, args[0])


def _conv(function: Any, rank: int) -> Callable[[Any, Tensor], Found]:
    def translate(module: Any, x: Tensor) -> Found:
        if module.padding_mode != "zeros" or x.dim() != rank + 2:
            return None
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        return ATEN_CALL_OF[function](
            x, weight, bias, module.stride, module.padding, module.dilation, module.groups
        )

    return translate


def _batch_norm(rank: int) -> Callable[[Any, Tensor], Found]:
    def translate(module: Any, x: Tensor) -> Found:
        mean, variance = module._buffers.get("running_mean"), module._buffers.get("running_var")
        if mean is None or variance is None or x.dim() != rank + 2:
            return None
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        return ATEN_CALL_OF[F.batch_norm](
            x, mean, variance, weight, bias, False, module.momentum, module.eps
        )

    return translate


def _activation(function: Any) -> Callable[[Any, Tensor], Found]:
    return lambda module, x: ATEN_CALL_OF[function](x, module.inplace)


def _relu6(module: Any, x: Tensor) -> Found:
    return ATEN_CALL_OF[F.hardtanh](x, module.min_val, module.max_val, module.inplace)


def _pool(function: Any) -> Callable[[Any, Tensor], Found]:
    return lambda module, x: ATEN_CALL_OF[function](x, module.output_size)


def _layer_norm(module: Any, x: Tensor) -> Found:
    weight, bias = module._parameters["weight"], module._parameters["bias"]
    return ATEN_CALL_OF[F.layer_norm](x, module.normalized_shape, weight, bias, module.eps)


def _linear(module: Any, x: Tensor) -> Found:
    return ATEN_CALL_OF[F.linear](x, module._parameters["weight"], module._parameters["bias"])


_TRANSLATED: dict[type[nn.Module], Callable[[Any, Tensor], Found]] = {
    nn.Conv1d: _conv(torch.conv1d, 1),
    nn.Conv2d: _conv(torch.conv2d, 2),
    nn.Conv3d: _conv(torch.conv3d, 3),
    nn.BatchNorm2d: _batch_norm(2),
    nn.BatchNorm3d: _batch_norm(3),
    nn.ReLU: _activation(F.relu),
    nn.SiLU: _activation(F.silu),
    nn.Hardswish: _activation(F.hardswish),
    nn.Hardsigmoid: _activation(F.hardsigmoid),
    nn.ReLU6: _relu6,
    nn.Sigmoid: lambda module, x: ATEN_CALL_OF[torch.sigmoid](x),
    nn.GELU: lambda module, x: ATEN_CALL_OF[F.gelu](x, module.approximate),
    nn.LayerNorm: _layer_norm,
    nn.AdaptiveAvgPool2d: _pool(F.adaptive_avg_pool2d),
    nn.AdaptiveAvgPool3d: _pool(F.adaptive_avg_pool3d),
    nn.Linear: _linear,
}
_LAYERS = {kind: (translate, kind.forward) for kind, translate in _TRANSLATED.items()}
"""With the forward that each layer has, to see that it still has it."""
